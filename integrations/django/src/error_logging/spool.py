"""Events on disk until they are logged and delivered: what is there survives a `kill -9`.

    SPOOL_DIR/
      p-<database>-<uuid>/     of one living process, which holds the lock on its `lock`
        <error_id>.json        one event; written aside, then renamed, and never changed
      refused/                 what the service would not take, with the reason beside it

The kernel releases a dead process's lock, so its directory is known to be abandoned when its lock can be had. Another
process of the same application then takes the files over. A process whose events belong into another database (a
test's) leaves them alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from error_logging import counters

try:
    import fcntl
except ImportError:  # Windows: one process at a time then, and nothing to take over.
    fcntl = None

REFUSED = "refused"
_LOCK = "lock"
_ABANDONED_S = 3600.0
"""After this long a directory that never came to life is litter."""


class SpoolUnusable(OSError):
    """The spool's directory can't be used; says why."""


class SpoolFull(OSError):
    """The spool holds as many events as it may."""


class Spool:
    """This process's directory in the spool, and access to those of dead ones."""

    def __init__(self, root: Path, database: str, *, max_files: int, fsync: bool = False) -> None:
        """`database` names where the events' rows belong. Raises SpoolUnusable."""
        self.root = root
        self.max_files = max_files
        self.fsync = fsync
        self._prefix = f"p-{hashlib.sha256(database.encode()).hexdigest()[:8]}-"
        self._lock: int | None = None
        self._count = 0
        self._others = 0
        try:
            prepare(root)
            self.directory = self._take_directory()
        except SpoolUnusable:
            raise
        except OSError as error:
            raise SpoolUnusable(error.errno or errno.EIO, f"{root}: {error.strerror}") from error

    def put(self, name: str, payload: bytes) -> None:
        """Durable on return, against the death of the process, and with `fsync` of the host. Raises OSError."""
        if self._count + self._others >= self.max_files:
            raise SpoolFull(errno.ENOSPC, f"the spool holds {self.max_files} events")
        try:
            self._write(self.directory, name, payload)
        except FileNotFoundError:
            # Somebody tidied the temporary directory up.
            prepare(self.root)
            self._release()
            self.directory = self._take_directory()
            self._count = 0
            self._write(self.directory, name, payload)
        self._count += 1

    def read(self, name: str) -> bytes:
        return (self.directory / f"{name}.json").read_bytes()

    def remove(self, name: str) -> None:
        try:
            (self.directory / f"{name}.json").unlink()
        except OSError:
            return
        self._count -= 1

    def refuse(self, name: str, reason: str) -> None:
        """Keep a copy among the refused, with the reason."""
        with contextlib.suppress(OSError):
            parked = self.root / REFUSED
            parked.mkdir(mode=0o700, exist_ok=True)
            if len(os.listdir(parked)) >= 2 * self.max_files:  # noqa: PTH208 - only the number is wanted
                counters.add("refused_not_kept")
                return
            self._write(parked, name, self.read(name))
            self._write(parked, name, reason.encode("utf-8", "replace"), suffix=".txt")

    def adopt(self) -> list[str]:
        """Take over what dead processes left: the names of the events that are now this process's own."""
        adopted: list[str] = []
        others = 0
        for directory in self._directories():
            if directory == self.directory:
                continue
            lock = _try_lock(directory / _LOCK)
            if lock is None:
                others += _count(directory)
                continue
            try:
                adopted += self._empty(directory)
            finally:
                os.close(lock)
        self._others = others
        self._collect_litter()
        return adopted

    def holds(self, name: str) -> bool:
        """Whether any process of this application still has this event to log or deliver."""
        return any((directory / f"{name}.json").exists() for directory in self._directories())

    def close(self) -> None:
        """Let others have what is left."""
        with contextlib.suppress(OSError):
            if not any(entry.suffix == ".json" for entry in self.directory.iterdir()):
                self._discard(self.directory)
        self._release()

    def forget(self) -> None:
        """In a forked child: the directory is the parent's, and so is its lock, which unlocking here would release."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = None

    def _take_directory(self) -> Path:
        # Locked before it gets its name, so that nobody takes it for abandoned.
        identity = uuid.uuid4().hex
        unborn = self.root / f".new-{identity}"
        unborn.mkdir(mode=0o700)
        self._lock = _try_lock(unborn / _LOCK, create=True)
        final = self.root / f"{self._prefix}{identity}"
        unborn.rename(final)
        return final

    def _write(self, directory: Path, name: str, payload: bytes, *, suffix: str = ".json") -> None:
        temporary = directory / f".{name}{suffix}.tmp"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                view = memoryview(payload)
                while view:
                    view = view[os.write(descriptor, view) :]
                if self.fsync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.rename(directory / f"{name}{suffix}")
            if self.fsync:
                _fsync_directory(directory)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def _directories(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.root):
                if entry.name.startswith(self._prefix):
                    yield Path(entry.path)

    def _empty(self, directory: Path) -> list[str]:
        names: list[str] = []
        with contextlib.suppress(OSError):
            for entry in sorted(directory.iterdir(), key=_age):
                if entry.suffix == ".json" and not entry.name.startswith("."):
                    entry.rename(self.directory / entry.name)
                    names.append(entry.stem)
            self._discard(directory)
        self._count += len(names)
        return names

    def _discard(self, directory: Path) -> None:
        """An emptied directory, with torn temporary files and its lock."""
        for entry in directory.iterdir():
            if entry.name.endswith(".tmp"):
                entry.unlink()
        (directory / _LOCK).unlink(missing_ok=True)
        directory.rmdir()

    def _collect_litter(self) -> None:
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.root):
                if entry.name.startswith(".new-") and time.time() - entry.stat().st_mtime > _ABANDONED_S:
                    self._discard(Path(entry.path))

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def prepare(root: Path) -> None:
    """Make the spool's directory, or see that it is safe to use. Raises SpoolUnusable."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.stat()
    except OSError as error:
        raise SpoolUnusable(error.errno or errno.EIO, f"{root}: {error.strerror}") from error
    if hasattr(os, "getuid"):
        # Whoever owns the directory, or may write to it, could take events away or slip some in.
        if found.st_uid not in (os.getuid(), 0):
            raise SpoolUnusable(errno.EPERM, f"{root} belongs to another user")
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            raise SpoolUnusable(errno.EPERM, f"{root} is writable by everyone")
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        raise SpoolUnusable(errno.EACCES, f"{root} is not writable")


def _try_lock(path: Path, *, create: bool = False) -> int | None:
    """A descriptor that holds the lock, or None where another process holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    except OSError:
        if create:
            raise
        return None
    if fcntl is None:
        if create:
            return descriptor
        os.close(descriptor)
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever emptied the directory meanwhile has removed the lock that this descriptor stands for.
        if os.fstat(descriptor).st_nlink == 0:
            raise BlockingIOError
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _count(directory: Path) -> int:
    try:
        return sum(1 for entry in os.scandir(directory) if entry.name.endswith(".json"))
    except OSError:
        return 0


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
