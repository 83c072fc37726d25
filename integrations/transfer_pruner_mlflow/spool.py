"""What a search decided, on disk before anything is sent: one JSON line an event.

What it must satisfy: a line that `append` returned from outlives the process, however that ends;
a line that was cut off in writing costs itself only; two processes never write one file; and what
the disk holds is not held in memory as well.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.records import TrialRecord

try:
    import fcntl
except ImportError:  # Windows has no flock; there, two processes must not share a run.
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

DEFAULT_DIRECTORY = Path(".transfer_pruner") / "spool"

# Half a character, as the name of a file may hold; nothing else can write it.
_HALF = re.compile("[\ud800-\udfff]")
_FIELDS = [field.name for field in fields(TrialRecord)]

Kind = Literal["run", "connected", "trial", "metrics", "artifact", "ending", "closed", "synced"]


class SpoolInUseError(ValueError):
    """Another process, or another tracker of this one, writes the file."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a search.

    Attributes
    ----------
    id : str
        Unique: the spool's own id and a count.
    kind : str
        "run" for where and how to write, once a session; "connected" for the run that it became;
        "trial", "metrics" and "artifact" for what is shown; "ending" for why the search ended and
        what it never started; "closed" for how a session ended;
        "synced" once MLflow has everything above.
    timestamp : int
        Milliseconds since 1970, when it happened; MLflow shows this, not when it was sent.
    data : dict
    """

    id: str
    kind: Kind
    timestamp: int
    data: dict[str, Any]


class _Mark(NamedTuple):
    """How far somebody has read: bytes of the file, then events that it did not take."""

    byte: int = 0
    event: int = 0


class Spool:
    """One tracker's file of events, which any threads may write and read, and one takes from.

    Parameters
    ----------
    path : Path
        Appended to if it is there.
    on_error : callable of an OSError
        Told once if the file cannot be written; from then on events are in memory.

    Attributes
    ----------
    id : str
        That of the file's first event, else a new one.
    resumed : bool
        Whether the file held events already.
    works : bool
        Whether everything that was appended has reached the disk.

    Raises
    ------
    SpoolInUseError
        If another process writes it.
    """

    def __init__(self, path: Path, on_error: Callable[[OSError], None]) -> None:
        self.path = path
        self.id = uuid4().hex
        self.resumed = False
        self.works = True
        self._on_error = on_error
        self._count = 0
        self._taken = _Mark()
        self._not_on_disk: list[Event] = []
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        try:
            _make_directory(path.parent)
            # Nobody else's to read: an address may say more than it should.
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            _lock(self._descriptor, path)
            if path.stat().st_size:
                self._go_on()
        except SpoolInUseError:
            self.close()
            raise
        except OSError as error:
            self._give_up(error)

    def append(self, kind: Kind, data: dict[str, Any]) -> Event:
        """Write an event; never raises for a disk that is full or gone."""
        with self._lock:
            event = Event(f"{self.id}/{self._count}", kind, int(time.time() * 1000), data)
            line = json.dumps(vars(event), default=_plain, skipkeys=True, ensure_ascii=False)
            line = _HALF.sub(lambda half: f"\\\\u{ord(half[0]):04x}", line)
            # As a replay will read it, so that what is sent now is what would be sent then.
            event = Event(**json.loads(line))
            self._count += 1
            if self.works and self._descriptor is not None:
                try:
                    self._put(line.encode() + b"\n")
                except OSError as error:
                    self._give_up(error)
            if not self.works:
                self._not_on_disk.append(event)
        return event

    def events(self) -> Iterator[Event]:
        """Read everything that was appended so far, in this session and before."""
        return (event for event, _ in self._read(_Mark(), None))

    def take(self) -> Iterator[Event]:
        """Read what was appended and not taken yet; for one thread."""
        for event, mark in self._read(self._taken, None):
            self._taken = mark
            yield event

    def taken(self) -> Iterator[Event]:
        """Read again what `take` has given so far."""
        return (event for event, _ in self._read(_Mark(), self._taken))

    def sync(self) -> None:
        """Ask the disk to hold what was appended."""
        if self.works and self._descriptor is not None:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                self._give_up(error)

    def rename(self, name: str) -> None:
        """Give the file the name of its run, unless one of that name is there."""
        path = self.path.with_name(f"{name}.jsonl")
        with self._lock:
            if self.works and not path.exists():
                try:
                    os.rename(self.path, path)
                except OSError:
                    return
                self.path = path

    def close(self) -> None:
        """Let others write the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _go_on(self) -> None:
        """Take up where an earlier session ended, after a line of its own if that was cut off."""
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                self._put(b"\n")
        for event in self.events():
            spool, _, count = event.id.partition("/")
            self.id = self.id if self.resumed else spool
            self._count = max(self._count, int(count) + 1)
            self.resumed = True

    def _read(self, begin: _Mark, end: _Mark | None) -> Iterator[tuple[Event, _Mark]]:
        """Read the file, then what it did not take; with each event, where it ends."""
        with self._lock:
            try:
                file = self.path.open("rb")
            except OSError:
                # Whatever is not there was never written; or somebody has deleted it.
                if self.works:
                    raise
                file = None
            if end is None:
                size = os.fstat(file.fileno()).st_size if file is not None else 0
                end = _Mark(size, len(self._not_on_disk))
        byte = begin.byte
        if file is not None:
            with file:
                file.seek(byte)
                # A line that is not whole is being written, or never will be.
                while byte < end.byte and (line := file.readline()).endswith(b"\n"):
                    byte += len(line)
                    event = _decode(line)
                    if event is not None:
                        yield event, _Mark(byte, begin.event)
        for at in range(begin.event, end.event):
            yield self._not_on_disk[at], _Mark(byte, at + 1)

    def _put(self, line: bytes) -> None:
        assert self._descriptor is not None
        if os.write(self._descriptor, line) < len(line):
            raise OSError("the disk took part of a line only")

    def _give_up(self, error: OSError) -> None:
        # Kept open, and so locked, until closed.
        self.works = False
        self._on_error(error)


