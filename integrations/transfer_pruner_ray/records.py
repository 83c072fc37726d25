"""From a Ray Tune experiment to plain records and transfers tables; its folder is the truth.

What it must satisfy: reading an experiment of somebody else's runs no code. Ray's own loaders
unpickle it; here what Ray could not write as JSON is passed over.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from transfer_pruner.records import Outcome, TrialRecord
from transfer_pruner.rule.decision import Decision
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.tasks import PairParams, plain_source
from transfer_pruner.transfers import transfers_from_records

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from ray.tune import ResultGrid

ELIMINATED = "transfer_pruner/eliminated"
SCORE = "transfer_pruner/score"
PROBABILITY = "transfer_pruner/probability"
REASON = "transfer_pruner/reason"
AUDIT = "transfer_pruner_audit"

_FINISHED = ("TERMINATED", "ERROR")
_OPAQUE = "_type"
# Tune overwrites its state in place, in far less than this altogether.
_WRITING_TRIES = 10
_WRITING_SECONDS = 0.2


def records_from_results(
    results: ResultGrid | str | os.PathLike[str],
    rule: EliminationRule | None = None,
    *,
    metric: str | None = None,
    source_param: str | Sequence[str] = "source",
    target_param: str = "target",
    target: str | None = None,
    min_iterations: int = 0,
) -> list[TrialRecord]:
    """Read an experiment's finished trials as records for `transfer_pruner.estimate_savings`.

    Parameters
    ----------
    results : ResultGrid, path or URI
        What ``Tuner.fit`` returned, or the experiment's folder, of a run that may have been killed.
        Reading it needs no Ray cluster.
    rule : EliminationRule, optional
        The rule that decided; it fills in the scores of trials that ran. Of audit trials that came
        through `filter_param_space`, `TransferVariantGenerator` or `TransferSearcher` it alone
        tells: it eliminates them, and they ran.
    metric : str, optional
        The reported metric that is the records' value, as last reported; nested ones as ``a/b``.
        Left out, it is the one that the Tuner of a ResultGrid had; else records have no value.
    source_param, target_param, target
        As for `TransferScheduler`; nested parameters as ``a/b``.
    min_iterations : int
        Trials with fewer training iterations were stopped early by the scheduler: they keep their
        seconds and have no value.

    Returns
    -------
    list of TrialRecord
        One for each trial that finished, was eliminated or failed and has the pair, in order of
        trial ids. Its seconds are Tune's ``time_total_s``, without the start of the worker.

    Raises
    ------
    FileNotFoundError
        If there is no experiment in the folder.
    """
    pair_of = PairParams(source_param, target_param, target)
    metric = metric or _metric_of(results)
    return [
        _record(number, trial, pair_of, rule, metric, min_iterations)
        for number, trial in enumerate(_trials(results))
        if trial["status"] in _FINISHED and pair_of.is_in(trial["config"])
    ]


def transfers_from_results(
    results: ResultGrid | str | os.PathLike[str],
    *,
    metric: str | None = None,
    mode: str | None = None,
    source_param: str | Sequence[str] = "source",
    target_param: str = "target",
    target: str | None = None,
    min_iterations: int = 0,
) -> pd.DataFrame:
    """Read an experiment as a table of measured transfers, training data for `TransferPredictor`.

    The gain of a trial is its value minus the single-task baseline, as
    `transfer_pruner.transfers_from_records` says.

    Parameters
    ----------
    results, metric, source_param, target_param, target, min_iterations
        As for `records_from_results`.
    mode : {"max", "min"}, optional
        Whether a higher metric is better. Left out, it is that of a ResultGrid's Tuner, else "max".

    Returns
    -------
    DataFrame
        One row for each trial with one source and a value: source, target, gain, score, baseline,
        seconds and the hyperparameters. ``table.attrs["left_out"]`` counts the others.

    Raises
    ------
    FileNotFoundError
        If there is no experiment in the folder.
    ValueError
        If no metric is known, or no trial with a source has a target with a baseline trial.
    """
    metric = metric or _metric_of(results)
    if metric is None:
        raise ValueError("metric is not known from a folder: pass the name that trials report.")
    mode = mode or getattr(_analysis(results), "default_mode", None) or "max"
    if mode not in ("max", "min"):
        raise ValueError(f"mode must be 'max' or 'min' but got {mode!r}.")
    records = records_from_results(
        results,
        metric=metric,
        source_param=source_param,
        target_param=target_param,
        target=target,
        min_iterations=min_iterations,
    )
    table = transfers_from_records(records, maximize=mode == "max")
    unfinished = sum(trial["status"] not in _FINISHED for trial in _trials(results))
    if unfinished:
        table.attrs["left_out"]["unfinished"] = unfinished
    return table


def _record(
    number: int,
    trial: Mapping[str, Any],
    pair_of: PairParams,
    rule: EliminationRule | None,
    metric: str | None,
    min_iterations: int,
) -> TrialRecord:
    source, target = pair_of(trial["config"])
    last = trial["last_result"]
    decision = rule.decide(source, target) if rule else Decision(False, math.nan, math.nan, "")
    if trial["audit"]:
        decision = Decision(**trial["audit"])
    outcome: Outcome = "failed" if trial["status"] == "ERROR" else "trained"
    if last.get(ELIMINATED):
        outcome = "eliminated"
    value = last.get(metric) if metric else None
    whole = last.get("training_iteration", 0) >= min_iterations
    usable = outcome == "trained" and whole and isinstance(value, (int, float))
    return TrialRecord(
        number=number,
        source=plain_source(source, target),
        target=target,
        outcome=outcome,
        seconds=float(last.get("time_total_s", 0.0)),
        value=float(value) if usable and value is not None else math.nan,
        score=_number(last.get(SCORE), decision.score),
        probability=_number(last.get(PROBABILITY), decision.probability),
        reason=str(last.get(REASON, decision.reason)),
        hyperparameters=pair_of.hyperparameters(trial["config"]),
        audit=outcome == "trained" and decision.eliminated,
    )


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, (int, float)) else otherwise


def _analysis(results: object) -> object:
    return getattr(results, "_experiment_analysis", None)


def _metric_of(results: object) -> str | None:
    # A ResultGrid knows what its Tuner optimised, but says so in no public way.
    metric = getattr(_analysis(results), "default_metric", None)
    return metric if isinstance(metric, str) else None


def _trials(results: ResultGrid | str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Read every trial's status, and its config and last result as flat dicts."""
    filesystem, folder = _located(results)
    for state, metadata in sorted(_state(filesystem, folder), key=lambda t: t[0]["trial_id"]):
        config = _flat(state["config"])
        if any(value is _unknown for value in config.values()):
            # Numbers of numpy are pickles in the state, and plain in the trial's own folder.
            config |= _flat(_params(filesystem, folder, state["trial_id"]))
        yield {
            "status": state["status"],
            "config": {k: v for k, v in config.items() if v is not _unknown},
            "last_result": _flat(metadata.get("last_result") or {}),
            "audit": state.get(AUDIT),
        }


