"""The golden messages: what each side has agreed to send and to understand."""

from __future__ import annotations

import json
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks import webhooks

from upright.adapters.intake.gate import MAX_BODY_BYTES, parse
from upright.adapters.intake.signatures import Keyring
from upright.domain.alert_test import AlertTestAnswer, AlertTestRequest
from upright.domain.answer import Answer
from upright.domain.directive import Results, SyncAnswer, SyncRequest
from upright.domain.event import Event
from upright.domain.message import Message
from upright.errors import SignatureRefused
from upright.services import recipients

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS: dict[str, type[Message]] = {
    "event": Event, "results": Results, "sync_request": SyncRequest, "sync_answer": SyncAnswer, "answer": Answer,
    "alert_test_request": AlertTestRequest, "alert_test_answer": AlertTestAnswer,
}  # fmt: skip
# Files that hold something else than a message; each has a test of its own.
TABLES = ("severity", "signature")


def model_of(path: Path) -> type[Message]:
    """By the longest kind of message that the file's name begins with."""
    kinds = [kind for kind in MODELS if path.stem == kind or path.stem.startswith((f"{kind}_", f"{kind}-", f"{kind}."))]
    assert kinds, f"{path.name} begins with none of {', '.join(MODELS)}"
    return MODELS[max(kinds, key=len)]


MESSAGES = sorted(path for path in GOLDEN.glob("*.json") if not path.stem.startswith(TABLES))


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_golden_messages_are_understood(path: Path) -> None:
    raw = path.read_bytes()
    assert len(raw) <= MAX_BODY_BYTES
    said = json.loads(raw)
    understood = parse(raw, model_of(path)).model_dump(mode="json")
    assert _ignored(said, understood) == [], "the model has no such keys"


def test_every_kind_of_message_has_an_example() -> None:
    assert {model_of(path) for path in MESSAGES} == set(MODELS.values())


def _ignored(said: object, understood: object, at: str = "") -> list[str]:
    """Keys of the example that the model dropped."""
    if isinstance(said, dict) and isinstance(understood, dict):
        missing = [f"{at}.{key}" for key in said if key not in understood]
        return missing + [
            one for key in said if key in understood for one in _ignored(said[key], understood[key], f"{at}.{key}")
        ]
    if isinstance(said, list) and isinstance(understood, list):
        return [
            one
            for index, pair in enumerate(zip(said, understood, strict=True))
            for one in _ignored(*pair, f"{at}.{index}")
        ]
    return []


def test_a_later_versions_keys_are_no_error() -> None:
    for path in MESSAGES:
        said = {**json.loads(path.read_bytes()), "added_later": {"a": 1}}
        parse(json.dumps(said).encode(), model_of(path))


SIGNATURES = json.loads((GOLDEN / "signature.json").read_bytes())["cases"]


@pytest.mark.parametrize("case", SIGNATURES, ids=[case["name"] for case in SIGNATURES])
def test_signatures_are_judged_as_the_golden_cases_say(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Then(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromtimestamp(case["now"], tz)

    monkeypatch.setattr(webhooks, "datetime", Then)
    keyring = Keyring({"default": [SecretStr(secret) for secret in case["secrets"]]})
    if case["valid"]:
        assert keyring.verify("default", case["headers"], case["body"].encode()) == case["headers"]["webhook-id"]
    else:
        with pytest.raises(SignatureRefused):
            keyring.verify("default", case["headers"], case["body"].encode())


def test_a_webhook_is_shown_as_the_application_shows_it() -> None:
    [address] = json.loads((GOLDEN / "alert_test_request.json").read_bytes())["webhooks"]
    [result] = json.loads((GOLDEN / "alert_test_answer.json").read_bytes())["results"]
    assert recipients.shown(address) == result["recipient"]
