"""Whatever comes in is understood or refused: no other exception gets through."""

from __future__ import annotations

import base64
import contextlib
import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook

from upright.adapters.intake.gate import Gate, parse
from upright.adapters.intake.signatures import Keyring
from upright.config import Settings
from upright.domain.directive import Results, SyncRequest
from upright.domain.event import Event
from upright.errors import ForeignService, MalformedMessage, SignatureRefused

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def event(**changes: Any) -> dict[str, Any]:
    return {
        "error_id": str(uuid4()),
        "service": "shop",
        "occurred_at": "2026-01-01T00:00:00Z",
        "error": {"type": "ValueError"},
        **changes,
    }


@given(st.binary(max_size=200))
@example(b'{"\\u0000')
@example(b"\\u0000")
@example(b'"\\u0000"')
@example(b'{"a": "\\u0000", "b": ' + b"[" * 3000)
def test_any_bytes(raw: bytes) -> None:
    for model in (Event, Results, SyncRequest):
        with contextlib.suppress(MalformedMessage):
            parse(raw, model)


@given(st.sampled_from(sorted(Event.model_fields)), anything)
def test_any_value_of_any_field(field: str, value: object) -> None:
    with contextlib.suppress(MalformedMessage):
        parse(json.dumps(event(**{field: value})).encode(), Event).model_dump_json()


def test_nul_is_replaced_wherever_it_stands() -> None:
    parsed = parse(json.dumps(event(context={"a\x00": ["b\x00", {"c": "\\u0000"}]})).encode(), Event)
    assert parsed.context == {"a\ufffd": ["b\ufffd", {"c": "\\u0000"}]}


@given(
    st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text()), st.binary()
)
@example({"webhook-id": "a", "webhook-timestamp": "1e999", "webhook-signature": "v1,a"}, b"")
@example({"webhook-id": "a", "webhook-timestamp": str(datetime.now(UTC).timestamp()), "webhook-signature": "v1"}, b"{}")
def test_any_headers(headers: dict[str, str], body: bytes) -> None:
    keyring = Keyring({"default": [SecretStr(SECRET)]})
    with pytest.raises(SignatureRefused):
        keyring.verify("default", headers, body)


def test_an_answer_is_signed_with_every_secret() -> None:
    other = "whsec_" + base64.b64encode(b"x" * 24).decode()
    keyring = Keyring({"default": [SecretStr(SECRET), SecretStr(other)]})
    headers = keyring.sign("default", "delivery", b"{}")
    assert headers["webhook-id"] == "delivery"
    for secret in (SECRET, other):
        Webhook(secret).verify(b"{}", headers)
        assert keyring.verify("default", headers, b"{}") == "delivery"
    assert keyring.tenants == ["default"]


def test_no_secret_lets_nobody_in() -> None:
    keyring = Keyring.of(Settings(secrets=[]))
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "a",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("a", now, "{}"),
    }
    with pytest.raises(SignatureRefused):
        keyring.verify("default", headers, b"{}")


def test_a_tenant_without_a_list_speaks_for_all_of_its_services() -> None:
    gate = Gate(Settings(secrets=[SecretStr(SECRET)], tenant_services={"other": ["billing"]}))
    gate.admit("default", "anything")
    gate.admit("other", "billing")
    with pytest.raises(ForeignService):
        gate.admit("other", "shop")
