"""Files and addresses: whole or not at all, and named so that a user can act on them."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it: there is the old file or the whole new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; embeddings and rules are shared like any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def missing_sqlite(uri: str) -> str | None:
    """Name the file of an SQLite address, or a plain path, that is not there."""
    if "://" not in uri:
        return None if Path(uri).is_file() else uri
    scheme, _, rest = uri.partition("://")
    path = rest.partition("?")[0].removeprefix("/")
    if scheme.partition("+")[0] != "sqlite" or path in ("", ":memory:") or "file:" in path:
        return None
    return None if Path(path).is_file() else path


def without_password(uri: str) -> str:
    """Blot the password out of an address."""
    return re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", uri)


def one_line(error: BaseException) -> str:
    """Write an error on one line, without addresses' passwords."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    # SQLAlchemy's second line is the statement, and its last one an advertisement.
    text = text.partition("\n[SQL:")[0].partition("\n(Background on this error")[0]
    return without_password(" ".join(text.split()) or type(error).__name__)
