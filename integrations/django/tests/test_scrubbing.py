"""Scrubbing: secrets and personal data leave neither in names nor in values; what is harmless stays readable."""

from __future__ import annotations

import datetime
import decimal
import json
import time
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.test import RequestFactory, override_settings
from django.utils.translation import gettext_lazy
from hypothesis import given, settings
from hypothesis import strategies as st

from error_logging import events, scrubbing
from error_logging.scrubbing import SCRUBBED, path, sensitive, text, value

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"


@pytest.mark.parametrize("name", [
    "password", "PASSWORD", "user_password", "new-password", "passwd", "pwd", "secret", "SECRET_KEY", "client_secret",
    "clientSecret", "token", "access_token", "accessToken", "csrfmiddlewaretoken", "X-CSRF-Token", "api_key", "apiKey",
    "X-Api-Key", "AWS_SECRET_ACCESS_KEY", "private_key", "Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie",
    "sessionid", "session_key", "credentials", "ssn", "card_number", "creditCard", "cvv", "iban", "email", "user_email",
    "DATABASE_URL", "REDIS_URL", "BROKER_URL", "SENTRY_DSN", "connection_string", "signature", "otp", "pin", "auth",
])  # fmt: skip
def test_names_under_which_secrets_stand(name: str) -> None:
    assert sensitive(name)
    assert value({name: "x", "nested": [{name: 5}]}) == {name: SCRUBBED, "nested": [{name: SCRUBBED}]}


@pytest.mark.parametrize(
    "name", ["page", "order", "shipping", "author", "session_count", "panel", "keyboard", "pinned"]
)
def test_names_that_are_harmless(name: str) -> None:
    assert not sensitive(name)


