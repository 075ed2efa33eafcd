"""Which errors are one incident."""

from __future__ import annotations

import pytest

from upright.domain.event import ErrorDetail, Event, Frame
from upright.domain.fingerprint import fingerprint, template
from upright.testing.events import DJANGO_OPERATIONAL_ERROR, POOL_TIMEOUT, error_event, page


def with_error(event: Event, **changes: object) -> Event:
    return event.model_copy(update={"error": event.error.model_copy(update=changes)})


def test_the_same_failure_again_is_the_same_incident() -> None:
    one, other = (error_event(DJANGO_OPERATIONAL_ERROR, POOL_TIMEOUT) for _ in range(2))
    assert one.error_id != other.error_id
    assert fingerprint(one) == fingerprint(other)


def test_service_environment_route_and_cause_tell_incidents_apart() -> None:
    base = error_event(DJANGO_OPERATIONAL_ERROR, POOL_TIMEOUT)
    others = [
        error_event(DJANGO_OPERATIONAL_ERROR, POOL_TIMEOUT, service="billing"),
        error_event(DJANGO_OPERATIONAL_ERROR, POOL_TIMEOUT, environment="staging"),
        error_event(DJANGO_OPERATIONAL_ERROR, POOL_TIMEOUT, request=page(route="other/")),
        error_event(DJANGO_OPERATIONAL_ERROR),
    ]
    assert len({fingerprint(one) for one in [base, *others]}) == 5


def test_a_post_is_another_operation_than_a_get_and_a_head_is_none() -> None:
    """What may not be repeated must not answer for what may."""
    get, head, post = (fingerprint(error_event(request=page(method))) for method in ("GET", "HEAD", "POST"))
    assert get == head != post


def test_frames_count_before_messages() -> None:
    frames = [Frame(module="shop.views", function="report", line=12, in_app=True)]
    one = with_error(error_event(), message="order 1", frames=frames)
    moved = with_error(error_event(), message="nothing alike", frames=[frames[0].model_copy(update={"line": 90})])
    assert fingerprint(one) == fingerprint(moved)


@pytest.mark.parametrize(
    ("message", "other"),
    [
        ("order 17 is late", "order 4711 is late"),
        ("no user 'ann'", "no user 'bob'"),
        ("at 0x7f00aa", "at 0x12"),
        ("id 550e8400-e29b-41d4-a716-446655440000", "id 00000000-0000-4000-8000-000000000000"),
    ],
)
def test_what_varies_in_a_message_does_not_count(message: str, other: str) -> None:
    assert template(message) == template(other)
    assert fingerprint(with_error(error_event(), message=message)) == fingerprint(
        with_error(error_event(), message=other)
    )


def test_the_applications_own_grouping_wins() -> None:
    grouped = [ErrorDetail(type=kind, message=kind, fingerprint=["orders"]) for kind in ("ValueError", "KeyError")]
    assert len({fingerprint(error_event().model_copy(update={"error": error})) for error in grouped}) == 1
