"""`manage.py check`: each finding has an id, and a hint that says what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OURS = "error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware"


@pytest.fixture(autouse=True)
def configured(settings: Any) -> Any:
    settings.UPRIGHT_URL, settings.UPRIGHT_SECRET = "http://127.0.0.1:8400", SECRET
    return settings


def found() -> dict[str, Any]:
    messages = {message.id: message for message in run_checks(tags=["upright"])}
    for message in messages.values():
        assert message.hint, message
        assert message.msg.endswith("."), message
    return messages


def test_a_good_configuration_has_nothing_to_say(configured: Any) -> None:
    assert found() == {}
    call_command("check")


def test_a_wrong_setting(configured: Any) -> None:
    configured.ERROR_RECOVERY_TIMEOUT = "soon"
    message = found()["upright.E001"]
    assert message.msg == "ERROR_RECOVERY_TIMEOUT must be a whole number from 0 to 60000."
    with pytest.raises(SystemCheckError, match=r"upright\.E001"):
        call_command("check")


def test_an_address_without_a_secret(configured: Any) -> None:
    del configured.UPRIGHT_SECRET
    assert set(found()) == {"upright.E002"}


def test_a_weak_secret(configured: Any) -> None:
    configured.UPRIGHT_SECRET = "whsec_c2hvcnQ="
    message = found()["upright.E003"]
    assert "at least 24 bytes" in message.msg
    assert "c2hvcnQ" not in message.msg
    assert set(found()) == {"upright.E003"}


def test_no_address(configured: Any) -> None:
    configured.UPRIGHT_URL = None
    assert set(found()) == {"upright.W001"}


@pytest.mark.parametrize(("url", "ids"), [
    ("http://upright.internal:8400", {"upright.W002"}), ("https://upright.internal", set()),
    ("http://localhost:8400", set()),
])  # fmt: skip
def test_plain_http_to_another_machine(configured: Any, url: str, ids: set[str]) -> None:
    configured.UPRIGHT_URL = url
    assert set(found()) == ids


def test_no_middleware(configured: Any) -> None:
    configured.MIDDLEWARE = [name for name in configured.MIDDLEWARE if name != OURS]
    assert set(found()) == {"upright.W003"}
    assert OURS in found()["upright.W003"].hint
    configured.MIDDLEWARE = None
    assert set(found()) == {"upright.W003"}


def test_the_middleware_twice(configured: Any) -> None:
    configured.MIDDLEWARE = [*configured.MIDDLEWARE, "error_logging.middleware.AIErrorRecoveryMiddleware"]
    assert set(found()) == {"upright.E004"}


def test_the_middleware_before_sessions(configured: Any) -> None:
    configured.MIDDLEWARE = [OURS, *configured.MIDDLEWARE[:-1]]
    assert set(found()) == {"upright.E005"}


def test_the_middleware_before_another(configured: Any) -> None:
    configured.MIDDLEWARE = [*configured.MIDDLEWARE, "django.middleware.gzip.GZipMiddleware"]
    assert set(found()) == {"upright.W004"}
    configured.SILENCED_SYSTEM_CHECKS = ["upright.W004"]
    call_command("check", fail_level="WARNING")


def test_a_spool_that_cannot_be_used(configured: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    configured.UPRIGHT_SPOOL_DIR = str(tmp_path / "file")
    assert "is not a directory" in found()["upright.E006"].msg
    configured.UPRIGHT_SPOOL_DIR = str(tmp_path / "file" / "below")
    assert set(found()) == {"upright.E006"}
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    configured.UPRIGHT_SPOOL_DIR = str(tmp_path / "open")
    assert "writable by everyone" in found()["upright.E006"].msg


def test_a_check_makes_no_directory(configured: Any, spool_dir: Path) -> None:
    """It may be run by root, before a deployment; the directory would be root's."""
    configured.UPRIGHT_SPOOL_DIR = str(spool_dir / "a" / "b")
    assert found() == {}
    assert not spool_dir.exists()


def test_a_spool_below_what_is_not_writable(configured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, how: Path(path) != tmp_path and real(path, how))
    configured.UPRIGHT_SPOOL_DIR = str(tmp_path / "a" / "b")
    assert set(found()) == {"upright.E006"}


@pytest.mark.parametrize(("setting", "value"), [
    ("ERROR_ALERT_RECIPIENTS", ["slack-webhook-url"]), ("ERROR_ESCALATION_RECIPIENTS", ["ops@"]),
    ("ALERTS_BY_SEVERITY", {"critical": ["http://["]}),
])  # fmt: skip
def test_a_recipient_that_nothing_can_reach(configured: Any, setting: str, value: Any) -> None:
    setattr(configured, setting, value)
    message = found()["upright.W005"]
    assert message.msg.startswith(setting)


@pytest.mark.parametrize(
    "value", ["hooks.slack.com/services/T0/B0/s3cret", "http://hooks.slack.com/services/T0/s3cret"]
)
def test_a_webhook_that_is_written_wrongly_is_not_shown_in_full(configured: Any, value: str) -> None:
    configured.ERROR_ALERT_RECIPIENTS = [value]
    message = found()["upright.W005"]
    assert "hooks.slack.com/…" in message.msg
    assert "s3cret" not in message.msg


def test_recipients_that_can_be_reached(configured: Any) -> None:
    configured.ERROR_ALERT_RECIPIENTS = ["ops@example.com", "https://hooks.slack.com/services/T0/B0/x"]
    assert found() == {}


def test_a_fallback_view_that_is_not_there(configured: Any) -> None:
    configured.UPRIGHT_FALLBACK_VIEWS = {"fine/": "site_urls.nothing"}
    assert "upright.E008" in {one.id for one in run_checks(tags=["upright"])}
    configured.UPRIGHT_FALLBACK_VIEWS = {"fine/": "site_urls.fine"}
    assert "upright.E008" not in {one.id for one in run_checks(tags=["upright"])}


def test_an_alternative_that_is_asked_in_plain_text(configured: Any) -> None:
    configured.UPRIGHT_FALLBACK_SERVICES = {"old": "http://old.example"}
    assert "upright.W008" in {one.id for one in run_checks(tags=["upright"])}


def test_a_shared_count_without_redis(configured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    configured.UPRIGHT_RATE_LIMIT_STORAGE = "redis://cache:6379/0"
    assert "upright.E009" not in {one.id for one in run_checks(tags=["upright"])}
    monkeypatch.setattr("error_logging.checks.find_spec", lambda name: None)
    assert "upright.E009" in {one.id for one in run_checks(tags=["upright"])}
