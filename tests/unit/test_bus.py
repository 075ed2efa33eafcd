"""The bus without a database: waking within this process."""

from __future__ import annotations

import asyncio
import threading

import pytest

from upright.adapters.bus import Bus


@pytest.fixture
async def bus() -> Bus:
    one = Bus(reconcile_s=30)
    await one.open()
    return one


async def test_news_wakes_those_who_wait_for_it(bus: Bus) -> None:
    with bus.subscribe("a") as one, bus.subscribe("a", "b") as two, bus.subscribe("c") as three:
        bus.wake("a")
        assert await one.wait(10)
        assert await two.wait(10)
        assert not await three.wait(0.01)
        bus.wake("b")
        assert await two.wait(10)


async def test_news_before_the_wait_is_not_missed(bus: Bus) -> None:
    with bus.subscribe("a") as one:
        bus.wake("a")
        bus.wake("a")
        assert await one.wait(10)
        assert not await one.wait(0.01)


async def test_it_is_looked_at_again_without_news() -> None:
    bus = Bus(reconcile_s=0.01)
    with bus.subscribe("a") as one:
        assert not await one.wait(60)


async def test_nothing_stays_behind(bus: Bus) -> None:
    with bus.subscribe("a") as one:
        one.add("b")
    assert bus._waiting == {}
    bus.wake("a")


async def test_a_wake_up_from_another_thread(bus: Bus) -> None:
    with bus.subscribe("a") as one:
        thread = threading.Thread(target=bus.wake, args=["a"])
        thread.start()
        assert await one.wait(10)
        thread.join()


async def test_draining_lets_everyone_go(bus: Bus) -> None:
    with bus.subscribe("a") as one, bus.subscribe("b") as two:
        waits = asyncio.gather(one.wait(30), two.wait(30))
        await asyncio.sleep(0)
        bus.drain()
        assert await waits == [True, True]
        assert bus.closing
