"""supervisor, by its XML-RPC: a pool is a process group, of which some members run.

The group's members are what its configuration says (`numprocs`); scaling starts or stops members of it. A restart takes
one member after the other, and stops at the first that does not come back: the others keep running as they are.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import os
import socket
import time
import xmlrpc.client
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import psutil

from upright.adapters.platforms.waiting import answers, until
from upright.domain.platform import SupervisorReplica
from upright.errors import PlatformFailed
from upright.services.ports import Health, Process, ReplicaState

CALL_S = 3.0
KILL_S = 10.0
GRACE = 0.6
"""Share of the time that a member gets to stop by itself; then it is killed."""
_DOWN = ("STOPPED", "EXITED", "FATAL", "UNKNOWN")
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


class Supervisor:
    def __init__(self, replica: SupervisorReplica, health: Health | None) -> None:
        self._replica = replica
        self._health = health
        self._url = replica.url or ""
        self._local = self._url.startswith("unix:") or urlsplit(self._url).hostname in _LOCAL_HOSTS

    @property
    def name(self) -> str:
        return self._replica.name

    @property
    def health(self) -> Health | None:
        return self._health

    async def state(self) -> ReplicaState:
        try:
            pid = await self._call("getPID")
            members = await self._members()
        except PlatformFailed as error:
            return ReplicaState(self.name, problem=str(error))
        return ReplicaState(
            self.name,
            tuple(self._process(one) for one in members if one["statename"] == "RUNNING"),
            # The members are supervisor's children: what it started is gone when it is.
            f"{pid}",
            psutil.virtual_memory().available if self._local else None,
        )

    async def scale(self, processes: int, *, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        members = await self._members()
        if processes > len(members):
            raise PlatformFailed(
                f"group {self._replica.group} has {len(members)} members; its numprocs says how many there may be"
            )
        running = [one for one in members if one["statename"] in ("RUNNING", "STARTING")]
        idle = [one for one in members if one["statename"] in _DOWN]
        for one in idle[: max(0, processes - len(running))]:
            await self._start(one, deadline)
        # The last first, so that those that were there at the start stay.
        for one in reversed(running[processes:]):
            await self._stop(one, deadline, grace=deadline)
        count = len((await self.state()).processes)
        if count != processes:
            raise PlatformFailed(f"{count} members run, {processes} were asked for")

    async def restart(self, *, graceful: bool, timeout_s: float, health_check: bool) -> None:
        # One that somebody has stopped stays so.
        members = [one for one in await self._members() if one["statename"] != "STOPPED"]
        if not members:
            raise PlatformFailed(f"every member of group {self._replica.group} has been stopped by hand")
        # Those that are down already, first: nothing is lost by starting them.
        members.sort(key=lambda one: one["statename"] == "RUNNING")
        deadline = time.monotonic() + timeout_s
        for index, one in enumerate(members):
            share_s = (deadline - time.monotonic()) / (len(members) - index)
            # They may share one address: while some hang, it may fail until the last of them is new.
            due = health_check and (index == len(members) - 1 or await self._healthy())
            await self._replace(one, share_s, graceful=graceful, health_check=due)

    async def _healthy(self) -> bool:
        return self._health is not None and (await self._health.look()).outcome == "passed"

    async def recycle(self, pids: Sequence[int], *, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        members = {int(one["pid"]): one for one in await self._members() if one["statename"] == "RUNNING"}
        for index, pid in enumerate(pids):
            if pid in members:
                share_s = (deadline - time.monotonic()) / (len(pids) - index)
                await self._replace(members[pid], share_s, graceful=True, health_check=True)

    async def _replace(self, member: Mapping[str, Any], share_s: float, *, graceful: bool, health_check: bool) -> None:
        began = time.monotonic()
        deadline = began + share_s
        await self._stop(member, deadline, grace=began + share_s * GRACE if graceful else began)
        await self._start(member, max(deadline, time.monotonic() + 1))

        async def alive() -> bool:
            return (await self._member(member))["statename"] == "RUNNING"

        await answers(self._health if health_check else None, deadline, alive)

    async def _start(self, member: Mapping[str, Any], deadline: float) -> None:
        with contextlib.suppress(_Fault):
            await self._call("startProcess", _full_name(member), False)
        seen: dict[str, Any] = {}

        async def settled() -> bool:
            nonlocal seen
            seen = await self._member(member)
            return seen["statename"] in ("RUNNING", "FATAL", "EXITED", "BACKOFF")

        await until(settled, deadline)
        if seen["statename"] != "RUNNING":
            said = str(seen["spawnerr"] or seen["description"])
            if not said or said.startswith("Exited"):
                said = await self._last_words(member) or said
            raise PlatformFailed(f"{_full_name(member)} did not come back ({seen['statename']}): {said}")

    async def _stop(self, member: Mapping[str, Any], deadline: float, *, grace: float) -> None:
        name, pid = _full_name(member), int(member["pid"])
        with contextlib.suppress(_Fault):  # it may have ended by itself
            await self._call("stopProcess", name, False)

        async def stopped() -> bool:
            if (await self._member(member))["statename"] in _DOWN:
                return True
            if time.monotonic() >= grace or (self._local and _is_stopped(pid)):
                with contextlib.suppress(_Fault):
                    await self._call("signalProcess", name, "KILL")
            return False

        if not await until(stopped, max(deadline, time.monotonic()) + KILL_S):
            raise PlatformFailed(f"{name} can't be stopped")

    async def _last_words(self, member: Mapping[str, Any]) -> str:
        """The last line of its error log, or of its log where both go to one."""
        for method in ("readProcessStderrLog", "readProcessStdoutLog"):
            with contextlib.suppress(PlatformFailed):
                text = str(await self._call(method, _full_name(member), -2000, 0)).strip()
                if text:
                    return text.splitlines()[-1][:500]
        return ""

    async def _members(self) -> list[dict[str, Any]]:
        found = [one for one in await self._call("getAllProcessInfo") if one["group"] == self._replica.group]
        if not found:
            raise PlatformFailed(f"supervisor has no process group {self._replica.group!r}")
        return sorted(found, key=lambda one: one["name"])

    async def _member(self, member: Mapping[str, Any]) -> dict[str, Any]:
        return await self._call("getProcessInfo", _full_name(member))

    def _process(self, member: Mapping[str, Any]) -> Process:
        pid, memory, started = int(member["pid"]), None, float(member["start"])
        if self._local:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                started = process.create_time()
                memory = sum(_resident(one) for one in (process, *process.children(recursive=True)))
        return Process(pid, started, memory)

    async def _call(self, method: str, *arguments: object) -> Any:
        return await asyncio.to_thread(self._call_now, method, arguments)

    def _call_now(self, method: str, arguments: tuple[object, ...]) -> Any:
        variable = self._replica.password_env
        password = os.environ.get(variable) if variable else None
        if variable and password is None:
            raise PlatformFailed(f"{variable}, which holds supervisor's password, is not set")
        transport = _Transport(self._url, self._replica.user, password)
        address = self._url if self._url.startswith("http") else "http://supervisor"
        try:
            with xmlrpc.client.ServerProxy(address.rstrip("/") + "/RPC2", transport=transport) as server:
                return getattr(server.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as error:
            raise _Fault(f"supervisor: {error.faultString}") from error
        except xmlrpc.client.ProtocolError as error:
            what = "user or password is wrong" if error.errcode == 401 else f"{error.errcode} {error.errmsg}"
            raise PlatformFailed(f"supervisor at {self._url}: {what}") from error
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise PlatformFailed(f"supervisor at {self._url} does not answer: {reason}") from error


class _Fault(PlatformFailed):
    """supervisor refused the call."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CALL_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    """Over a UNIX socket or TCP, never waiting for ever, as supervisor's own would."""

    def __init__(self, url: str, user: str | None, password: str | None) -> None:
        headers: list[tuple[str, str]] = []
        if user:
            token = base64.b64encode(f"{user}:{password or ''}".encode()).decode()
            headers.append(("Authorization", f"Basic {token}"))
        super().__init__(headers=headers)
        self._url = url

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        parts = urlsplit(self._url)
        if parts.scheme == "unix":
            made = _UnixConnection(parts.path)
        else:
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            made = kind(parts.hostname or "", parts.port, timeout=CALL_S)
        self._connection = host, made  # what close() closes
        return made


def _full_name(member: Mapping[str, Any]) -> str:
    return f"{member['group']}:{member['name']}"


def _is_stopped(pid: int) -> bool:
    """By SIGSTOP: it will not hear that it is to end."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return False


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss
    return 0
