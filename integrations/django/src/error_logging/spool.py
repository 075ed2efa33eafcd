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
import threading
import time
import uuid
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
        self._guard = threading.Lock()
        """Over the counts, and over which directory is this process's own."""
        self._count = 0
        self._writing = 0
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
        with self._guard:
            if self._count + self._others >= self.max_files:
                raise SpoolFull(errno.ENOSPC, f"the spool holds {self.max_files} events")
            self._count += 1
            self._writing += 1
        directory, written = self.directory, False
        try:
            try:
                self._write(directory, name, payload)
            except FileNotFoundError:
                self._move_from(directory)
                self._write(self.directory, name, payload)
            written = True
        finally:
            with self._guard:
                self._writing -= 1
                if not written:
                    self._count -= 1

    def read(self, name: str) -> bytes:
        return (self.directory / f"{name}.json").read_bytes()

    def remove(self, name: str) -> None:
        try:
            (self.directory / f"{name}.json").unlink()
        except OSError:
            return
        with self._guard:
            self._count = max(0, self._count - 1)

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
        if self._lock is not None:
            # Temporary directories are tidied up by age; this lock is in use.
            with contextlib.suppress(OSError):
                os.utime(self._lock)
        for directory in self._directories():
            if directory == self.directory:
                continue
            lock = _try_lock(directory / _LOCK, create=_lost_its_lock(directory))
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

    def _move_from(self, gone: Path) -> None:
        """To a new directory: somebody tidied the temporary directory up. The first thread to notice does it."""
        with self._guard:
            if self.directory != gone:
                return
            prepare(self.root)
            self._release()
            self.directory = self._take_directory()
            self._count = self._writing

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

    def _directories(self) -> list[Path]:
        """Those of this application's processes; not what another user slipped into a shared directory."""
        with contextlib.suppress(OSError), os.scandir(self.root) as entries:
            return [Path(entry.path) for entry in entries if entry.name.startswith(self._prefix) and _own(entry)]
        return []

    def _empty(self, directory: Path) -> list[str]:
        names: list[str] = []
        with contextlib.suppress(OSError):
            for entry in sorted(directory.iterdir(), key=_age):
                if entry.suffix == ".json" and not entry.name.startswith("."):
                    entry.rename(self.directory / entry.name)
                    names.append(entry.stem)
            self._discard(directory)
        with self._guard:
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
        with contextlib.suppress(OSError), os.scandir(self.root) as entries:
            for entry in entries:
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
    except OSError as error:
        raise SpoolUnusable(error.errno or errno.EIO, f"{root}: {error.strerror}") from error
    inspect(root)


def foresee(root: Path) -> None:
    """See whether the directory can be used, or made. Raises SpoolUnusable."""
    if os.path.lexists(root):
        inspect(root)
        return
    above = next(parent for parent in root.parents if os.path.lexists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise SpoolUnusable(errno.EACCES, f"{root} can't be made in {above}")


def inspect(root: Path) -> None:
    """See that a directory that is there is safe to use. Raises SpoolUnusable."""
    try:
        link, found = root.lstat(), root.stat()
    except OSError as error:
        raise SpoolUnusable(error.errno or errno.EIO, f"{root}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise SpoolUnusable(errno.ENOTDIR, f"{root} is not a directory")
    if hasattr(os, "getuid"):
        # Whoever owns the directory or a link to it, or may write to it, could take events away or slip some in.
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in (os.getuid(), 0):
            raise SpoolUnusable(errno.EPERM, f"{root} is a link of another user's")
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


def _own(entry: os.DirEntry[str]) -> bool:
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == os.getuid())


def _lost_its_lock(directory: Path) -> bool:
    """Whether its lock was tidied away; a directory of a living process has one that never looks old."""
    try:
        return not (directory / _LOCK).exists() and time.time() - directory.stat().st_mtime > _ABANDONED_S
    except OSError:
        return False


def _count(directory: Path) -> int:
    try:
        with os.scandir(directory) as entries:
            return sum(1 for entry in entries if entry.name.endswith(".json"))
    except OSError:
        return 0


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
