"""What is wrong with an installation or with what a search reads, and what to do about it.

What it must satisfy: nothing is created, changed or sent; a part that is broken, even one that
crashes on import, does not stop the other checks; no password is written down.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from transfer_pruner.files import missing_sqlite, one_line, without_password

if TYPE_CHECKING:
    from transfer_pruner.embedding import TaskEmbedding

DISTRIBUTION = "transfer-pruner"

Status = Literal["ok", "absent", "warning", "broken"]

_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
mps = getattr(torch.backends, "mps", None)
print(json.dumps([torch.__version__, gpus or (["mps"] if mps and mps.is_available() else [])]))
"""


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes
    ----------
    name : str
        What was checked.
    status : {"ok", "absent", "warning", "broken"}
        Absent is something optional that is not installed.
    found : str
    advice : str
        What to do; empty if nothing.

    Examples
    --------
    >>> from transfer_pruner.doctor import Check
    >>> Check("rule/", "broken", "no rule.json", "save the rule there").status
    'broken'
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def check_packages(distribution: str = DISTRIBUTION) -> list[Check]:
    """Compare Python and the installed packages with the ranges that a distribution asks for.

    Examples
    --------
    >>> from transfer_pruner.doctor import check_packages
    >>> [check.name for check in check_packages() if check.name == "numpy"]
    ['numpy']
    """
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ImportError:
        advice = "pip install packaging"
        return [Check("packages", "warning", "not compared: packaging is not installed", advice)]
    try:
        about = metadata.metadata(distribution)
    except metadata.PackageNotFoundError:
        return [
            Check(
                distribution,
                "broken",
                "its metadata is not installed",
                f"pip install {distribution}, or --editable . in its repository",
            )
        ]
    checks = [Check(distribution, "ok", about["Version"])]
    python, needs = ".".join(map(str, sys.version_info[:3])), about["Requires-Python"] or ""
    fits = SpecifierSet(needs).contains(python, prereleases=True)
    advice = "" if fits else f"make an environment with a Python {needs}"
    checks.append(Check("python", "ok" if fits else "broken", f"{python} (needs {needs})", advice))
    asked: dict[str, tuple[Requirement, list[str]]] = {}
    extras = about.get_all("Provides-Extra") or []
    for text in metadata.requires(distribution) or []:
        requirement = Requirement(text)
        if requirement.name == distribution:
            continue
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            of = []
        else:
            of = [extra for extra in extras if marker.evaluate({"extra": extra})]
            if not of:
                continue
        known = asked.setdefault(requirement.name, (requirement, []))
        known[1].extend(of)
    return checks + [
        _check_package(name, str(requirement.specifier), requirement.specifier.contains, of)
        for name, (requirement, of) in asked.items()
    ]


