"""The gunicorn adapter on a real gunicorn; what it did is read from the process table."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from upright.errors import PlatformFailed

from .conftest import Shop, fetch, until


async def test_workers_are_added_and_taken_away(shop: Shop) -> None:
    platform = shop.platform()
    at_first = shop.workers()
    await platform.scale(4, timeout_s=20)
    assert len(shop.workers()) == 4
    state = await platform.state()
    assert sorted(one.pid for one in state.processes) == shop.workers()
    assert all(one.memory_bytes for one in state.processes)
    await platform.scale(2, timeout_s=20)
    assert len(shop.workers()) == 2
    assert set(at_first) != set(shop.workers())
    assert shop.answers()


async def test_a_number_that_is_not_reached_is_told(shop: Shop) -> None:
    with pytest.raises(PlatformFailed, match=r"1 workers after .* 0 were asked for"):
        await shop.platform().scale(0, timeout_s=1)


async def test_a_worker_that_never_ends_its_request_does_not_cost_another_one(
    shop: Shop, busy: list[socket.socket]
) -> None:
    platform = shop.platform()
    await platform.scale(3, timeout_s=20)
    await platform.scale(2, timeout_s=3)
    assert len(shop.workers()) == 2
    await platform.restart(graceful=True, timeout_s=4, health_check=True)
    assert len(shop.workers()) == 2


async def test_a_restart_replaces_every_worker(shop: Shop) -> None:
    old = shop.workers()
    await shop.platform().restart(graceful=True, timeout_s=30, health_check=True)
    assert not set(old) & set(shop.workers())
    assert len(shop.workers()) == 2
    assert shop.answers()


async def test_a_restart_keeps_the_workers_that_were_added(shop: Shop) -> None:
    await shop.platform().scale(3, timeout_s=20)
    old = shop.workers()
    await shop.platform().restart(graceful=True, timeout_s=30, health_check=True)
    assert len(shop.workers()) == 3
    assert not set(old) & set(shop.workers())


async def test_hung_workers_are_replaced(shop: Shop) -> None:
    old = shop.workers()
    shop.hang(*old)
    assert (await shop.platform().health.look()).outcome == "failed"
    await shop.platform().restart(graceful=True, timeout_s=30, health_check=True)
    assert not [pid for pid in old if psutil.pid_exists(pid)]
    assert shop.answers()


async def test_a_deploy_that_does_not_load_is_told_and_the_old_workers_stay(shop: Shop) -> None:
    old = shop.workers()
    shop.break_deploy()
    with pytest.raises(PlatformFailed, match=r"the application does not load: .*No module named 'basket'"):
        await shop.platform().restart(graceful=True, timeout_s=30, health_check=True)
    assert shop.workers() == old
    assert shop.answers()


async def test_a_deploy_that_only_fails_in_its_worker_is_no_success(shop: Shop) -> None:
    shop.break_deploy()
    with pytest.raises(PlatformFailed, match="gunicorn has stopped"):
        await shop.platform(check_command=False).restart(graceful=True, timeout_s=30, health_check=True)


async def test_a_deploy_that_loads_but_answers_with_errors_is_no_success(shop: Shop) -> None:
    (shop.directory / "sick").touch()
    with pytest.raises(PlatformFailed, match="the health address fails: status 503"):
        await shop.platform().restart(graceful=True, timeout_s=4, health_check=True)


async def test_the_check_may_be_a_command_of_ones_own(shop: Shop) -> None:
    old = shop.workers()
    command = [sys.executable, "-c", "raise SystemExit('the migrations are missing')"]
    with pytest.raises(PlatformFailed, match="does not load: the migrations are missing"):
        await shop.platform(check_command=command).restart(graceful=True, timeout_s=30, health_check=True)
    assert shop.workers() == old


async def test_the_workers_that_grew_are_replaced_and_no_others(shop: Shop) -> None:
    pids = shop.workers()
    grown = int(fetch(shop.port, "/grow")[1])
    before = {one.pid: one.memory_bytes for one in (await shop.platform().state()).processes}
    await shop.platform().recycle([grown], timeout_s=30)
    after = shop.workers()
    assert set(pids) - set(after) == {grown}
    assert len(after) == 2
    largest = max(one.memory_bytes or 0 for one in (await shop.platform().state()).processes)
    assert largest < (before[grown] or 0) - 50_000_000


async def test_nothing_is_recycled_for_a_deploy_that_does_not_load(shop: Shop) -> None:
    pids = shop.workers()
    shop.break_deploy()
    with pytest.raises(PlatformFailed, match="does not load"):
        await shop.platform().recycle(pids, timeout_s=30)
    assert shop.workers() == pids


async def test_a_pidfile_left_behind_sends_no_signal_to_a_stranger(shop: Shop) -> None:
    shop.pidfile.write_text(str(os.getppid()))
    with pytest.raises(PlatformFailed, match="is another program"):
        await shop.platform().restart(graceful=True, timeout_s=5, health_check=True)
    assert "another program" in (await shop.platform().state()).problem


@pytest.mark.parametrize("text", ["", "x", "4194000"])
async def test_a_master_that_is_not_there_is_told(shop: Shop, text: str) -> None:
    shop.pidfile.write_text(text)
    assert "gunicorn does not run" in (await shop.platform().state()).problem


async def test_a_killed_master_is_told(shop: Shop) -> None:
    os.kill(shop.process.pid, signal.SIGKILL)
    shop.process.wait()
    assert "gunicorn does not run" in (await shop.platform().state()).problem


async def test_a_preloaded_application_is_restarted_too(start: Callable[..., Shop]) -> None:
    shop: Any = start("preloaded", 2, "--preload")
    old = shop.workers()
    await shop.platform().restart(graceful=False, timeout_s=30, health_check=True)
    until(shop.answers)
    assert not set(old) & set(shop.workers())
