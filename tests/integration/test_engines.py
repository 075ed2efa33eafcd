"""The embedded engines, for real: they start, survive what an earlier run left behind, and end with us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest

from upright.adapters.engines import EmbeddedPostgres, EmbeddedRedis, free_port
from upright.adapters.engines.child import Child
from upright.errors import EngineFailed


def eventually(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def postgres(tmp_path: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(tmp_path / "pg", durable=False)


def test_data_outlives_a_restart_and_settings_apply(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server:
        url = server.ensure_database("shop")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    again = EmbeddedPostgres(
        tmp_path / "pg", durable=False, max_connections=17, settings={"statement_timeout": "1234ms"}
    )
    with again, psycopg.connect(again.ensure_database("shop")) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        assert connection.execute("SHOW max_connections").fetchone() == ("17",)
        assert connection.execute("SHOW statement_timeout").fetchone() == ("1234ms",)


def test_tcp_needs_the_password(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "pg", durable=False, port=free_port()) as server:
        with psycopg.connect(server.tcp_url()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://postgres@127.0.0.1:{server.port}/postgres")


def test_a_stale_pid_file_that_names_a_foreign_process_is_no_obstacle(postgres: EmbeddedPostgres) -> None:
    with postgres:
        pass
    (postgres.data_dir / "postmaster.pid").write_text(f"{os.getpid()}\n{postgres.data_dir}\n")
    with postgres, psycopg.connect(postgres.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert alive(os.getpid())


@pytest.mark.parametrize("torn", ["", "12"])
def test_a_torn_pid_file_is_no_obstacle(postgres: EmbeddedPostgres, torn: str) -> None:
    with postgres:
        pass
    (postgres.data_dir / "postmaster.pid").write_text(torn)
    with postgres, psycopg.connect(postgres.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_half_made_data_directory_is_made_anew(postgres: EmbeddedPostgres) -> None:
    half = postgres.data_dir.with_name("pg.new")
    half.mkdir()
    (half / "PG_VERSION").write_text("18")
    with postgres, psycopg.connect(postgres.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_server_without_an_owner_is_ended_and_replaced(postgres: EmbeddedPostgres) -> None:
    """As after kill -9 of the owner, on a system that doesn't end its children."""
    with postgres:
        orphan = postgres.child
        assert orphan is not None
        postgres._child = None
        postgres._lock.release()
        with EmbeddedPostgres(postgres.data_dir, durable=False) as successor:
            assert successor.child is not None
            assert successor.child.pid != orphan.pid
            eventually(lambda: not alive(orphan.pid))
    orphan.process.wait()


def test_a_directory_in_use_names_its_owner(postgres: EmbeddedPostgres) -> None:
    with postgres, pytest.raises(EngineFailed, match=f"in use by process {os.getpid()}.*UPRIGHT_DATA_DIR"):
        EmbeddedPostgres(postgres.data_dir).start()


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pg").mkdir()
    (tmp_path / "pg" / "letter.txt").write_text("dear")
    with pytest.raises(EngineFailed, match="no PostgreSQL data directory"):
        EmbeddedPostgres(tmp_path / "pg").start()
    assert (tmp_path / "pg" / "letter.txt").read_text() == "dear"


def test_a_path_too_long_for_a_socket_works(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / ("long" * 30) / "pg", durable=False) as server:
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        sockets = server.socket_dir
    assert not sockets.exists()


def test_a_refused_parameter_is_told_from_the_log(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match=r"ended at start.*\n.*no_such_parameter"):
        EmbeddedPostgres(tmp_path / "pg", durable=False, settings={"no_such_parameter": "1"}).start()


def test_redis_needs_its_password_and_a_taken_port_is_told(tmp_path: Path) -> None:
    import redis

    with EmbeddedRedis(tmp_path / "redis") as server:
        with redis.Redis.from_url(server.url()) as client:
            assert client.set("key", "value")
        with redis.Redis(port=server.port) as stranger, pytest.raises(redis.exceptions.AuthenticationError):
            stranger.get("key")
        with pytest.raises(EngineFailed, match=f"127.0.0.1:{server.port}.*choose another port"):
            EmbeddedRedis(tmp_path / "other", port=server.port).start()


def test_engines_end_with_a_killed_owner(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from upright.adapters.engines import EmbeddedPostgres, EmbeddedRedis
postgres = EmbeddedPostgres(Path({str(tmp_path)!r}) / "pg", durable=False)
redis = EmbeddedRedis(Path({str(tmp_path)!r}) / "redis")
postgres.start(); redis.start()
print(postgres.child.pid, redis.child.pid, flush=True)
sys.stdin.read()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    owner = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner.stdin, owner.stdout:
        children = [int(part) for part in owner.stdout.readline().split()]
        everyone = [*children, *(one.pid for pid in children for one in psutil.Process(pid).children(recursive=True))]
        assert len(everyone) > 4
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        eventually(lambda: not any(alive(pid) for pid in everyone))
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server, psycopg.connect(server.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_child_that_ignores_the_signal_is_killed_with_its_own_children(tmp_path: Path) -> None:
    stubborn = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(inner.pid, flush=True)
time.sleep(600)
"""
    child = Child("stubborn", [sys.executable, "-c", stubborn], log=tmp_path / "log", grace_s=0.2)
    child.wait_ready(lambda: child.last_lines() != "", timeout_s=20)
    inner = int(child.last_lines())
    child.stop()
    assert not child.running
    eventually(lambda: not alive(inner))


def test_a_missing_program_is_told(tmp_path: Path) -> None:
    child = Child("ghost", [tmp_path / "no-such-program"], log=tmp_path / "log")
    with pytest.raises(EngineFailed, match=r"ghost: ended at start with status 127.*\n.*No such file"):
        child.wait_ready(lambda: False, timeout_s=20)
