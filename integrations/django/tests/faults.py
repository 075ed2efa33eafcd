"""Faults for the tests: a database that refuses or stays silent, a receiver that fails now and then."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

Mode = Literal["forward", "refuse", "silent"]


class DatabaseProxy:
    """Stands between Django and PostgreSQL's Unix socket, and can fail as a server and its network do."""

    def __init__(self, socket_dir: Path) -> None:
        self.behind = socket_dir / ".s.PGSQL.5432"
        # Unix sockets have short names.
        self.directory = Path(tempfile.mkdtemp(prefix="proxy"))
        self.mode: Mode = "forward"
        self._open: list[socket.socket] = []
        self._listening: socket.socket | None = None

    def __enter__(self) -> Self:
        self.become("forward")
        return self

    def __exit__(self, *_: object) -> None:
        self.become("refuse")
        shutil.rmtree(self.directory)

    def become(self, mode: Mode) -> None:
        self.mode = mode
        if mode == "refuse":
            if self._listening is not None:
                with contextlib.suppress(OSError):
                    self._listening.shutdown(socket.SHUT_RDWR)
                self._listening.close()
                self._listening = None
            (self.directory / self.behind.name).unlink(missing_ok=True)
            self._end_connections()
        elif self._listening is None:
            self._listening = socket.socket(socket.AF_UNIX)
            self._listening.bind(str(self.directory / self.behind.name))
            self._listening.listen(64)
            threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()
        if mode == "forward":
            self._end_connections()

    def _end_connections(self) -> None:
        ended, self._open = self._open, []
        for one in ended:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            self._open.append(client)
            if self.mode == "forward":
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self.behind))
                self._open.append(server)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.mode == "forward":
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait for what nobody tells of. Raises AssertionError where it doesn't come."""
    deadline, never = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        never.wait(0.01)


def rows(postgres: Any, sql: str = "SELECT error_id::text FROM error_logging_errorlog") -> list[str]:
    """What anybody else sees in the database, in a transaction of its own."""
    import psycopg

    with psycopg.connect(postgres.url("test_site")) as outside:
        return [str(row[0]) for row in outside.execute(sql)]
