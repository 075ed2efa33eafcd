"""Strategies that the application adds, as the guide's "Advanced features" print them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.checks import run_checks
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from error_logging import actuators, agent, desired_state
from error_logging.ai_error_recovery import AutoRecoveryExecutor, RecoveryStrategy
from error_logging.testing import ScriptedService, apply, directive

world: dict[str, Any] = {}
EXECUTOR = f"{__name__}.ShopExecutor"


class CustomStrategy(RecoveryStrategy):
    CUSTOM = "custom_strategy"
    HELD = "held_strategy"
    SLOW = "slow_strategy"
    WRONG = "wrong_strategy"


class ShopExecutor(AutoRecoveryExecutor):
    def _execute_custom_strategy(self, action: Any) -> dict[str, Any]:
        world.setdefault("actions", []).append(action)
        world["works"] = action["values"].get("repair", True)
        return {"success": True, "message": "Custom recovery"}

    def _execute_held_strategy(self, action: Any) -> dict[str, Any]:
        world["works"] = True
        return {"success": True, "before": {"mode": "old"}, "after": {"mode": "new"}}

    def _revert_held_strategy(self, action: Any) -> dict[str, Any]:
        world["works"] = False
        return {"success": True, "after": {"mode": "old"}}

    def _execute_slow_strategy(self, action: Any) -> dict[str, Any]:
        world["gate"].wait(30)
        return {"success": True}

    def _execute_wrong_strategy(self, action: Any) -> Any:
        if action["values"]["returns"] == "no connection":
            raise RuntimeError("no connection")
        return action["values"]["returns"]

    def _execute_pool_increase(self, action: Any) -> dict[str, Any]:
        world["seen"] = action["strategy"]
        return super()._execute_pool_increase(action)


def page(request: HttpRequest) -> HttpResponse:
    if not world.get("works"):
        raise RuntimeError("it is broken")
    return HttpResponse("fine")


urlpatterns = [path("page/", page)]


@pytest.fixture(autouse=True)
def shop(settings: Any) -> Iterator[None]:
    world.clear()
    world["gate"] = threading.Event()
    settings.UPRIGHT_EXECUTOR = EXECUTOR
    settings.ROOT_URLCONF = __name__
    yield
    world["gate"].set()


def order(strategy: str, scope: str = "once", **values: Any) -> dict[str, Any]:
    return {**directive(strategy, "", **values), "scope": scope}


def test_the_applications_own_strategy_repairs_and_a_replay_shows_it(service: ScriptedService, db: None) -> None:
    service.on_error(apply(order("custom_strategy", repair=True)))
    answer = Client().get("/page/").json()
    assert answer["recovery"]["success"]
    assert service.results[0].result["acknowledgements"][0]["reason"] == "Custom recovery"
    assert service.results[0].evidence["outcome"] == "passed"
    assert world["actions"][0]["strategy"] == "custom_strategy"


def test_that_it_acted_is_no_evidence_that_it_helped(service: ScriptedService, db: None) -> None:
    service.on_error(apply(order("custom_strategy", repair=False)))
    answer = Client().get("/page/").json()
    assert not answer["recovery"]["success"]
    assert service.results[0].result["acknowledgements"][0]["status"] == "applied"
    assert service.results[0].evidence["outcome"] == "failed"


def test_the_agent_announces_it(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> None:
    made = agent.Agent()
    try:
        told = service.wait_for("sync")[0].body["capabilities"]["strategies"]
    finally:
        made.stop()
        service.tell(desired=[])
    assert told["custom_strategy"] == {"targets": [""], "custom": True, "revertible": False}
    assert told["held_strategy"]["revertible"] is True


def test_what_can_be_taken_back_is() -> None:
    held = order("held_strategy", "process")
    told = desired_state.apply_one(held)
    assert (told["status"], told["before"], told["after"]) == ("applied", {"mode": "old"}, {"mode": "new"})
    (reverted,) = desired_state.apply_desired(2, [])
    assert (reverted["status"], reverted["after"], world["works"]) == ("reverted", {"mode": "old"}, False)


@pytest.mark.parametrize(
    ("returns", "why"),
    [
        ("no connection", "RuntimeError: no connection"),
        (None, "_execute_wrong_strategy returned None, not {'success': True or False, …}"),
        ([1], "returned [1], not"),
        ({"success": "yes"}, "returned {'success': 'yes'}, not"),
        ({"success": False, "message": "the carrier refused"}, "the carrier refused"),
        ({"success": False}, "_execute_wrong_strategy says that it did not succeed"),
    ],
)
def test_a_wrong_value_or_an_exception_is_a_failed_action(returns: Any, why: str) -> None:
    told = desired_state.apply_one(order("wrong_strategy", returns=returns))
    assert told["status"] == "failed"
    assert why in told["reason"]


def test_its_time_is_limited_and_it_is_not_begun_again_before_it_has_ended() -> None:
    told = desired_state.apply_one(order("slow_strategy"), time.monotonic() + 0.05)
    assert (told["status"], "and may go on" in told["reason"]) == ("failed", True)
    again = desired_state.apply_one(order("slow_strategy"), time.monotonic() + 0.05)
    assert again["reason"] == "an earlier slow_strategy has not ended yet"


def test_a_slow_strategy_holds_up_no_other_change() -> None:
    slow = threading.Thread(target=lambda: desired_state.apply_one(order("slow_strategy")))
    slow.start()
    assert desired_state.apply_one(order("held_strategy", "process"))["status"] == "applied"
    assert slow.is_alive()
    world["gate"].set()
    slow.join(10)


def test_a_waiter_without_time_does_not_wait_for_another_change() -> None:
    slow = order("slow_strategy", "process")
    busy = threading.Thread(target=lambda: desired_state.apply_one(slow))
    busy.start()
    while not any(thread.name == "upright-slow_strategy" for thread in threading.enumerate()):
        busy.join(0.01)
    told = desired_state.apply_one(order("held_strategy", "process"), time.monotonic() + 0.05)
    assert (told["status"], told["reason"]) == ("failed", "something else is still being applied in this process")
    world["gate"].set()
    busy.join(10)


def test_the_strategies_that_ship_go_the_same_way(db: None) -> None:
    told = actuators.acknowledgement(directive("pool_increase", max_size=5))
    assert (told["status"], told["after"]["max_size"], world["seen"]) == ("applied", 5, "pool_increase")
    assert actuators.acknowledgement(directive("pool_increase"), revert=True)["after"]["max_size"] == 4
    assert actuators.acknowledgement(directive("pool_increase", max_size=99))["status"] == "refused"


def test_what_nobody_declared_is_unsupported(settings: Any) -> None:
    assert actuators.acknowledgement(order("made_up"))["status"] == "unsupported"
    assert actuators.acknowledgement(order("init__"))["status"] == "unsupported"
    settings.UPRIGHT_EXECUTOR = None
    assert actuators.acknowledgement(order("custom_strategy"))["status"] == "unsupported"
    settings.UPRIGHT_EXECUTOR = EXECUTOR
    settings.UPRIGHT_ALLOWED_STRATEGIES = ["retry"]
    assert actuators.acknowledgement(order("custom_strategy"))["status"] == "refused"


class Careless(AutoRecoveryExecutor):
    def _execute_undeclared(self, action: Any) -> dict[str, Any]:
        return {"success": True}


@pytest.mark.parametrize(
    ("executor", "ids"),
    [
        (EXECUTOR, set()),
        ("shop.nowhere.Executor", {"upright.E007"}),
        (f"{__name__}.CustomStrategy", {"upright.E007"}),
        ("Executor", {"upright.E001"}),
        (f"{__name__}.Careless", {"upright.W006", "upright.W007"}),
    ],
)
def test_the_check_finds_what_can_not_work(settings: Any, executor: str, ids: set[str]) -> None:
    settings.UPRIGHT_EXECUTOR = executor
    found = {one.id for one in run_checks(tags=["upright"])}
    assert found & {"upright.E001", "upright.E007", "upright.W006", "upright.W007"} == ids