def _located(results: ResultGrid | str | os.PathLike[str]) -> tuple[FileSystem, str]:
    from pyarrow.fs import FileSystem, LocalFileSystem

    if not isinstance(results, (str, os.PathLike)):
        return results.filesystem, results.experiment_path
    folder = os.fspath(results)
    if "://" in folder:
        filesystem, folder = FileSystem.from_uri(folder)
        return filesystem, folder
    return LocalFileSystem(), os.path.abspath(folder)


def _state(filesystem: FileSystem, folder: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    names = _matching(filesystem, folder, "experiment_state-")
    if not names:
        raise FileNotFoundError(
            f"{folder!r} holds no Ray Tune experiment: give the folder that Tune named after the "
            "run, with an experiment_state-*.json in it."
        )
    content = _read_settled(filesystem, names[-1])
    return [(json.loads(state), json.loads(meta)) for state, meta in content["trial_data"]]


def _params(filesystem: FileSystem, folder: str, trial_id: str) -> Any:
    for name in _matching(filesystem, folder, ""):
        if f"_{trial_id}_" in os.path.basename(name):
            return _read_json(filesystem, f"{name}/params.json")
    return {}


def _matching(filesystem: FileSystem, folder: str, start: str) -> list[str]:
    from pyarrow.fs import FileSelector

    files = filesystem.get_file_info(FileSelector(folder, allow_not_found=True))
    return sorted(file.path for file in files if file.base_name.startswith(start))


def _read_settled(filesystem: FileSystem, path: str) -> Any:
    """Read a file that Tune, still running, may be writing in place."""
    for _ in range(_WRITING_TRIES):
        try:
            return _read_json(filesystem, path)
        except json.JSONDecodeError:
            time.sleep(_WRITING_SECONDS)
    raise ValueError(
        f"{path!r} is cut short: Ray Tune is writing it or was killed while it did. Try again, or "
        "restore the experiment and let it end."
    )


def _read_json(filesystem: FileSystem, path: str) -> Any:
    with filesystem.open_input_stream(path) as file:
        return json.loads(file.readall())


_unknown = object()


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to ``a/b`` keys; what is a pickle becomes `_unknown`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and _OPAQUE in value and "value" in value:
            flat[prefix + key] = _unknown
        elif isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat
