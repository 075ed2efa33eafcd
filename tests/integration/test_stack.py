"""The stack as a user runs it: it comes up, says what is in its way, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from upright.adapters.engines import Child
from upright.adapters.stack import ChildPart, Ports, Stack, State, TaskPart, build
from upright.errors import ConfigurationError, EngineFailed

ROOT = Path(__file__).resolve().parents[2]


def eventually(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def environment(**more: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("UPRIGHT_", "PREFECT_"))}
    return inherited | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "COLUMNS": "200"} | more


def sleeper(tmp_path: Path, program: str) -> Callable[[], Child]:
    return lambda: Child("part", [sys.executable, "-c", program], log=tmp_path / "part.log", grace_s=2)


def test_parts_start_in_the_order_of_their_needs_and_stop_in_reverse(tmp_path: Path) -> None:
    seen: list[tuple[str, State]] = []
    forever = sleeper(tmp_path, "import time; time.sleep(600)")
    parts = [
        ChildPart("last", forever, lambda: True, after=("task", "first")),
        TaskPart("task", sleeper(tmp_path, "print('done')"), after=("first",)),
        ChildPart("first", forever, lambda: True),
    ]
    stack = Stack(parts, lambda part, state, seconds: seen.append((part.name, state)))
    stack.start()
    up = [name for name, state in seen if state is State.UP]
    assert up == ["first", "task", "last"]
    stack.stop()
    assert [name for name, state in seen if state is State.STOPPED] == ["first", "task", "last"]
    assert not any(part.child and part.child.running for part in parts)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (ChildPart, r"ended at start with status 3.*\n.*out of luck"),
        (TaskPart, r"failed with status 3.*\n.*out of luck"),
    ],
)
def test_a_part_that_dies_at_start_is_told_with_its_log(
    tmp_path: Path, part: type[ChildPart] | type[TaskPart], told: str
) -> None:
    other = ChildPart("other", sleeper(tmp_path, "import time; time.sleep(600)"), lambda: True)
    spawn = sleeper(tmp_path, "import sys; print('out of luck'); sys.exit(3)")
    arguments = [lambda: False] if part is ChildPart else []
    with pytest.raises(EngineFailed, match=told):
        Stack([other, part("dying", spawn, *arguments, after=("other",))]).start()
    assert other.child is not None
    assert not other.child.running


def test_a_part_that_ends_later_is_told(tmp_path: Path) -> None:
    part = ChildPart("part", sleeper(tmp_path, "import time; time.sleep(600)"), lambda: True)
    stack = Stack([part])
    stack.start()
    assert part.child is not None
    part.child.process.kill()
    with pytest.raises(EngineFailed, match="ended with signal SIGKILL"):
        stack.watch(until=lambda: False)
    stack.stop()


def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineFailed, match=rf"127.0.0.1:{port}.*--prefect-port N \(0 takes a free one\)"):
            build(tmp_path, ROOT, ports=Ports(service=0, prefect=port))
    assert not (tmp_path / "postgres").exists()


def test_a_directory_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    with pytest.raises(ConfigurationError, match=r"Can't write to .*UPRIGHT_DATA_DIR"):
        build(in_the_way / "data", ROOT, ports=Ports.any())


def test_the_secret_stays_the_same_and_is_private(tmp_path: Path) -> None:
    first = build(tmp_path, ROOT, ports=Ports.any()).secret
    assert build(tmp_path, ROOT, ports=Ports.any()).secret == first
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def up(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "upright.cli", "up", "--no-shop", "--port", "0", "--prefect-port", "0"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=ROOT,
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def descendants(process: subprocess.Popen[str]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def test_up_serves_until_it_is_asked_to_end_and_leaves_nothing_behind(
    tmp_path: Path, up: subprocess.Popen[str]
) -> None:
    running = tmp_path / "data" / "stack.json"
    eventually(lambda: running.exists() or up.poll() is not None)
    addresses = json.loads(running.read_text())
    service = addresses["service_url"]
    with urllib.request.urlopen(f"{service}/readyz") as answer:  # noqa: S310 - our own
        assert answer.status == 200

    second = subprocess.run(
        [sys.executable, "-m", "upright.cli", "up", "--no-shop", "--port", "0", "--prefect-port", "0"],
        env=environment(UPRIGHT_DATA_DIR=str(tmp_path / "data")),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert second.returncode == 1
    assert f"in use by process {up.pid}" in " ".join(second.stderr.split())

    listed = subprocess.run(
        [sys.executable, "-m", "upright.cli", "errors", "list", "--json"],
        env=environment(UPRIGHT_DATA_DIR=str(tmp_path / "data")),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert json.loads(listed.stdout) == []

    children = descendants(up)
    assert len(children) > 5
    up.send_signal(signal.SIGTERM)
    output, _ = up.communicate(timeout=60)
    assert up.returncode == 0, output
    assert "Stopped." in output
    assert not any(alive(pid) for pid in children)
    assert not running.exists()


def test_up_that_is_killed_takes_everything_with_it(tmp_path: Path, up: subprocess.Popen[str]) -> None:
    running = tmp_path / "data" / "stack.json"
    eventually(lambda: running.exists() or up.poll() is not None)
    children = descendants(up)
    assert len(children) > 5
    up.kill()
    eventually(lambda: not any(alive(pid) for pid in children))


def test_up_that_is_interrupted_while_it_starts_leaves_nothing_behind(
    tmp_path: Path, up: subprocess.Popen[str]
) -> None:
    eventually(lambda: (tmp_path / "data" / "prefect.log").exists())
    children = descendants(up)
    up.send_signal(signal.SIGINT)
    output, _ = up.communicate(timeout=60)
    assert up.returncode == 0, output
    assert children
    assert not any(alive(pid) for pid in children)
