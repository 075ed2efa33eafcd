"""One owner for each data directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from upright.errors import EngineFailed


class DirectoryLock:
    """Held by the kernel for this process: it is gone with it, however it ends."""

    def __init__(self, directory: Path, what: str) -> None:
        self.path = directory.with_name(directory.name + ".lock")
        self.what = what
        self._fd: int | None = None

    def acquire(self) -> None:
        """Raises EngineFailed if another process holds it, or the directory can't be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EngineFailed(
                f"{self.what} can't write to {self.path.parent}: {error.strerror}. "
                "Make it writable, or choose another directory with UPRIGHT_DATA_DIR."
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise EngineFailed(
                f"{self.what} in {self.path.parent} is in use by process {owner}. "
                "Stop that one first (Ctrl-C where it runs), or choose another directory with UPRIGHT_DATA_DIR."
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._fd = fd

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
