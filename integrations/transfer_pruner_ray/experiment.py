"""The trials of a Ray Tune experiment, read from its folder.

What it must satisfy: reading an experiment of somebody else's runs no code. Ray's own loaders
unpickle it; here what Ray wrote as a pickle is read in the trial's own folder, where it is plain.
One trial that cannot be read whole costs no other.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transfer_pruner_ray.marks import AUDIT, PAIR, SETTLED_FILE, flat, is_placeholder, split_audit

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from ray.tune import ResultGrid
    from ray.tune.experiment import Trial

_OPAQUE = "_type"
_MEASURES = ("time_total_s", "training_iteration")
# Tune overwrites its state in place, in far less than this altogether.
_WRITING_TRIES = 10
_WRITING_SECONDS = 0.2


@dataclass(frozen=True)
class TuneTrial:
    """What a trial of Tune's was and what it said last.

    Attributes
    ----------
    id, status : str
    config, result : dict of str to value
        Nested names joined by ``/``; without the mark of an audit.
    audit : mapping, optional
        What the rule said of an audit trial, as far as it was written down; None of any other.
    pair : (source, target), optional
        By name, where the configuration's own values are of another type.
    """

    id: str
    status: str
    config: dict[str, Any]
    result: dict[str, Any]
    audit: Mapping[str, Any] | None = None
    pair: tuple[Any, Any] | None = field(default=None)
    started: bool = True

    @property
    def ended(self) -> bool:
        """Whether it has finished or failed; not if the search ended before it started."""
        if self.status == "TERMINATED":
            return self.started or bool(self.result)
        return self.status == "ERROR"

    @classmethod
    def of(cls, trial: Trial) -> TuneTrial:
        """Take a trial of a search that runs here."""
        said = vars(trial)
        return cls._made(
            trial.trial_id,
            trial.status,
            flat(trial.config),
            flat(trial.run_metadata.last_result),
            said,
            started=trial.run_metadata.start_time is not None,
        )

    @classmethod
    def _made(
        cls,
        trial_id: str,
        status: str,
        config: dict[str, Any],
        result: dict[str, Any],
        said: Mapping[str, Any],
        *,
        started: bool,
    ) -> TuneTrial:
        config, audit_of = split_audit(config)
        config = {name: value for name, value in config.items() if not is_placeholder(value)}
        audit = said.get(AUDIT) or ({"rule": audit_of} if audit_of else None)
        pair = said.get(PAIR)
        pair = None if pair is None else tuple(pair)
        return cls(trial_id, status, config, result, audit, pair, started)


def read_trials(
    results: ResultGrid | str | os.PathLike[str], metric: str | None = None
) -> list[TuneTrial]:
    """Read every trial of an experiment, in the order of their ids.

    Parameters
    ----------
    results : ResultGrid, path or URI
    metric : str, optional
        The metric that is to be read, of all that the last result has.

    Raises
    ------
    FileNotFoundError
        If there is no experiment in the folder.
    ValueError
        If `results` is none of these, or the state is half written and stays so.
    """
    filesystem, folder = _located(results)
    needed = [name for name in (*_MEASURES, metric) if name]
    trials = []
    for state, metadata in sorted(_state(filesystem, folder), key=lambda t: t[0]["trial_id"]):
        config, last = _plain(state["config"]), _plain(metadata.get("last_result") or {})
        # What is no number or text of Python's is a pickle there, a metric of numpy's too.
        opaque = _unknown in config.values()
        if opaque or any(last.get(name) is _unknown for name in needed):
            own = _Folder(filesystem, folder, state)
            if opaque:
                config |= own.config()
            last |= own.last_result()
        trials.append(
            TuneTrial._made(
                state["trial_id"],
                state["status"],
                _known(config),
                _known(last),
                state,
                started=metadata.get("start_time") is not None,
            )
        )
    return trials


def read_settled(results: ResultGrid | str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `StopWhenSettled` wrote; nothing if it did not stop the search.

    Raises
    ------
    FileNotFoundError
        If there is no experiment in the folder.
    """
    filesystem, folder = _located(results)
    try:
        with filesystem.open_input_stream(f"{folder}/{SETTLED_FILE}") as stream:
            told: dict[str, Any] = json.loads(stream.readall())
            return told
    except FileNotFoundError:
        next(_state(filesystem, folder), None)
        return {}


