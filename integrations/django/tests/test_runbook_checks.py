"""Checks that a runbook asks of the application: on its real database, read only, and only where it is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import override_settings

from error_logging import agent, probes, process, runbook_checks
from error_logging.testing import ScriptedService

pytestmark = pytest.mark.django_db(transaction=True)


def sql(query: str, expected: Any = True, **changes: Any) -> dict[str, Any]:
    return {"kind": "sql", "database": "default", "query": query, "expected": expected, "timeout_s": 5, **changes}


def shown(check: dict[str, Any]) -> tuple[str, str]:
    evidence = runbook_checks.carry_out(check)
    return evidence["outcome"], evidence["detail"]


@pytest.fixture
def allowed() -> Iterator[None]:
    with override_settings(UPRIGHT_SQL_CHECKS=["default"]):
        yield


@pytest.mark.usefixtures("allowed")
def test_a_query_is_compared_with_what_is_expected() -> None:
    User.objects.create(username="one")
    assert shown(sql("SELECT count(*) < 100 FROM auth_user")) == ("passed", "it is as expected")
    assert shown(sql("SELECT count(*) FROM auth_user", 1))[0] == "passed"
    assert shown(sql("SELECT count(*) FROM auth_user", 2)) == ("failed", "it is not as expected")
    assert shown(sql("SELECT username FROM auth_user", "one"))[0] == "passed"
    assert shown(sql("SELECT 1 FROM auth_user WHERE username LIKE 'x%'", 1)) == ("failed", "the query found no row")


@pytest.mark.usefixtures("allowed")
def test_what_would_change_something_does_not() -> None:
    User.objects.create(username="one")
    outcome, detail = shown(sql("WITH gone AS (DELETE FROM auth_user RETURNING 1) SELECT count(*) > 0 FROM gone"))
    assert (outcome, detail) == ("inconclusive", "the query is not accepted: InternalError")
    for query in ("DELETE FROM auth_user", "SELECT 1; DELETE FROM auth_user", "", "COPY auth_user TO PROGRAM 'id'"):
        with pytest.raises(runbook_checks.Refused):
            runbook_checks.carry_out(sql(query))
    assert User.objects.count() == 1


@pytest.mark.usefixtures("allowed")
def test_a_query_has_its_time_and_its_mistakes_say_nothing() -> None:
    assert shown(sql("SELECT pg_sleep(30)", timeout_s=0.2))[0] == "failed"
    assert shown(sql("SELECT nothing FROM nowhere"))[0] == "inconclusive"


def test_no_query_runs_where_the_project_has_not_said_so() -> None:
    with pytest.raises(runbook_checks.Refused, match="UPRIGHT_SQL_CHECKS does not name default"):
        runbook_checks.carry_out(sql("SELECT true"))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(probes, "_registered", {})
    state: dict[str, Any] = {"answer": True}

    @probes.register("queue_drained")
    def queue_drained() -> Any:
        if state["answer"] is None:
            raise ConnectionError("the broker is away")
        return state["answer"]

    return state


def test_a_registered_check_passes_unless_it_says_no(registered: dict[str, Any]) -> None:
    check = {"kind": "check", "name": "queue_drained"}
    assert shown(check) == ("passed", "the probe works")
    registered["answer"] = False
    assert shown(check) == ("failed", "the probe returned False")
    registered["answer"] = None
    assert shown(check) == ("failed", "the probe raised ConnectionError")
    with pytest.raises(runbook_checks.Refused, match="no check 'other'"):
        runbook_checks.carry_out({"kind": "check", "name": "other"})


def test_a_name_that_no_runbook_could_write_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="must be 1 to 100"):
        probes.register("queue drained")


def test_the_agent_announces_and_carries_out(registered: dict[str, Any], service: ScriptedService) -> None:
    one = agent.Agent()
    try:
        first = service.wait_for("sync")[0].body
        assert first["capabilities"]["checks"] == ["queue_drained"]
        assert {"check", "traffic"} <= set(first["capabilities"]["commands"])
        watch = {"watch": "w", "method": "GET", "route": "fine/", "keep_s": 5}
        commands = [
            {"id": str(uuid4()), "kind": kind, "deadline_ms": 5000, "check": check, "error_types": []}
            for kind, check in (
                ("check", {"kind": "check", "name": "queue_drained"}),
                ("check", {"kind": "check", "name": "other"}),
                ("traffic", watch),
            )
        ]
        service.tell(commands=commands)
        told = service.wait_for("sync", 2)[1].body
    finally:
        one.stop()
        service.stop()
        one._thread.join(20)
        one._side.shutdown()
    assert told["instance"] == process.instance()
    results = {result["command_id"]: result for result in told["results"]}
    passed, refused, counted = (results[command["id"]] for command in commands)
    assert (passed["evidence"]["kind"], passed["evidence"]["outcome"]) == ("check", "passed")
    assert (refused["status"], refused["reason"]) == ("refused", "no check 'other' is registered here")
    assert counted["counts"] == {"succeeded": 0, "failed": 0, "failed_otherwise": 0}
