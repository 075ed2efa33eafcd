"""Real gunicorn and supervisord, with an application that can be broken in the ways that matter."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from upright.adapters.engines.ports import free_port
from upright.adapters.platforms.gunicorn import Gunicorn
from upright.adapters.platforms.health import HttpHealth
from upright.domain.platform import GunicornReplica

APPLICATION = """
import os, pathlib, time
HERE = pathlib.Path(__file__).parent
if (HERE / "broken").exists():
    raise ImportError("No module named 'basket'")
HELD = []
(HERE / f"loaded-{os.getpid()}").touch()

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/grow":
        HELD.append(b"x" * 60_000_000)
    if (HERE / "sick").exists():
        start_response("503 Service Unavailable", [("content-length", "0")])
        return [b""]
    body = str(os.getpid()).encode()
    start_response("200 OK", [("content-type", "text/plain"), ("content-length", str(len(body)))])
    return [body]
"""


def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def fetch(port: int, path: str = "/") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@dataclass
class Shop:
    """A gunicorn with its application."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes]
    resting: list[int] = field(default_factory=list[int])

    @property
    def pidfile(self) -> Path:
        return self.directory / "gunicorn.pid"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def workers(self) -> list[int]:
        """By the process table."""
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []
        return sorted(one.pid for one in children if one.status() != psutil.STATUS_ZOMBIE)

    def loaded(self) -> bool:
        """Whether every worker has the application, itself or by its master."""
        pids = self.workers()
        return (
            all((self.directory / f"loaded-{one}").exists() for one in pids)
            or (self.directory / f"loaded-{self.process.pid}").exists()
        )

    def answers(self) -> bool:
        try:
            return fetch(self.port)[0] == 200
        except OSError:
            return False

    def hang(self, *pids: int) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            self.resting.append(pid)

    def break_deploy(self) -> None:
        (self.directory / "broken").touch()

    def platform(self, **changes: object) -> Gunicorn:
        replica = GunicornReplica.model_validate({"pidfile": str(self.pidfile), **changes})
        return Gunicorn(replica, HttpHealth(self.url, timeout_s=1))


def start_shop(directory: Path, workers: int = 2, *arguments: str) -> Shop:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "shop.py").write_text(APPLICATION)
    port = free_port()
    command = [
        *(sys.executable, "-m", "gunicorn", "shop:application", "--workers", str(workers)),
        *(
            "--bind",
            f"127.0.0.1:{port}",
            "--pid",
            "gunicorn.pid",
            "--timeout",
            "120",
            "--no-control-socket",
            "--graceful-timeout",
            "3",
        ),
        *arguments,
    ]
    log = (directory / "gunicorn.log").open("wb")
    process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log, start_new_session=True)
    log.close()
    shop = Shop(directory, port, process)
    try:
        until(
            lambda: process.poll() is not None or (len(shop.workers()) == workers and shop.loaded() and shop.answers())
        )
        assert process.poll() is None, (directory / "gunicorn.log").read_text()
    except AssertionError:
        stop_shop(shop)
        raise
    return shop


def stop_shop(shop: Shop) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(shop.process.pid, signal.SIGKILL)
    shop.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    shops: list[Shop] = []

    def make(name: str = "shop", workers: int = 2, *arguments: str) -> Shop:
        shops.append(start_shop(tmp_path / name, workers, *arguments))
        return shops[-1]

    yield make
    for one in shops:
        stop_shop(one)


@pytest.fixture
def shop(start: Callable[..., Shop]) -> Shop:
    return start()


@pytest.fixture
def busy(shop: Shop) -> Iterator[list[socket.socket]]:
    """As many requests as there are workers at the start, each of which never ends: a client that sends no more."""
    held = [socket.create_connection(("127.0.0.1", shop.port)) for _ in shop.workers()]
    for one in held:
        one.sendall(b"POST / HTTP/1.1\r\nhost: shop\r\ncontent-length: 10\r\n")
    deadline = time.monotonic() + 20
    while shop.answers():
        assert time.monotonic() < deadline
    yield held
    for one in held:
        one.close()
