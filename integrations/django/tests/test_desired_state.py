"""Desired state: what this process holds, for how long, and what of the service's lists it believes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from faults import until

from error_logging import actuators, desired_state
from error_logging.actuators.base import Change
from error_logging.ai_error_recovery import AutoRecoveryExecutor
from error_logging.testing import directive


class Lamp:
    """An actuator that does nothing but remember."""

    def __init__(self) -> None:
        self.now: dict[str, Any] = {}
        self.did: list[tuple[str, str, Any]] = []
        self.fails = False

    def apply(self, target: str, values: Mapping[str, Any]) -> Change:
        if self.fails:
            raise RuntimeError("the bulb is broken")
        before = self.now.get(target)
        self.now[target] = values["level"]
        self.did.append(("apply", target, values["level"]))
        return Change({"level": before}, {"level": values["level"]})

    def revert(self, target: str) -> Change:
        if self.fails:
            raise RuntimeError("the bulb is broken")
        before = self.now.pop(target, None)
        self.did.append(("revert", target, before))
        return Change({"level": before}, {"level": None})


@pytest.fixture(autouse=True)
def lamp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lamp]:
    desired_state.reset()
    made = Lamp()
    monkeypatch.setattr(actuators, "REGISTRY", {"lamp": made, "cache_clear": made})
    for kind in ("execute", "revert"):
        method = partial(actuators.carry_out, revert=kind == "revert")
        monkeypatch.setattr(AutoRecoveryExecutor, f"_{kind}_lamp", staticmethod(method), raising=False)
    yield made
    made.fails = False
    desired_state.reset()


def light(level: int = 1, target: str = "hall", *, version: int = 1, ttl_s: float = 60) -> dict[str, Any]:
    return directive("lamp", target, level=level, version=version, ttl_s=ttl_s)


def statuses(told: list[dict[str, Any]]) -> list[str]:
    return [one["status"] for one in told]


def test_the_list_is_complete_what_is_absent_ends(lamp: Lamp) -> None:
    hall, attic = light(1, "hall"), light(2, "attic")
    assert statuses(desired_state.apply_desired(1, [hall, attic])) == ["applied", "applied"]
    assert statuses(desired_state.apply_desired(2, [attic])) == ["reverted", "applied"]
    assert lamp.now == {"attic": 2}
    assert desired_state.held() == [attic]
    assert statuses(desired_state.apply_desired(3, [])) == ["reverted"]
    assert lamp.now == {}
    assert desired_state.version() == desired_state.complete_version() == 3


def test_the_same_version_is_not_applied_again(lamp: Lamp) -> None:
    one = light()
    first = desired_state.apply_desired(1, [one])
    assert desired_state.apply_desired(2, [one]) == first
    assert lamp.did == [("apply", "hall", 1)]


def test_a_newer_version_takes_the_others_place_without_a_gap(lamp: Lamp) -> None:
    desired_state.apply_desired(1, [light(1, version=1)])
    desired_state.apply_desired(2, [light(5, version=2)])
    assert lamp.did == [("apply", "hall", 1), ("apply", "hall", 5)]
    desired_state.apply_desired(3, [])
    assert lamp.now == {}


def test_a_list_that_is_older_than_a_command_does_not_end_what_the_command_began(lamp: Lamp) -> None:
    desired_state.apply_desired(4, [])
    assert desired_state.apply_one(light(version=5))["status"] == "applied"
    assert (desired_state.version(), desired_state.complete_version()) == (5, 4)
    assert desired_state.apply_desired(4, []) == []
    assert lamp.now == {"hall": 1}
    assert statuses(desired_state.apply_desired(6, [])) == ["reverted"]


def test_an_older_list_does_not_bring_back_an_older_level(lamp: Lamp) -> None:
    desired_state.apply_one(light(5, version=5))
    desired_state.apply_desired(4, [light(1, version=1)])
    assert lamp.now == {"hall": 5}


def test_what_failed_is_not_held_and_is_tried_again(lamp: Lamp) -> None:
    lamp.fails = True
    told = desired_state.apply_one(light())
    assert (told["status"], told["reason"]) == ("failed", "RuntimeError: the bulb is broken")
    assert desired_state.held() == []
    assert desired_state.version() == 0
    lamp.fails = False
    assert desired_state.apply_one(light())["status"] == "applied"


def test_unknown_ones_are_unsupported() -> None:
    told = desired_state.apply_one(directive("warp", level=9))
    assert (told["status"], told["reason"]) == ("unsupported", "this application has no warp")


@pytest.mark.parametrize("broken", [
    {}, {"strategy": "lamp"}, {"strategy": "lamp", "target": "hall", "values": None, "version": 1},
    {"strategy": "lamp", "target": "hall", "values": [], "ttl_s": 5},
])  # fmt: skip
def test_a_directive_of_the_wrong_shape_is_told_and_not_raised(broken: dict[str, Any]) -> None:
    assert desired_state.apply_one(broken)["status"] in ("failed", "unsupported")
    assert statuses(desired_state.apply_desired(9, [broken])) in (["failed"], ["unsupported"])


def test_it_expires_and_says_so(lamp: Lamp) -> None:
    desired_state.apply_one(light(ttl_s=0.05))
    until(lambda: not lamp.now)
    (told,) = desired_state.take_reverted()
    assert (told["status"], told["reason"], told["before"]) == ("reverted", "expired", {"level": 1})
    assert desired_state.take_reverted() == []
    assert desired_state.held() == []


def test_the_wall_clock_does_not_matter(lamp: Lamp, monkeypatch: pytest.MonkeyPatch) -> None:
    desired_state.apply_one(light(1, "hall", ttl_s=60))
    monkeypatch.setattr(time, "time", lambda: 4e9)
    desired_state.apply_one(light(1, "attic", ttl_s=0.05))
    until(lambda: "attic" not in lamp.now)
    assert lamp.now == {"hall": 1}


def test_a_shorter_one_expires_before_a_longer_that_came_first(lamp: Lamp) -> None:
    desired_state.apply_one(light(1, "hall", ttl_s=600))
    desired_state.apply_one(light(1, "attic", ttl_s=0.05))
    until(lambda: lamp.now == {"hall": 1})


def test_after_everything_has_expired_the_next_expires_too(lamp: Lamp) -> None:
    for number in range(3):
        desired_state.apply_one(light(number, ttl_s=0.02, version=number + 1))
        until(lambda: not lamp.now)


def test_hearing_of_it_again_does_not_make_it_last_longer(lamp: Lamp) -> None:
    one = light(ttl_s=0.1)
    desired_state.apply_one(one)
    desired_state.apply_desired(1, [{**one, "ttl_s": 600}])
    until(lambda: not lamp.now)


def test_a_revert_that_fails_is_told(lamp: Lamp, caplog: pytest.LogCaptureFixture) -> None:
    desired_state.apply_one(light(ttl_s=0.02))
    lamp.fails = True
    told: list[dict[str, Any]] = []
    until(lambda: told.extend(desired_state.take_reverted()) or told)
    assert told[0]["status"] == "failed"
    assert "the bulb is broken" in told[0]["reason"]


def once(**values: Any) -> dict[str, Any]:
    return directive("cache_clear", "hall", level=1, **values)


def test_what_is_to_be_done_once_is_done_once(lamp: Lamp) -> None:
    one, other = once(), once()
    first = desired_state.apply_one(one)
    assert desired_state.apply_desired(1, [one]) == [first]
    assert desired_state.apply_desired(2, []) == []
    desired_state.apply_one(one)
    desired_state.apply_one(other)
    assert [what for what, *_ in lamp.did] == ["apply", "apply"]


def test_many_one_time_directives_are_not_remembered_for_ever() -> None:
    for _ in range(desired_state.REMEMBERED + 50):
        desired_state.apply_one(once())
    assert len(desired_state._state.done) == desired_state.REMEMBERED


def test_threads_that_bring_the_same_directive_apply_it_once(lamp: Lamp) -> None:
    one = light()
    threads = [threading.Thread(target=desired_state.apply_one, args=(one,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lamp.did == [("apply", "hall", 1)]


def test_a_forked_child_has_what_its_parent_held_and_lets_it_expire(lamp: Lamp) -> None:
    desired_state.apply_one(light(ttl_s=2, version=7))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert lamp.now == {"hall": 1}
            assert desired_state.version() == 7
            until(lambda: not lamp.now)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_that_is_forked_while_a_directive_is_applied_is_not_stuck(
    lamp: Lamp, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go = threading.Event(), threading.Event()

    def slowly(target: str, values: Mapping[str, Any]) -> Change:
        inside.set()
        go.wait(20)
        return Change()

    monkeypatch.setattr(lamp, "apply", slowly)
    applying = threading.Thread(target=desired_state.apply_one, args=(light(),))
    applying.start()
    assert inside.wait(20)
    child = os.fork()
    if child == 0:
        go.set()
        desired_state.apply_one(light(2, "attic"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go.set()
    applying.join()


def test_a_change_that_is_for_more_processes_now_is_not_made_again(lamp: Lamp) -> None:
    first = light(3, version=1)
    desired_state.apply_desired(1, [{**first, "instances": ["this one"]}])
    [told] = desired_state.apply_desired(2, [{**first, "version": 2, "instances": None}])
    assert lamp.did == [("apply", "hall", 3)]
    assert (told["status"], told["version"], told["before"]) == ("applied", 2, {"level": None})
    [told] = desired_state.apply_desired(3, [])
    assert (told["status"], told["version"], lamp.did[-1]) == ("reverted", 2, ("revert", "hall", 3))


def test_a_change_that_is_for_more_processes_now_holds_no_longer_for_it(lamp: Lamp) -> None:
    first = light(3, version=1, ttl_s=0.05)
    desired_state.apply_desired(1, [first])
    desired_state.apply_desired(2, [{**first, "version": 2, "ttl_s": 60}])
    until(lambda: lamp.did[-1] == ("revert", "hall", 3))
