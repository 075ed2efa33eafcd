"""The supervisor adapter on a real supervisord, over its UNIX socket and over HTTP with a password."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from upright.adapters.engines.ports import free_port
from upright.adapters.platforms.health import HttpHealth
from upright.adapters.platforms.supervisor import Supervisor
from upright.domain.platform import SupervisorReplica
from upright.errors import PlatformFailed

from .conftest import fetch, until

MEMBER = """
import http.server, os, pathlib, socket, sys

if (pathlib.Path(__file__).parent / "broken").exists():
    raise ImportError("No module named 'basket'")
HELD = []

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/grow":
            HELD.append(b"x" * 60_000_000)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())

class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

Server(("127.0.0.1", int(sys.argv[1])), Page).serve_forever()
"""

CONFIGURATION = """
[supervisord]
nodaemon=true
logfile={directory}/supervisord.log
pidfile={directory}/supervisord.pid
childlogdir={directory}
user={user}

[unix_http_server]
file={socket}

[inet_http_server]
port=127.0.0.1:{rpc_port}
username=upright
password=open sesame

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[program:pool]
command={python} {directory}/member.py {port}
process_name=%(program_name)s_%(process_num)02d
numprocs=4
autostart=false
startsecs=1
startretries=0
stopwaitsecs=60
"""


@dataclass
class Pool:
    directory: Path
    socket: Path
    port: int
    rpc_port: int
    process: subprocess.Popen[bytes]

    def members(self) -> list[int]:
        """By the process table."""
        children = psutil.Process(self.process.pid).children()
        return sorted(one.pid for one in children if one.status() != psutil.STATUS_ZOMBIE)

    def platform(self, **changes: object) -> Supervisor:
        address = {"url": f"unix://{self.socket}", "group": "pool", **changes}
        return Supervisor(
            SupervisorReplica.model_validate(address), HttpHealth(f"http://127.0.0.1:{self.port}/", timeout_s=1)
        )


@pytest.fixture
def pool(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two of four members run."""
    socket = tmp_path_factory.mktemp("s") / "s"
    port, rpc_port = free_port(), free_port()
    (tmp_path / "member.py").write_text(MEMBER)
    (tmp_path / "supervisord.conf").write_text(
        CONFIGURATION.format(
            directory=tmp_path, socket=socket, port=port, rpc_port=rpc_port, python=sys.executable, user=os.geteuid()
        )
    )
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(tmp_path / "supervisord.conf")],
            stdout=output,
            stderr=output,
        )
    found = Pool(tmp_path, socket, port, rpc_port, process)
    try:
        until(lambda: socket.exists() or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "output").read_text()
        asyncio.run(found.platform().scale(2, timeout_s=20))
        yield found
    finally:
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        process.kill()
        process.wait()
        for one in children:
            one.kill()


async def test_members_of_the_pool_are_started_and_stopped(pool: Pool) -> None:
    at_first = pool.members()
    assert len(at_first) == 2
    await pool.platform().scale(4, timeout_s=20)
    assert len(pool.members()) == 4
    state = await pool.platform().state()
    assert sorted(one.pid for one in state.processes) == pool.members()
    assert all(one.memory_bytes for one in state.processes)
    await pool.platform().scale(2, timeout_s=20)
    assert pool.members() == at_first


async def test_a_pool_has_no_more_members_than_its_configuration(pool: Pool) -> None:
    with pytest.raises(PlatformFailed, match="has 4 members; its numprocs says"):
        await pool.platform().scale(5, timeout_s=20)
    assert len(pool.members()) == 2


async def test_a_restart_replaces_each_member_that_runs(pool: Pool) -> None:
    old = pool.members()
    await pool.platform().restart(graceful=True, timeout_s=30, health_check=True)
    assert len(pool.members()) == 2
    assert not set(old) & set(pool.members())


async def test_a_restart_stops_at_the_first_member_that_does_not_come_back(pool: Pool) -> None:
    old = pool.members()
    (pool.directory / "broken").touch()
    with pytest.raises(PlatformFailed, match=r"did not come back .*: ImportError: No module named 'basket'"):
        await pool.platform().restart(graceful=True, timeout_s=30, health_check=True)
    left = pool.members()
    assert len(left) == 1
    assert set(left) < set(old)
    assert fetch(pool.port)[0] == 200


async def test_members_that_hang_are_killed_and_replaced(pool: Pool) -> None:
    old = pool.members()
    for pid in old:
        os.kill(pid, signal.SIGSTOP)
    assert (await pool.platform().health.look()).outcome == "failed"
    await pool.platform().restart(graceful=True, timeout_s=30, health_check=True)
    assert len(pool.members()) == 2
    assert not set(old) & set(pool.members())
    assert (await pool.platform().health.look()).outcome == "passed"


async def test_the_member_that_grew_is_replaced_and_no_other(pool: Pool) -> None:
    old = pool.members()
    grown = int(fetch(pool.port, "/grow")[1])
    await pool.platform().recycle([grown], timeout_s=30)
    assert set(old) - set(pool.members()) == {grown}
    assert len(pool.members()) == 2


async def test_over_http_with_a_password(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    address = {"url": f"http://127.0.0.1:{pool.rpc_port}", "user": "upright", "password_env": "POOL_PASSWORD"}
    assert "POOL_PASSWORD" in (await pool.platform(**address).state()).problem
    monkeypatch.setenv("POOL_PASSWORD", "wrong")
    assert "user or password is wrong" in (await pool.platform(**address).state()).problem
    monkeypatch.setenv("POOL_PASSWORD", "open sesame")
    state = await pool.platform(**address).state()
    assert not state.problem
    assert sorted(one.pid for one in state.processes) == pool.members()


async def test_a_group_or_server_that_is_not_there_is_told(pool: Pool) -> None:
    assert "no process group 'pond'" in (await pool.platform(group="pond").state()).problem
    assert "does not answer" in (await pool.platform(url="unix:///nowhere.sock").state()).problem