@pytest.mark.parametrize(("given_text", "secret"), [
    ("no such user ada@example.co.uk", "ada@example.co.uk"),
    ("?mail=ada%40example.com", "ada%40example.com"),
    ('duplicate key value\nDETAIL:  Key (email)=(ada (x) lovelace) already exists.', "lovelace"),
    ("DETAIL:  Failing row contains (1, Ada, 1815-12-10, null).", "Ada"),
    ("card 4111 1111 1111 1111 was declined", "4111 1111 1111 1111"),
    ("card 4111-1111-1111-1111.", "4111-1111-1111-1111"),
    ("amex 378282246310005", "378282246310005"),
    ("ssn 078-05-1120", "078-05-1120"),
    ("could not connect to postgresql://shop:hunter2@db:5432/shop", "hunter2"),
    ("redis://:p@ss@word@cache:6379/0 refused", "p@ss@word"),
    ("https://ghp_abcdefghijklmnopqrst@github.com", "ghp_abcdefghijklmnopqrst"),
    ("DATABASE_URL=postgres://db/shop?password=x", "postgres://db/shop"),
    ("environment: {'DATABASE_URL': 'mysql://db/shop', 'x': 1}", "mysql://db/shop"),
    ("password=hunter2", "hunter2"),
    ("password = 'correct horse battery'", "horse"),
    ('{"password": "correct \\" horse"}', "horse"),
    ("{'client_secret': b'hunter2'}", "hunter2"),
    ("GET /x?access_token=abc123&page=2", "abc123"),
    ("api_key: abc123", "abc123"),
    ("API-KEY=>abc123", "abc123"),
    ("Authorization: Basic QWRhOmxvdmVsYWNl", "QWRhOmxvdmVsYWNl"),
    ("Authorization: Token abc def", "abc def"),
    ("{'Authorization': 'Bearer abc.def'}", "abc.def"),
    ("bearer 0123456789abcdef", "0123456789abcdef"),
    ("Cookie: theme=dark; tracking=u-1815", "u-1815"),
    ("{'Cookie': 'theme=dark; tracking=u-1815'}", "u-1815"),
    (f"token {JWT} expired", JWT),
    ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    ("sk_live_4eC39HqLyjWDarjtT1zdp7dc", "4eC39HqLyjWDarjtT1zdp7dc"),
    ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("xoxb-1234567890-abcdefghij", "1234567890-abcdefghij"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----", "MIIEow"),
    ("-----BEGIN PRIVATE KEY-----\nMIIEow", "MIIEow"),
])  # fmt: skip
def test_values_that_look_like_secrets(given_text: str, secret: str) -> None:
    assert secret in given_text
    assert secret not in text(given_text)
    assert SCRUBBED in text(given_text)


@pytest.mark.parametrize("harmless", [
    "relation \"orders\" does not exist\nLINE 1: SELECT * FROM orders",
    "couldn't get a connection after 0.50 sec",
    "order 1234567890123456 not found",  # no card number by its check digit
    "canceling statement due to statement timeout",
    "2026-11-24T20:20:48.123456+00:00",
    "token expired",
    "550e8400-e29b-41d4-a716-446655440000",
    "3.14159265358979323846",
    "HTTPConnectionPool(host='api', port=80): Max retries exceeded with url: /v1/items?page=2",
])  # fmt: skip
def test_what_is_harmless_stays(harmless: str) -> None:
    assert text(harmless) == harmless


def test_the_rest_of_a_text_stays_readable() -> None:
    assert text("login of ada@example.com failed: password='x' is wrong") == (
        f"login of {SCRUBBED} failed: password={SCRUBBED} is wrong"
    )
    assert text("connect to postgresql://shop:hunter2@db:5432/shop failed") == (
        f"connect to postgresql://{SCRUBBED}@db:5432/shop failed"
    )


def test_scrubbing_twice_changes_nothing() -> None:
    once = text("password=hunter2 token: abc ada@example.com Cookie: a=b; c=d Authorization: Basic abc")
    assert text(once) == once


def test_projects_add_names_and_patterns() -> None:
    with override_settings(UPRIGHT_SCRUB_KEYS=["customer-number"], UPRIGHT_SCRUB_PATTERNS=[r"KD-\d+"]):
        assert value({"customer_number": 5, "other": "see KD-1815"}) == {
            "customer_number": SCRUBBED, "other": f"see {SCRUBBED}",
        }  # fmt: skip


@pytest.mark.parametrize(("given_path", "arguments", "wanted"), [
    ("/orders/5/?page=2&sort=name", {}, "/orders/5/?page=2&sort=name"),
    ("/reset/abc123/", {"token": "abc123"}, f"/reset/{SCRUBBED}/"),
    ("/reset/a%20b/", {"token": "a b"}, f"/reset/{SCRUBBED}/"),
    ("/x/?access_token=abc&page=2", {}, f"/x/?access_token={SCRUBBED}&page=2"),
    ("/x/?user%5Bpassword%5D=abc", {}, f"/x/?user%5Bpassword%5D={SCRUBBED}"),
    ("/x/?q=ada%40example.com", {}, f"/x/?q={SCRUBBED}"),
    ("/x/?next=/y%3Ftoken%3Dabc", {}, f"/x/?next={SCRUBBED}"),
    ("/users/ada@example.com/", {}, f"/users/{SCRUBBED}/"),
    ("/x/?ada@example.com", {}, f"/x/?{SCRUBBED}"),
    ("/x/?token=", {}, "/x/?token="),
])  # fmt: skip
def test_paths(given_path: str, arguments: dict[str, object], wanted: str) -> None:
    assert path(given_path, arguments) == (wanted, wanted == given_path)


def test_a_path_that_was_shortened_is_not_intact() -> None:
    long = "/x/?" + "&".join(f"p{index}=1" for index in range(1_000))
    shortened, intact = path(long)
    assert len(shortened) == 2_000
    assert not intact


def test_objects_become_plain_json() -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd ada@example.com"

    given_value = {
        1: decimal.Decimal("1.5"), "when": datetime.date(2026, 1, 2), "id": UUID(int=5), "set": {1}, "raw": b"12345",
        "lazy": gettext_lazy("Yes"), "odd": Odd(), "nan": float("nan"), "big": 2**70, "none": None, "password": None,
    }  # fmt: skip
    plain = value(given_value)
    assert plain == {
        "1": "1.5", "when": "2026-01-02", "id": str(UUID(int=5)), "set": [1], "raw": "5 bytes", "lazy": "Yes",
        "odd": f"odd {SCRUBBED}", "nan": "nan", "big": str(2**70), "none": None, "password": None,
    }  # fmt: skip
    json.dumps(plain, allow_nan=False)


def test_a_number_that_is_a_card_is_scrubbed() -> None:
    assert value(4111111111111111) == SCRUBBED


def test_objects_that_cannot_be_shown_are_named() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    class Endless(dict[str, Any]):
        def items(self) -> Any:
            raise KeyError

    shown = value({"broken": Broken(), "endless": Endless(a=1), "fine": 1, Broken(): 2})
    assert isinstance(shown, dict)
    assert shown["fine"] == 1
    assert "Broken" in str(shown["broken"])
    assert "Endless" in str(shown["endless"])


def test_a_deep_and_wide_value_is_bounded() -> None:
    deep: Any = "x"
    for _ in range(10_000):
        deep = [deep]
    assert len(json.dumps(value({"deep": deep, "wide": list(range(10_000)), "long": "x" * 100_000}))) < 5_000


@pytest.mark.django_db
def test_no_query_is_made_for_what_an_application_gives_as_context(django_assert_num_queries: Any) -> None:
    user = User.objects.create(username="ada", email="ada@example.com")
    with django_assert_num_queries(0):
        shown = value({"users": User.objects.all(), "manager": User.objects, "user": user})
    assert "ada" not in str(shown)
    assert "User" in str(shown)


ANY_TEXT = st.text(alphabet=st.characters(codec=None), max_size=300) | st.text(
    alphabet="0123456789 -=:@/?&\"'token", max_size=300
)
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.binary(max_size=50) | st.datetimes(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT | st.integers(), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(ANY_TEXT)
def test_no_text_whatever_raises_and_the_result_is_storable(given_text: str) -> None:
    scrubbed = text(given_text)
    assert "\x00" not in scrubbed
    scrubbed.encode()
    path(given_text, {"token": given_text})
    sensitive(given_text)


@settings(deadline=None)
@given(JSON_LIKE)
def test_no_value_whatever_raises_and_the_result_is_json(given_value: Any) -> None:
    json.dumps(value(given_value), allow_nan=False, ensure_ascii=False).encode()


@settings(deadline=None)
@given(password=st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789", min_size=8, max_size=20), name=st.sampled_from(
    ["password", "API_KEY", "client_secret", "refresh_token", "DB_PASSWORD"]
))  # fmt: skip
def test_a_secret_behind_its_name_never_stays(password: str, name: str) -> None:
    for form in (f"{name}={password}", f"{name}: {password}", f'"{name}": "{password}"', f"{name} => '{password}'"):
        assert password not in text(f"before {form} after").replace(SCRUBBED, "")


@pytest.mark.parametrize("hostile", [
    "a" * 8_000, "a@" * 4_000, "1" * 8_000, "1 " * 4_000, "1-" * 4_000, "eyJ" * 2_600, "://" * 2_600, "token" * 1_600,
    "password=" * 880, "Key (" * 1_600, "-----BEGIN " * 700, "bearer " * 1_100, '"' * 8_000, "\\" * 8_000,
    "authorization" * 600, "." * 8_000, 'token="' + "\\" * 7_000, "cookie: " * 1_000,
])  # fmt: skip
def test_no_text_makes_it_slow(hostile: str) -> None:
    """Linear enough: what is looked at is bounded, and none of the rules backtracks over all of it."""
    began = time.process_time()
    text(hostile)
    assert time.process_time() - began < 1


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message either")


def caught(error: Exception) -> Exception:
    try:
        raise error
    except Exception as raised:
        return raised


def deep(levels: int) -> None:
    if levels:
        deep(levels - 1)
    raise ValueError("é" * 10_000)


def test_an_event_is_at_most_20_kb_and_keeps_what_matters() -> None:
    request = RequestFactory().get("/broken/?" + "&".join(f"é{index}=é" for index in range(2_000)))
    context = {f"é{index}" * 30: "é" * 5_000 for index in range(200)}
    try:
        deep(200)
    except ValueError as error:
        for number in range(15):
            error.__cause__ = caught(type("Ü" * 4_000, (ValueError,), {})(f"{number}"))
        event = events.build(error, request=request, context=context)
    assert len(json.dumps(event, ensure_ascii=False).encode()) <= events.MAX_BYTES
    assert event["error"]["type"] == "ValueError"
    assert event["error"]["message"].startswith("éé")
    assert event["error"]["frames"][-1]["function"] == "deep"


def test_an_event_of_an_exception_that_cannot_be_shown_is_made_all_the_same() -> None:
    event = events.build(caught(Unshowable()), context={"password": "hunter2"})
    assert event["error"]["type"] == "Unshowable"
    assert event["error"]["message"] == ""
    assert event["context"] == {"password": SCRUBBED}


def test_the_message_of_an_event_is_scrubbed() -> None:
    event = events.build(caught(ValueError("no user ada@example.com")))
    assert event["error"]["message"] == f"no user {SCRUBBED}"


@settings(deadline=None, max_examples=50)
@given(message=ANY_TEXT, context=st.dictionaries(ANY_TEXT, JSON_LIKE, max_size=3))
def test_no_error_whatever_stops_its_event(message: str, context: dict[str, Any]) -> None:
    event = events.build(caught(ValueError(message)), context=context)
    assert len(json.dumps(event, ensure_ascii=False).encode()) <= scrubbing.MAX_TEXT * 4
