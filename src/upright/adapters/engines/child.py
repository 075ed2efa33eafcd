"""A child process that is supervised, logged, stopped for certain, and never outlives us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from upright.errors import EngineFailed

_LAUNCHER = Path(__file__).with_name("_launch.py")
_POLL_S = 0.03


class Child:
    """Start it from a thread that lives as long as the child should: the kernel's parent-death signal is tied to the
    thread."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_s: float = 10,
        user: tuple[int, int] | None = None,
        stdin: str | None = None,
    ) -> None:
        """`env` is the whole environment (default: ours); `user` is (uid, gid) to run as; `stdin` is written to the
        child and closed. Its output is appended to `log`."""
        self.name = name
        self.log = log
        self.stop_signal = stop_signal
        self.grace_s = grace_s
        uid, gid = user or (-1, -1)
        log.parent.mkdir(parents=True, exist_ok=True)
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(int(stop_signal)), str(uid)]
        with log.open("ab") as output:
            self._log_start = output.tell()
            # Its own session: Ctrl-C is ours to handle, and the whole group can be ended.
            self.process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - our own command
                [*launcher, str(gid), *(str(part) for part in command)],
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        if stdin is not None:
            _write(self.process.stdin, stdin)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def last_lines(self, count: int = 12) -> str:
        """The end of what it has written since this start."""
        with self.log.open("rb") as output:
            output.seek(self._log_start)
            lines = output.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-count:])

    def failure(self, what: str) -> EngineFailed:
        return EngineFailed(f"{self.name}: {what}. Its log, {self.log}, ends with:\n{self.last_lines()}")

    def wait_ready(self, ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Ask `ready` until it says yes. Raises EngineFailed when the child ends or the time is up; the child is
        stopped then."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                raise self.failure(f"ended at start with {describe_exit(self.process.returncode)}")
            if time.monotonic() > deadline:
                self.stop()
                raise self.failure(f"was not ready within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Ask it to end, wait, then end whatever is left of its process group."""
        if self.running:
            self.process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.grace_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


def describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"status {code}"


def _write(pipe: IO[bytes] | None, text: str) -> None:
    if pipe is None:
        return
    try:
        with pipe:
            pipe.write(text.encode())
    except BrokenPipeError:
        pass  # it ended already; whoever waits for it says so