def check_torch() -> Check:
    """Tell whether torch loads and sees a GPU, in a process of its own: it may crash.

    Examples
    --------
    >>> from transfer_pruner.doctor import check_torch
    >>> check_torch().name
    'GPU'
    """
    try:
        metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Check(
            "GPU",
            "absent",
            "torch is not installed; only embedding needs it",
            f"pip install '{DISTRIBUTION}[text]'",
        )
    done = subprocess.run([sys.executable, "-c", _TORCH], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        advice = "install torch again for this machine: see pytorch.org"
        return Check("GPU", "broken", f"torch does not load: {why}", advice)
    version, gpus = json.loads(done.stdout.splitlines()[-1])
    if gpus:
        return Check("GPU", "ok", f"torch {version} sees {', '.join(gpus)}")
    cuda = "" if "+cpu" in version else "; a CUDA build of torch sees none without a driver"
    return Check("GPU", "ok", f"torch {version} sees none, so embedding uses the CPU{cuda}")


def check_storage(storage: str, list_studies: Callable[[str], Sequence[str]]) -> Check:
    """Tell whether an Optuna storage opens and what studies it holds.

    Parameters
    ----------
    storage : str
        Storage URL, or a journal file.
    list_studies : callable of the storage
        Names its studies, as ``optuna.get_all_study_names`` does.

    Examples
    --------
    >>> import optuna
    >>> from transfer_pruner.doctor import check_storage
    >>> study = optuna.create_study(storage="sqlite:///study.db", study_name="news")
    >>> check_storage("sqlite:///study.db", optuna.get_all_study_names).found
    'holds news'
    """
    name = f"storage {without_password(storage)}"
    missing = missing_sqlite(storage)
    if missing:
        # Opening it would create an empty one.
        advice = "correct the path, or run a study with this storage first"
        return Check(name, "broken", f"there is no file {missing}", advice)
    try:
        studies = list(list_studies(storage))
    except Exception as error:
        # Optuna guesses at the reason; its database's driver knows it.
        found = f"does not open: {one_line(error.__cause__ or error)}"
        return Check(name, "broken", found, "check the address, the password and the database")
    if not studies:
        return Check(name, "warning", "holds no study", "run a study with this storage first")
    more = f" and {len(studies) - 8} more" if len(studies) > 8 else ""
    return Check(name, "ok", f"holds {', '.join(studies[:8])}{more}")


def check_tracking(uri: str, timeout: float = 3.0) -> Check:
    """Tell whether an MLflow server answers within a few seconds, or its database is there.

    Examples
    --------
    >>> from transfer_pruner.doctor import check_tracking
    >>> check_tracking("http://127.0.0.1:9", timeout=0.1).status
    'broken'
    """
    name = f"tracking {without_password(uri)}"
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return _check_server(name, uri, timeout)
    if scheme == "sqlite":
        missing = missing_sqlite(uri)
        if missing:
            advice = "correct the path; MLflow itself creates the file on the first run"
            return Check(name, "broken", f"there is no file {missing}", advice)
        return Check(name, "ok", "the database file is there")
    if scheme in ("", "file"):
        advice = "use sqlite:///mlflow.db or a server"
        return Check(name, "broken", "MLflow 3 no longer writes to plain folders", advice)
    return Check(name, "warning", f"{scheme}: stores are not checked", "open it with MLflow itself")


def check_models(directory: str | os.PathLike[str]) -> list[Check]:
    """Tell whether the model in a folder, or each model in the folders of a folder, is whole.

    That is: a trained classifier in safetensors with its tokenizer, which needs no code of its own.
    Each is loaded; what is not on this machine is not fetched.

    Examples
    --------
    >>> from transfer_pruner.doctor import check_models
    >>> [check.status for check in check_models("no-such-folder")]
    ['broken']
    """
    name = f"models {directory}"
    try:
        from transfer_pruner.text.checkpoints import load_model
        from transfer_pruner.text.folders import is_model, model_folder, models_in
    except ImportError as error:
        return [Check(name, "broken", one_line(error), f"pip install '{DISTRIBUTION}[text]'")]
    folder = Path(directory)
    if not folder.is_dir():
        return [Check(name, "broken", "there is no such folder", "correct the path")]
    models = {folder.name: folder} if is_model(model_folder(folder)) else models_in(folder)
    if not models:
        advice = "save models there with save_pretrained(), each in a folder named as its task"
        return [Check(name, "broken", "no model in it or in its folders", advice)]
    checks = []
    for task, where in models.items():
        try:
            model, tokenizer = load_model(where, device="cpu", what=task, fetch=False)
        except Exception as error:
            advice = "save the model again, whole, before it is embedded"
            checks.append(Check(f"model {task}", "broken", one_line(error), advice))
            continue
        found = f"{type(model).__name__} of {model.config.num_labels} labels, with a tokenizer of "
        checks.append(Check(f"model {task}", "ok", f"{found}{len(tokenizer)} tokens"))
    return checks


def check_embeddings(directory: str | os.PathLike[str]) -> tuple[list[Check], list[str]]:
    """Tell whether task embeddings load and can be compared; name their tasks.

    Examples
    --------
    >>> from transfer_pruner import TaskEmbedding, save_embeddings
    >>> from transfer_pruner.doctor import check_embeddings
    >>> embeddings = [TaskEmbedding(task, {"last": [0.5, -0.2]}) for task in ("news", "advice")]
    >>> save_embeddings(embeddings, "embeddings")
    >>> checks, tasks = check_embeddings("embeddings")
    >>> tasks
    ['advice', 'news']
    """
    from transfer_pruner.embedding import load_embeddings

    name = f"embeddings {directory}"
    try:
        embeddings = load_embeddings(directory)
    except (ValueError, OSError) as error:
        return [Check(name, "broken", one_line(error), "embed the tasks (again)")], []
    layers = {len(embedding.vectors) for embedding in embeddings.values()}
    of_layers = "-".join(map(str, sorted({min(layers), max(layers)})))
    checks = [Check(name, "ok", f"{len(embeddings)} tasks of {of_layers} layers")]
    return checks + explained(name, embeddings) + compared(name, embeddings), list(embeddings)


def explained(name: str, embeddings: Mapping[str, TaskEmbedding]) -> list[Check]:
    """List the task embeddings that explain nothing, or little, of what their models answer.

    Examples
    --------
    >>> from transfer_pruner import TaskEmbedding
    >>> from transfer_pruner.doctor import explained
    >>> embedding = TaskEmbedding("news", {"last": [0.0, 0.0]}, {"output_changes": [0.4, 0.6]})
    >>> [check.status for check in explained("embeddings", {"news": embedding})]
    ['broken']
    """
    from transfer_pruner.embedding import EXAMPLES, GAPS, LARGEST_GAP, WHOLE

    silent, wide = [], {}
    for task, embedding in embeddings.items():
        arrays = [
            embedding.signals.get(EXAMPLES + x, embedding.vectors[x]) for x in embedding.layers
        ]
        if not any(array.any() for array in arrays):
            silent.append(task)
        gaps = embedding.provenance.get(GAPS, {})
        # Of layers that part of the output's change passes by, a gap is no error.
        largest = max(
            (gaps[x] for x in embedding.provenance.get(WHOLE, ()) if x in gaps), default=0
        )
        if largest > LARGEST_GAP:
            wide[task] = largest
    checks = []
    if silent:
        found = f"{_some(silent)}: attributions that are all 0, so that their pairs have no score"
        advice = "check the model, its tokenizer and the probe examples, and embed them again"
        checks.append(Check(name, "broken", found, advice))
    if wide:
        found = f"{_some([*wide])}: up to {max(wide.values()):.0%} of the output unexplained"
        advice = "embed them with other baselines=, or layers= that are smoother"
        checks.append(Check(name, "warning", found, advice))
    return checks


def compared(name: str, embeddings: Mapping[str, TaskEmbedding]) -> list[Check]:
    """List what keeps task embeddings from being compared with each other.

    Examples
    --------
    >>> from transfer_pruner import TaskEmbedding
    >>> from transfer_pruner.doctor import compared
    >>> layers = {"news": "encoder.0", "advice": "block.0"}
    >>> embeddings = {task: TaskEmbedding(task, {layer: [1.0]}) for task, layer in layers.items()}
    >>> [check.status for check in compared("embeddings", embeddings)]
    ['broken']
    """
    sides: tuple[tuple[str, Callable[[TaskEmbedding], object], Status, str], ...] = (
        (
            "probe examples",
            lambda e: (e.provenance.get("probe"), e.provenance.get("n_probe")),
            "broken",
            "embed all tasks on the same texts: else only cosines of their vectors are compared",
        ),
        (
            "layers",
            lambda e: e.layers,
            "broken",
            "embed the same layers of all tasks: others are not compared, and the pairs kept",
        ),
        (
            "hidden sizes",
            lambda e: tuple(map(len, e.vectors.values())),
            "warning",
            "nothing if that is meant: CKA compares them, cosine and containment do not",
        ),
        (
            "methods or steps",
            lambda e: (e.provenance.get("method"), e.provenance.get("n_steps")),
            "warning",
            "embed all tasks with the same --method and --steps",
        ),
    )
    checks: list[Check] = []
    for what, of, status, advice in sides:
        # Two models of unlike layers have unlike sizes too: saying so once will do.
        if what == "hidden sizes" and any("other layers" in check.found for check in checks):
            continue
        values = {task: of(embedding) for task, embedding in embeddings.items()}
        usual = Counter(values.values()).most_common(1)[0][0] if values else None
        others = [task for task, value in values.items() if value != usual]
        if others:
            same = [task for task in values if task not in others]
            found = f"{_some(others)}: other {what} than {_some(same)}"
            checks.append(Check(name, status, found, advice))
    return checks


def check_rule(directory: str | os.PathLike[str], tasks: Sequence[str]) -> list[Check]:
    """Tell whether a rule loads and which embedded tasks it does not know.

    Parameters
    ----------
    directory : path
    tasks : sequence of str
        Those that are embedded; none if that is not known.

    Examples
    --------
    >>> from transfer_pruner import Decision, EliminationRule
    >>> from transfer_pruner.doctor import check_rule
    >>> EliminationRule({("advice", "news"): Decision(False, 0.9, 0.8, "rank 1")}, {}).save("rule")
    >>> [check.status for check in check_rule("rule", ["news", "advice"])]
    ['ok']
    """
    from transfer_pruner.rule.elimination import EliminationRule

    name = f"rule {directory}"
    try:
        rule = EliminationRule.load(directory)
    except (ValueError, OSError) as error:
        return [Check(name, "broken", one_line(error), f"write one with {DISTRIBUTION} fit")]
    table = rule.table()
    checks = [Check(name, "ok", repr(rule))]
    unscored = int(table["score"].isna().sum())
    if unscored:
        found = f"{unscored} of {len(table)} pairs have no score and are kept"
        checks.append(Check(name, "warning", found, "embed their tasks and fit the rule again"))
    known = {*table["source"], *table["target"]}
    unknown = [task for task in tasks if task not in known]
    if unknown:
        found = f"does not know {_some(unknown)}: their pairs are kept"
        checks.append(Check(name, "warning", found, "fit the rule again with these embeddings"))
    gone = sorted(known - set(tasks)) if tasks else []
    if gone:
        found = f"knows {_some(gone)}, without an embedding here"
        checks.append(Check(name, "warning", found, "embed them before the rule is fitted again"))
    return checks


def _check_package(
    name: str, specifier: str, contains: Callable[..., bool], extras: Sequence[str]
) -> Check:
    needs = f"needs {specifier or 'any version'}"
    for_extras = f", for [{', '.join(e for e in extras if e != 'all')}]" if extras else ""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if not extras:
            return Check(name, "broken", f"not installed ({needs})", f"pip install '{name}'")
        advice = f"pip install '{DISTRIBUTION}[{extras[0]}]'"
        return Check(name, "absent", f"not installed ({needs}{for_extras})", advice)
    if contains(version, prereleases=True):
        return Check(name, "ok", f"{version} ({needs}{for_extras})")
    advice = f"pip install '{name}{specifier}'"
    return Check(name, "broken", f"{version} is out of range ({needs}{for_extras})", advice)


def _check_server(name: str, uri: str, timeout: float) -> Check:
    from urllib.error import HTTPError
    from urllib.request import urlopen

    parts = urlsplit(uri)
    address = parts._replace(
        netloc=parts.netloc.rpartition("@")[2], path=f"{parts.path.rstrip('/')}/health", query=""
    ).geturl()
    try:
        with urlopen(address, timeout=timeout) as answer:
            status = answer.status
    except HTTPError as error:
        advice = "correct the address: an MLflow server answers 200 to /health"
        return Check(name, "broken", f"answers {error.code} {error.reason}", advice)
    except (OSError, ValueError) as error:
        why = one_line(getattr(error, "reason", None) or error)
        found = f"does not answer within {timeout:g} s: {why}"
        return Check(name, "broken", found, "start the server, or correct the address")
    return Check(name, "ok", f"answers ({status})")


def _some(names: Sequence[str], longest: int = 5) -> str:
    more = f" and {len(names) - longest} more" if len(names) > longest else ""
    return ", ".join(names[:longest]) + more
