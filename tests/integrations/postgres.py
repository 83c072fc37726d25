"""A PostgreSQL of the tests' own, where the server's programs are installed."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def find_postgres() -> Path | None:
    """Find the folder of PostgreSQL's server programs, which are seldom on the path."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    return Path(found[-1]).parent if found else None


@contextmanager
def postgresql(programs: Path) -> Iterator[str]:
    """Run a PostgreSQL of one's own, on a socket in a temporary folder; yield its URL."""
    # pytest's own temporary folder is closed to other users, and PostgreSQL refuses root.
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            known = {entry.pw_name for entry in pwd.getpwall()}
            name = "postgres" if "postgres" in known else "nobody"
            entry = pwd.getpwnam(name)
            user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        data = f"{folder}/data"
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-N", "-E", "UTF8"],
            check=True,
            capture_output=True,
            cwd=folder,
            **user,
        )
        settings = ["fsync=off", "listen_addresses=", f"unix_socket_directories={folder}"]
        options = [word for setting in settings for word in ("-c", setting)]
        with open(f"{folder}/log", "w") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *options],
                stdout=log,
                stderr=log,
                cwd=folder,
                **user,
            )
        try:
            ready = [programs / "pg_isready", "-q", "-h", folder]
            deadline = time.monotonic() + 60
            while subprocess.run(ready, check=False).returncode != 0:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no PostgreSQL: {Path(folder, 'log').read_text()}")
                time.sleep(0.05)
            yield f"postgresql+psycopg://tester@/postgres?host={folder}"
        finally:
            # Stops without waiting for clients that were killed.
            server.send_signal(signal.SIGINT)
            server.wait()
