"""Where a tracker's events go: into memory until the search begins, then into the run's spool.

What it must satisfy: events keep the order in which they were told; two searches never write one
run's steps; and a disk that cannot be written stops no search.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

from transfer_pruner_mlflow.attach import Attachment
from transfer_pruner_mlflow.spool import Event, Kind, Spool, SpoolInUseError, password_of, tell


class Outbox:
    """What a tracker was told, from any thread.

    Parameters
    ----------
    folder : path
        Of the spool.
    attachment : Attachment
        Where to write.
    settings : dict
        How the run is written; those of `attachment` are added when it is opened.

    Attributes
    ----------
    settings : dict
    file : Spool or None
        None until it is opened.
    """

    def __init__(self, folder: Path, attachment: Attachment, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.file: Spool | None = None
        self._attachment = attachment
        # Guards what is not in the spool yet; never held while MLflow is asked.
        self._lock = threading.Lock()
        self._waiting: list[tuple[Kind, dict[str, Any]]] = []

    def open(self) -> tuple[Spool, str | None]:
        """Open the spool, put into it what waits, and return also the run that is there already.

        Raises
        ------
        RuntimeError
            If it is open.
        """
        with self._lock:
            if self.file is not None:
                raise RuntimeError(
                    "a SavingsTracker shows one search: make another, with run_id= to go on in "
                    "the same run."
                )
            self.file, run_id = self._open_spool()
            for kind, data in self._waiting:
                self.file.append(kind, data)
            self._waiting.clear()
            return self.file, run_id

    def append(self, kind: Kind, data: dict[str, Any]) -> None:
        """Take an event."""
        with self._lock:
            if self.file is None:
                self._waiting.append((kind, data))
            else:
                self.file.append(kind, data)

    def events(self) -> Iterable[Event]:
        """Read again what was told."""
        if self.file is not None:
            return self.file.events()
        return [Event("", kind, 0, data) for kind, data in list(self._waiting)]

    def copies(self) -> Path:
        """Name the folder of what belongs to the run, beside the spool if there is one."""
        if self.file is not None and self.file.works:
            return self.file.path.with_suffix("")
        return Path(tempfile.gettempdir()) / f"transfer_pruner_{uuid4().hex}"

    def missing(self, unstored: dict[str, str] | None) -> str:
        """Say what MLflow has not taken, and what sends it; `Writer.unstored` says which files."""
        if unstored == {}:
            return ""
        if self.file is None or not self.file.works:
            return "MLflow has not taken everything and there is no spool: the rest is lost."
        command = f"transfer-pruner sync {self.file.path}"
        if not unstored:
            return f"MLflow has not taken everything. Once it does, this sends the rest: {command}"
        name, why = next(iter(unstored.items()))
        return (
            f"the run is whole but for {len(unstored)} files that could not be stored, such "
            f"as {name} ({why[:300]}). Once that is mended, this sends them: {command}"
        )

    def _open_spool(self) -> tuple[Spool, str | None]:
        """Open the file and say where to write; return also the run that is there already."""
        attachment = self._attachment
        run_id = attachment.run_id
        try:
            name = run_id or uuid4().hex
            file = Spool(self.folder / f"{name}.jsonl", self._no_disk)
        except SpoolInUseError:
            tell(
                f"another tracker writes into the run {run_id}, whose steps would mix: "
                "this search gets a run of its own beneath it."
            )
            run_id = None
            file = Spool(self.folder / f"{uuid4().hex}.jsonl", self._no_disk)
        beneath = attachment.run_id if run_id is None else None
        uri = attachment.tracking_uri
        # A run that an earlier session of this search created is ours, to end as well.
        ours = any(e.kind == "run" and e.data["run_id"] is None for e in file.events())
        self.settings |= {
            "tracking_uri": None if password_of(uri) else uri,
            "run_id": None if ours else run_id,
            "parent_run_id": beneath or attachment.parent_run_id,
            "beneath": beneath is not None,
        }
        # As a replay will read them.
        self.settings = file.append("run", self.settings).data
        return file, run_id

    def _no_disk(self, error: OSError) -> None:
        tell(
            f"the spool cannot be written ({error}): what MLflow does not take before this process "
            "ends is lost. The search goes on."
        )
