"""gunicorn, by signals to its master on the same host; the process table says what came of them.

A worker that can't load the application makes the master stop as a whole, also when it took the place of one that had
worked. So before any worker is replaced, the application is loaded once in a process of its own, as the master was
started; if that fails, nothing is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from upright.adapters.platforms.waiting import answers, until
from upright.domain.platform import GunicornReplica
from upright.errors import PlatformFailed
from upright.services.ports import Health, Process, ReplicaState

BETWEEN_SIGNALS_S = 0.05
"""Equal signals that wait for delivery merge into one."""
GRACE = 0.6
"""Share of the time that old workers get to end their requests; then they are killed."""
STEADY_S = 0.3
"""A number of workers that still changes within this time is not yet reached."""
KILL_S = 10.0


class Gunicorn:
    def __init__(self, replica: GunicornReplica, health: Health | None) -> None:
        self._replica = replica
        self._health = health

    @property
    def name(self) -> str:
        return self._replica.name

    @property
    def health(self) -> Health | None:
        return self._health

    async def state(self) -> ReplicaState:
        try:
            master = self._master()
            workers = _workers(master)
            incarnation = f"{master.pid}:{master.create_time()}"
        except PlatformFailed as error:
            return ReplicaState(self.name, problem=str(error))
        except psutil.Error as error:
            return ReplicaState(self.name, problem=f"gunicorn's processes can't be read: {error}")
        return ReplicaState(
            self.name,
            tuple(process for one in workers if (process := _process(one)) is not None),
            incarnation,
            psutil.virtual_memory().available,
        )

    async def scale(self, processes: int, *, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        master = self._master()

        async def reached() -> bool:
            return len(_workers(master)) == processes

        while True:
            workers = _workers(master)
            difference = processes - len(workers)
            for _ in range(abs(difference)):
                _signal(master, signal.SIGTTIN if difference > 0 else signal.SIGTTOU)
                await asyncio.sleep(BETWEEN_SIGNALS_S)
            if processes and difference < 0:
                # gunicorn tells the oldest to go. Were another told because they still end their requests, too few
                # would be left.
                await self._outlive(master, workers[:-difference], deadline - (1 - GRACE) * timeout_s)
            if not await until(reached, deadline):
                _present(master)
                count = len(_workers(master))
                raise PlatformFailed(f"gunicorn has {count} workers after {timeout_s:g} s, {processes} were asked for")
            await asyncio.sleep(STEADY_S)
            _present(master)
            if await reached():
                return

    async def restart(self, *, graceful: bool, timeout_s: float, health_check: bool) -> None:
        began = time.monotonic()
        deadline = began + timeout_s
        master = self._master()
        await self._check(master, deadline)
        old = _workers(master)
        known = {one.pid for one in old}
        _signal(master, signal.SIGHUP)

        async def renewed() -> bool:
            _present(master)
            return any(one.pid not in known for one in _workers(master))

        if not await until(renewed, deadline):
            raise PlatformFailed(f"gunicorn started no new worker within {timeout_s:g} s of SIGHUP")
        await self._outlive(master, old, began + (timeout_s * GRACE if graceful else 0))
        # SIGHUP goes back to the number of the configuration; those that were added are to be there again.
        if old and len(_workers(master)) != len(old):
            await self.scale(len(old), timeout_s=max(1.0, deadline - time.monotonic()))
        await self._back(master, deadline, health_check=health_check)

    async def recycle(self, pids: Sequence[int], *, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        master = self._master()
        await self._check(master, deadline)
        for index, pid in enumerate(pids):
            workers = _workers(master)
            chosen = [one for one in workers if one.pid == pid]
            if not chosen:
                continue  # it has gone by itself
            count, share_s = len(workers), (deadline - time.monotonic()) / (len(pids) - index)
            with contextlib.suppress(psutil.NoSuchProcess):
                chosen[0].terminate()
            await self._outlive(master, chosen, time.monotonic() + share_s * GRACE)

            async def replaced(count: int = count) -> bool:
                _present(master)
                return len(_workers(master)) >= count

            if not await until(replaced, time.monotonic() + share_s):
                raise PlatformFailed(f"nothing took the place of worker {pid}")
            await self._back(master, time.monotonic() + share_s, health_check=True)

    async def _back(self, master: psutil.Process, deadline: float, *, health_check: bool) -> None:
        async def alive() -> bool:
            _present(master)
            return True

        await answers(self._health if health_check else None, deadline, alive)
        _present(master)

    async def _outlive(self, master: psutil.Process, old: Sequence[psutil.Process], grace: float) -> None:
        """Until these are gone: by themselves up to `grace`, then killed. One that is stopped ends nothing any more,
        and hears no signal but that."""
        left = list(old)

        async def gone() -> bool:
            nonlocal left
            _present(master)
            left = [one for one in left if _lives(one)]
            for one in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if time.monotonic() >= grace or one.status() == psutil.STATUS_STOPPED:
                        one.kill()
            return not left

        if not await until(gone, max(grace, time.monotonic()) + KILL_S):
            raise PlatformFailed(f"workers {', '.join(str(one.pid) for one in left)} can't be killed")

    def _master(self) -> psutil.Process:
        pid, where = self._replica.pid, "`pid`"
        if self._replica.pidfile is not None:
            where = self._replica.pidfile
            try:
                pid = int(Path(where).read_text("ascii").strip())
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it holds no number"
                raise PlatformFailed(f"gunicorn does not run: pidfile {where}: {reason}") from error
        try:
            master = psutil.Process(pid)
            if master.status() == psutil.STATUS_ZOMBIE or not _is_gunicorn(master):
                raise PlatformFailed(f"gunicorn does not run: process {pid} of {where} is another program")
        except psutil.NoSuchProcess as error:
            raise PlatformFailed(f"gunicorn does not run: there is no process {pid}, which {where} names") from error
        except psutil.AccessDenied as error:
            raise PlatformFailed(f"process {pid} of {where} belongs to another user") from error
        return master

    async def _check(self, master: psutil.Process, deadline: float) -> None:
        """Load the application in a process of its own. Raises PlatformFailed with what it says."""
        if self._replica.check_command is False:
            return
        try:
            command = self._replica.check_command or _check_command(master)
            given: dict[str, Any] = {"cwd": master.cwd(), "env": master.environ(), **_as_user(master)}
        except psutil.Error as error:
            raise PlatformFailed(
                f"nothing was touched: how gunicorn was started can't be read ({error}); set check_command, or let "
                "Upright run as the same user"
            ) from error
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                **given,
            )
        except OSError as error:
            raise PlatformFailed(f"nothing was touched: {command[0]} can't be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(max(1.0, deadline - time.monotonic())):
                said, _ = await process.communicate()
        except TimeoutError:
            raise PlatformFailed("nothing was touched: the application did not load in time") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            lines = said.decode("utf-8", "replace").strip().splitlines()
            reason = lines[-1].strip() if lines else f"exit status {process.returncode}"
            raise PlatformFailed(f"nothing was touched: the application does not load: {reason[:500]}")


def _is_gunicorn(process: psutil.Process) -> bool:
    """So that a pidfile left behind doesn't send signals to a stranger."""
    return any("gunicorn" in part for part in process.cmdline()[:3]) or "gunicorn" in process.name()