def encode_record(record: TrialRecord) -> dict[str, Any]:
    """Turn a record into values that `Spool.append` writes."""
    data = {name: getattr(record, name) for name in _FIELDS}
    return data | {"hyperparameters": dict(record.hyperparameters)}


def decode_record(data: dict[str, Any]) -> TrialRecord:
    """Turn what `encode_record` made, read from JSON, back into a record.

    What another version of ours has written besides is left out.
    """
    known = {name: data[name] for name in _FIELDS if name in data}
    source = data["source"]
    return TrialRecord(**known | {"source": tuple(source) if isinstance(source, list) else source})


def _decode(line: bytes) -> Event | None:
    try:
        return Event(**json.loads(line))
    except (ValueError, TypeError):
        return None


def tell(message: str) -> None:
    """Warn, from whichever thread; where warnings are errors, training must not see one."""
    try:
        warnings.warn(message, TransferPrunerWarning, stacklevel=3)
    except TransferPrunerWarning:
        logger.warning(message)


def guarded(write: Callable[[], object], what: str = "left out of MLflow") -> None:
    """Do what may fail; if it does, that is told."""
    try:
        write()
    except Exception as error:
        logger.info(what, exc_info=error)
        tell(f"{what}: {type(error).__name__}: {error}")


def password_of(uri: str) -> str | None:
    """Find the password that an address holds: it must not be written down."""
    return urlsplit(uri).password or None


def _make_directory(directory: Path) -> None:
    ours = not directory.parent.exists() and directory.parent.name == DEFAULT_DIRECTORY.parts[0]
    directory.mkdir(parents=True, exist_ok=True)
    if ours:
        # As the caches of other tools do: what is spooled does not belong into a repository.
        (directory.parent / ".gitignore").write_text("*\n")


def _lock(descriptor: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SpoolInUseError(f"spool {path} is being written by a search that runs.") from error
    except OSError:
        # A file system without locks.
        return


def _plain(value: Any) -> Any:
    """Numpy's numbers as Python's; anything else that JSON does not know as its text."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else str(value)
