"""The kill file works at once, without the service and without a restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from error_logging import agent, checks, desired_state, kill_file
from error_logging.testing import directive

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def file(tmp_path: Path, settings: Any) -> Path:
    settings.UPRIGHT_KILL_FILE = str(tmp_path / "upright.stop")
    return tmp_path / "upright.stop"


def timeout_ms() -> str:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        return str(cursor.fetchone()[0])


def longer(**more: Any) -> dict[str, Any]:
    return directive("timeout_increase", timeout_ms=1234, **more)


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
    return found


def test_what_is_in_force_is_reverted_and_told(file: Path) -> None:
    before = timeout_ms()
    assert desired_state.apply_one(longer())["status"] == "applied"
    assert timeout_ms() == "1234ms"
    file.touch()
    [told] = eventually(desired_state.take_reverted)
    assert (told["status"], told["reason"]) == ("reverted", kill_file.REASON)
    assert timeout_ms() == before
    assert desired_state.held() == []


def test_nothing_is_applied_while_it_is_there_and_the_list_is_asked_for_again_once_it_is_gone(file: Path) -> None:
    before = timeout_ms()
    file.touch()
    one = longer()
    told = desired_state.apply_one(one)
    assert (told["status"], told["reason"]) == ("refused", kill_file.REASON)
    [told] = desired_state.apply_desired(7, [one])
    assert told["status"] == "refused"
    assert timeout_ms() == before
    assert desired_state.complete_version() == 7, "the service is not asked again and again"
    file.unlink()
    assert desired_state.complete_version() == 0
    [told] = desired_state.apply_desired(7, [one])
    assert told["status"] == "applied"
    assert timeout_ms() == "1234ms"


def test_a_file_that_cannot_be_looked_at_counts_as_there(tmp_path: Path, settings: Any) -> None:
    (tmp_path / "plain").touch()
    settings.UPRIGHT_KILL_FILE = str(tmp_path / "plain" / "stop")
    assert kill_file.exists()


def test_an_agent_retries_nothing_while_it_is_there(file: Path) -> None:
    file.touch()
    command = {"command_id": "1", "id": "1", "kind": "retry", "deadline_ms": 1000, "request": {}, "retry": {}}
    told = agent.Agent._carry_out(object.__new__(agent.Agent), command)
    assert (told["status"], told["reason"]) == ("refused", kill_file.REASON)


def test_without_the_setting_there_is_no_file(settings: Any) -> None:
    assert not kill_file.configured()
    assert not kill_file.exists()


def test_a_wrong_path_is_told_by_the_checks(settings: Any) -> None:
    settings.UPRIGHT_KILL_FILE = 7
    assert [one.id for one in checks.check_settings() if "UPRIGHT_KILL_FILE" in str(one.msg)] == ["upright.E001"]