class _Folder:
    """A trial's own folder, in which Tune's loggers write plain JSON."""

    def __init__(self, filesystem: FileSystem, experiment: str, state: Mapping[str, Any]) -> None:
        self._filesystem = filesystem
        # It has any name where the user gives trials their names.
        name = state.get("relative_logdir")
        self._path = f"{experiment}/{name}" if name else None
        self._last: dict[str, Any] | None = None

    def config(self) -> dict[str, Any]:
        """Read its configuration; of an eliminated trial it stands in the result alone."""
        params = self._read("params.json")
        if params is None:
            params = (self.raw_result() or {}).get("config")
        return flat(params) if isinstance(params, dict) else {}

    def last_result(self) -> dict[str, Any]:
        """Read the last result that it reported."""
        return flat(self.raw_result() or {})

    def raw_result(self) -> dict[str, Any] | None:
        if self._last is None:
            self._last = self._read("result.json") or {}
        return self._last

    def _read(self, file: str) -> dict[str, Any] | None:
        """Read a file's last line, or all of it if that is one value."""
        if self._path is None:
            return None
        try:
            with self._filesystem.open_input_stream(f"{self._path}/{file}") as stream:
                text = stream.readall().decode()
            content = json.loads(text.splitlines()[-1] if file == "result.json" else text)
        except (OSError, ValueError, IndexError):
            return None
        return content if isinstance(content, dict) else None


def _located(results: ResultGrid | str | os.PathLike[str]) -> tuple[FileSystem, str]:
    from pyarrow.fs import FileSystem, LocalFileSystem

    if not isinstance(results, (str, os.PathLike)):
        if not hasattr(results, "filesystem"):
            raise ValueError(
                f"results must be what Tuner.fit returned, or the experiment's folder, but got "
                f"{results!r}; of tune.run it is analysis.experiment_path."
            )
        return results.filesystem, results.experiment_path
    folder = os.fspath(results)
    if "://" in folder:
        filesystem, folder = FileSystem.from_uri(folder)
        return filesystem, folder
    return LocalFileSystem(), os.path.abspath(folder)


def _state(filesystem: FileSystem, folder: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    from pyarrow.fs import FileSelector

    files = filesystem.get_file_info(FileSelector(folder, allow_not_found=True))
    names = sorted(f.path for f in files if f.base_name.startswith("experiment_state-"))
    if not names:
        raise FileNotFoundError(
            f"{folder!r} holds no Ray Tune experiment: give the folder that Tune named after the "
            "run, with an experiment_state-*.json in it."
        )
    content = _read_settled(filesystem, names[-1])
    return ((json.loads(state), json.loads(meta)) for state, meta in content["trial_data"])


def _read_settled(filesystem: FileSystem, path: str) -> Any:
    """Read a file that Tune, still running, may be writing in place."""
    for _ in range(_WRITING_TRIES):
        try:
            with filesystem.open_input_stream(path) as file:
                return json.loads(file.readall())
        except json.JSONDecodeError:
            time.sleep(_WRITING_SECONDS)
    raise ValueError(
        f"{path!r} is cut short: Ray Tune is writing it or was killed while it did. Try again, or "
        "restore the experiment and let it end."
    )


_unknown = object()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested dicts; what is a pickle, or holds one, becomes `_unknown`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if _is_opaque(value):
            found[key] = _unknown
        elif isinstance(value, dict) and value:
            found |= {f"{key}/{name}": inner for name, inner in _plain(value).items()}
        else:
            found[key] = value
    return found


def _is_opaque(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_opaque, value))
    return isinstance(value, dict) and _OPAQUE in value and "value" in value


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not _unknown}