def _workers(master: psutil.Process) -> list[psutil.Process]:
    """Live workers, the oldest first. Other children, such as a multiprocessing tracker, have another command line."""
    found: list[psutil.Process] = []
    try:
        own = master.cmdline()
        for one in master.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                cmdline = one.cmdline()
                alike = cmdline == own or (cmdline and cmdline[0].startswith("gunicorn: worker"))
                if alike and one.status() != psutil.STATUS_ZOMBIE and not _is_master(one):
                    found.append(one)
    except psutil.NoSuchProcess:
        return []
    return sorted(found, key=_age)


def _age(process: psutil.Process) -> tuple[float, int]:
    return process.create_time(), process.pid


def _is_master(child: psutil.Process) -> bool:
    """A master that was started beside the old one (SIGUSR2) is its child."""
    with contextlib.suppress(psutil.Error):
        return child.environ().get("GUNICORN_PID") == str(child.ppid())
    return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _process(process: psutil.Process) -> Process | None:
    try:
        return Process(process.pid, process.create_time(), process.memory_info().rss)
    except psutil.NoSuchProcess:
        return None


def _present(master: psutil.Process) -> None:
    if not _lives(master):
        raise PlatformFailed("gunicorn has stopped: its new workers could not start. Its log says why")


def _signal(master: psutil.Process, number: signal.Signals) -> None:
    try:
        master.send_signal(number)
    except psutil.NoSuchProcess as error:
        raise PlatformFailed("gunicorn has stopped") from error
    except psutil.AccessDenied as error:
        raise PlatformFailed(f"gunicorn's master {master.pid} belongs to another user") from error


def _check_command(master: psutil.Process) -> list[str]:
    command = master.cmdline()
    if command and command[0].startswith("gunicorn: "):
        raise PlatformFailed(
            "nothing was touched: setproctitle hides how gunicorn was started, so the application can't be loaded for "
            "a check; set check_command"
        )
    return [*command, "--check-config"]


def _as_user(master: psutil.Process) -> dict[str, Any]:
    user, group = master.uids().effective, master.gids().effective
    if os.geteuid() == 0 and user != 0:
        return {"user": user, "group": group, "extra_groups": []}
    return {}
