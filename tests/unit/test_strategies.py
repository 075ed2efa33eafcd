"""When a strategy applies, and the absolute values that it decides on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upright.domain.directive import Directive
from upright.domain.event import Event
from upright.services.ports import Instance
from upright.services.strategies import STRATEGIES, Custom, Fleet, Plan
from upright.services.strategies.cache_clear import family, narrowest
from upright.testing.events import (
    CANCELLED_FOR_TIMEOUT,
    DJANGO_OPERATIONAL_ERROR,
    EXHAUSTED,
    POOL_TIMEOUT,
    error_event,
    page,
)

WAITED = Fleet(waiter_present=True)


def unmet(name: str, event: Event, fleet: Fleet = WAITED, **parameters: Any) -> str | None:
    strategy = STRATEGIES[name]
    return strategy.precondition(event, fleet, strategy.parameters.model_validate(parameters))


def plan(name: str, event: Event, fleet: Fleet = WAITED, **parameters: Any) -> Plan:
    assert unmet(name, event, fleet, **parameters) is None
    strategy = STRATEGIES[name]
    return strategy.plan(event, fleet, strategy.parameters.model_validate(parameters))


def process(identity: str, measurements: dict[str, Any] | None = None, age_s: float = 0) -> Instance:
    seen = datetime.now(UTC) - timedelta(seconds=age_s)
    return Instance(identity, "django", 0, measurements or {}, {"commands": ["apply", "retry"]}, {}, seen)


def directive(strategy: str, version: int, **values: Any) -> Directive:
    return Directive(
        id=uuid4(), service="django", strategy=strategy, target="default", version=version, values=values, ttl_s=60
    )


# pool_increase


def exhausted(
    pool: dict[str, Any] | None = None,
    database: dict[str, Any] | None = None,
    chains: tuple[tuple[str, ...], ...] = (DJANGO_OPERATIONAL_ERROR, POOL_TIMEOUT),
) -> Event:
    return error_event(
        *chains,
        measurements={
            "pools": {"default": {**EXHAUSTED["pools"]["default"], **(pool or {})}},
            "databases": {"default": {**EXHAUSTED["databases"]["default"], **(database or {})}},
        },
    )


def test_a_pool_that_requests_wait_for_is_raised_by_the_increment() -> None:
    found = plan("pool_increase", exhausted())
    assert (found.target, found.values, found.before) == ("default", {"max_size": 5}, {"max_size": 2})
    assert (found.command, found.scope) == ("apply", "process")


def test_requests_that_timed_out_count_where_the_pool_is_at_its_maximum() -> None:
    assert unmet("pool_increase", exhausted({"requests_waiting": 0, "requests_errors": 4})) is None
    assert unmet("pool_increase", exhausted({"requests_waiting": 0, "requests_errors": 4, "size": 1})) is not None


def test_a_pool_that_nobody_waits_for_is_left_alone() -> None:
    idle = exhausted({"requests_waiting": 0, "size": 1})
    assert unmet("pool_increase", idle) == "nothing waits for a connection of 'default'"


def test_time_outs_of_an_earlier_hour_do_not_raise_a_full_pool() -> None:
    """The pool's own count of them only grows; a statement that was cancelled says nothing of the pool."""
    earlier = exhausted({"requests_waiting": 0, "requests_errors": 4}, chains=(DJANGO_OPERATIONAL_ERROR,))
    assert unmet("pool_increase", earlier) == "nothing waits for a connection of 'default'"


def test_the_ceiling_is_the_runbooks() -> None:
    assert plan("pool_increase", exhausted(), new_size=4).values == {"max_size": 4}
    assert unmet("pool_increase", exhausted(), new_size=2) == (
        "the pool's maximum is 2 already, and the runbook allows 2 at most"
    )


def test_the_servers_connections_are_shared_among_the_processes() -> None:
    event = exhausted(database={"max_connections": 20, "reserved_connections": 3, "other_connections": 8})
    fleet = Fleet([process("host:1:boot"), process("host:2:boot"), process("host:3:boot")], waiter_present=True)
    assert plan("pool_increase", event, fleet).values == {"max_size": 3}
    many = Fleet([process(f"host:{index}:boot") for index in range(5)], waiter_present=True)
    assert unmet("pool_increase", event, many) == "no connections left on the server: 1 for each process, 2 in use"


def test_the_reporting_process_counts_even_before_its_agent_is_known() -> None:
    event = exhausted(database={"max_connections": 15, "other_connections": 4})
    assert plan("pool_increase", event, Fleet([process("host:2:boot")])).values == {"max_size": 4}


def test_without_a_reading_of_the_limit_nothing_is_raised() -> None:
    event = error_event(measurements={"pools": EXHAUSTED["pools"]})
    assert "has not been read" in (unmet("pool_increase", event) or "")
    told = Fleet([process("host:2:boot", {"databases": EXHAUSTED["databases"]})])
    assert unmet("pool_increase", event, told) is None


def test_the_database_being_down_is_no_reason_for_more_connections() -> None:
    reason = "connecting to 'default' fails, and more connections can't help"
    assert unmet("pool_increase", exhausted({"connections_errors": 7, "size": 0})) == reason
    earlier = {"pools": {"default": {"connections_errors": 5}}}
    growing = Fleet([process("host:1:boot", earlier)], waiter_present=True)
    assert unmet("pool_increase", exhausted({"connections_errors": 7}), growing) == reason


def test_connection_errors_of_long_ago_do_not_count() -> None:
    earlier = {"pools": {"default": {"connections_errors": 7}}}
    fleet = Fleet([process("host:1:boot", earlier)], waiter_present=True)
    assert unmet("pool_increase", exhausted({"connections_errors": 7}), fleet) is None
    assert unmet("pool_increase", exhausted({"connections_errors": 7})) is None


@pytest.mark.parametrize("pools", [None, [], "x", {"default": None}, {"default": {"requests_waiting": "many"}}])
def test_measurements_of_any_shape_are_survived(pools: Any) -> None:
    assert unmet("pool_increase", error_event(measurements={"pools": pools})) is not None


@given(
    size=st.integers(1, 60),
    ceiling=st.integers(1, 60),
    percent=st.integers(1, 1000),
    limit=st.integers(0, 200),
    others=st.integers(0, 200),
    processes=st.integers(1, 8),
)
def test_no_plan_goes_past_a_bound(
    size: int, ceiling: int, percent: int, limit: int, others: int, processes: int
) -> None:
    event = exhausted({"max": size, "size": size}, {"max_connections": limit, "other_connections": others})
    fleet = Fleet([process("host:1:boot"), *(process(f"host:{n}:boot") for n in range(2, processes + 1))])
    if unmet("pool_increase", event, fleet, new_size=ceiling, increment_percent=percent) is None:
        wanted = plan("pool_increase", event, fleet, new_size=ceiling, increment_percent=percent).values["max_size"]
        assert isinstance(wanted, int)
        assert size < wanted <= ceiling
        assert wanted * processes <= limit - 3 - others


# timeout_increase


def cancelled(timeout_ms: float | None = 400, **fields: Any) -> Event:
    databases = {"default": {"statement_timeout_ms": timeout_ms}}
    return error_event(measurements={"query_cancelled": "statement_timeout", "databases": databases}, **fields)


def test_a_measured_timeout_is_raised_by_the_increment_up_to_the_ceiling() -> None:
    found = plan("timeout_increase", cancelled())
    assert (found.target, found.values, found.before) == ("default", {"timeout_ms": 1200}, {"timeout_ms": 400})
    assert plan("timeout_increase", cancelled(), new_timeout_ms=1000).values == {"timeout_ms": 1000}
    assert "1000 ms at most" in (unmet("timeout_increase", cancelled(1000), new_timeout_ms=1000) or "")


def test_a_lock_timeout_or_any_other_failure_is_not_its_business() -> None:
    event = error_event(measurements={**CANCELLED_FOR_TIMEOUT, "query_cancelled": "lock_timeout"})
    assert unmet("timeout_increase", event) == "no statement was cancelled for its timeout (lock_timeout)"
    assert unmet("timeout_increase", error_event()) == "no statement was cancelled for its timeout"


def test_a_timeout_that_the_application_set_itself_is_left_alone() -> None:
    assert "set by the application itself" in (unmet("timeout_increase", cancelled(0)) or "")


def test_where_it_was_not_measured_the_runbooks_own_figure_counts() -> None:
    event = error_event(measurements={"query_cancelled": "statement_timeout"})
    assert plan("timeout_increase", event, current_timeout_ms=2000).values == {"timeout_ms": 6000}


def test_the_alias_that_has_a_timeout_is_meant() -> None:
    event = error_event(
        measurements={
            "query_cancelled": "statement_timeout",
            "databases": {"default": {"statement_timeout_ms": 0}, "reports": {"statement_timeout_ms": 500}},
        }
    )
    found = plan("timeout_increase", event)
    assert (found.target, found.values) == ("reports", {"timeout_ms": 1500})


def test_a_raised_timeout_that_was_not_enough_is_raised_from_there() -> None:
    fleet = Fleet(desired=[directive("timeout_increase", 3, timeout_ms=1200)], waiter_present=True)
    assert plan("timeout_increase", cancelled(desired_version=3), fleet).values == {"timeout_ms": 3600}
    assert plan("timeout_increase", cancelled(desired_version=2), fleet).values == {"timeout_ms": 1200}


# cache_clear


def uncached(key: str | None) -> Event:
    cache = {} if key is None else {"cache": {"alias": "sessions", "key": key, "prefix": ":1:"}}
    return error_event(measurements=cache)


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("catalog:42", "catalog:*"),
        ("shop/catalog/42", "shop/catalog/*"),
        ("a:b/c:d", "a:b/c:*"),
        ("frontpage", "frontpage"),
        ("odd*[key]?:42", "odd[*][[]key][?]:*"),
        ("trailing:", "trailing:*"),
    ],
)
def test_the_failing_keys_family_is_cleared_once(key: str, pattern: str) -> None:
    found = plan("cache_clear", uncached(key))
    assert found.values == {"pattern": pattern, "graceful": True}
    assert (found.target, found.scope) == ("sessions", "once")


def test_without_a_key_only_a_narrower_pattern_is_cleared() -> None:
    assert "makes things worse" in (unmet("cache_clear", uncached(None)) or "")
    found = plan("cache_clear", uncached(None), clear_pattern="catalog:*")
    assert (found.values["pattern"], found.target) == ("catalog:*", "default")


def test_the_runbook_says_what_may_be_cleared_at_most() -> None:
    assert plan("cache_clear", uncached("catalog:42"), clear_pattern="cat*").values["pattern"] == "catalog:*"
    assert plan("cache_clear", uncached("catalog:42"), clear_pattern="catalog:4*").values["pattern"] == "catalog:4*"
    assert plan("cache_clear", uncached("catalog:42"), clear_pattern="catalog:??").values["pattern"] == "catalog:??"
    assert "allows 'prices:*' only" in (unmet("cache_clear", uncached("catalog:42"), clear_pattern="prices:*") or "")


@given(key=st.text(st.characters(codec="ascii", exclude_characters="\\"), min_size=1, max_size=30))
def test_the_family_holds_the_key_and_its_siblings_alone(key: str) -> None:
    from fnmatch import fnmatchcase

    assert fnmatchcase(key, family(key))
    assert narrowest(key, "*") == family(key)
    cut = max(key.rfind(":"), key.rfind("/")) + 1
    assert not fnmatchcase("\x00other" + key[:cut], family(key))


# retry


def test_a_safe_request_is_repeated_by_the_caller_that_waits() -> None:
    found = plan("retry", error_event())
    assert found.retry is not None
    assert found.retry.model_dump() == {
        "max_retries": 3,
        "retry_delay_ms": 1000,
        "exponential_backoff": True,
        "retry_after_ms": 0,
    }
    assert found.command == "retry"


def test_the_delay_that_the_failure_asked_for_is_kept() -> None:
    found = plan("retry", error_event(measurements={"retry_after_s": 4}))
    assert found.retry is not None
    assert (found.retry.retry_delay_ms, found.retry.retry_after_ms) == (4000, 4000)


def test_a_peer_that_asks_for_more_than_a_minute_is_not_bothered() -> None:
    asked = error_event(measurements={"retry_after_s": 120})
    assert unmet("retry", asked) == "the peer asks to wait 120 s, longer than anybody waits here"


def test_what_its_view_declares_repeatable_is_repeated_by_its_caller() -> None:
    assert unmet("retry", error_event(request=page("POST"))) is None


@pytest.mark.parametrize(
    ("request_", "waits", "reason"),
    [
        (page("POST", replayable=False), True, "this POST request must not be repeated"),
        (page("POST"), False, "nobody waits, and a POST request can only be repeated by its caller"),
        (page(replayable=False), True, "this GET request must not be repeated"),
        (page(path_intact=False), False, "the path was scrubbed"),
        (page(), False, "no process of the service is connected"),
    ],
)
def test_what_can_not_be_repeated_is_skipped(request_: Any, waits: bool, reason: str) -> None:
    event = error_event(request=request_, waits=waits)
    assert reason in (unmet("retry", event, Fleet(waiter_present=waits)) or "")


def test_where_nobody_waits_a_process_repeats_it() -> None:
    assert unmet("retry", error_event(waits=False), Fleet([process("host:2:boot")])) is None


def test_a_scrubbed_path_does_not_hinder_the_caller_itself() -> None:
    assert unmet("retry", error_event(request=page(path_intact=False))) is None


# queue_priority


def awaited(waiting: int | None = 400) -> Event:
    queues = {} if waiting is None else {"queues": {"celery": {"waiting": waiting}}}
    return error_event(
        ("celery.exceptions.TimeoutError",),
        measurements={"task": {"name": "shop.price", "queue": "celery"}, **queues},
    )


def test_an_awaited_task_passes_the_backlog_of_its_queue() -> None:
    found = plan("queue_priority", awaited(), boost_factor=3)
    assert (found.target, found.scope, found.before) == ("celery:celery", "process", {"waiting": 400})
    assert found.values == {"queue": "celery.boosted", "tasks": "shop.price", "boost_factor": 3}
    assert found.why == "shop.price past the 400 tasks that wait in 'celery', 3 turns for one"


def test_without_a_backlog_no_task_is_boosted() -> None:
    assert "3 tasks wait" in (unmet("queue_priority", awaited(3)) or "")
    assert "not known" in (unmet("queue_priority", awaited(None)) or "")
    assert unmet("queue_priority", error_event()) == "the error does not come from waiting for a task"


def test_an_agents_reading_of_the_queue_serves_too() -> None:
    told = Fleet([process("host:2:boot", {"queues": {"celery": {"waiting": 50}}})], waiter_present=True)
    assert unmet("queue_priority", awaited(None), told) is None


def test_a_queue_that_no_process_announces_is_left_alone() -> None:
    def announcing(*targets: str) -> Fleet:
        capabilities = {"commands": ["apply"], "strategies": {"queue_priority": {"targets": list(targets)}}}
        return Fleet([replace(process("host:2:boot"), capabilities=capabilities)], waiter_present=True)

    assert unmet("queue_priority", awaited(), announcing("celery:celery")) is None
    assert "can boost the queue 'celery'" in (unmet("queue_priority", awaited(), announcing("celery:mail")) or "")


# Strategies of the application's own


def own(announced: dict[str, Any] | None) -> Fleet:
    capabilities = {"commands": ["apply"], "strategies": {"custom_strategy": announced} if announced else {}}
    return Fleet([replace(process("host:2:boot"), capabilities=capabilities)], waiter_present=True)


def test_a_custom_strategy_needs_a_process_that_announces_it() -> None:
    custom, anything = Custom("custom_strategy"), Custom.parameters.model_validate({"level": 3})
    assert custom.precondition(error_event(), own({"custom": True}), anything) is None
    missing = custom.precondition(error_event(), own(None), anything)
    assert missing is not None
    assert "_execute_custom_strategy" in missing


@pytest.mark.parametrize(("revertible", "scope"), [(False, "once"), (True, "process")])
def test_a_custom_strategy_is_held_where_it_can_be_taken_back(revertible: bool, scope: str) -> None:
    given = Custom.parameters.model_validate({"level": 3, "target": "carrier"})
    found = Custom("custom_strategy").plan(error_event(), own({"revertible": revertible}), given)
    assert (found.scope, found.target, found.values) == (scope, "carrier", {"level": 3})


# timeout_increase of an HTTP client


def slow_peer(
    *, cause: str = "requests.exceptions.ReadTimeout", hosts: tuple[str, ...] = ("carrier.example",)
) -> Event:
    return error_event(
        (cause,),
        measurements={
            "upstream": {"host": "carrier.example", "port": 443},
            "http_clients": {
                "bank": {"hosts": ["bank.example"], "timeout_ms": 100},
                "carrier": {"hosts": list(hosts), "timeout_ms": 2000},
            },
        },
    )


@pytest.mark.parametrize("hosts", [("carrier.example",), ("carrier.example:443",)])
def test_the_client_that_talks_to_the_slow_peer_gets_more_time(hosts: tuple[str, ...]) -> None:
    found = plan("timeout_increase", slow_peer(hosts=hosts))
    assert (found.target, found.values, found.before) == ("http:carrier", {"timeout_ms": 6000}, {"timeout_ms": 2000})
    assert found.why == "read timeout of the HTTP client 'carrier' from 2000 to 6000 ms"
    assert plan("timeout_increase", slow_peer(), new_timeout_ms=3000).values == {"timeout_ms": 3000}


def test_of_two_clients_of_the_slow_peer_the_one_that_failed_gets_more_time() -> None:
    both = {name: {"hosts": ["carrier.example"], "timeout_ms": 2000} for name in ("batch", "carrier")}
    upstream = {"host": "carrier.example", "port": 443, "client": "carrier"}
    event = error_event(("httpx.ReadTimeout",), measurements={"upstream": upstream, "http_clients": both})
    assert plan("timeout_increase", event).target == "http:carrier"


def test_a_peer_without_a_registered_client_is_left_alone() -> None:
    assert unmet("timeout_increase", slow_peer(hosts=("carrier.example:8443",))) == (
        "no HTTP client is registered for carrier.example:443"
    )


def test_a_peer_that_could_not_be_reached_needs_no_more_time() -> None:
    assert "no statement was cancelled" in (
        unmet("timeout_increase", slow_peer(cause="requests.exceptions.ConnectTimeout")) or ""
    )


def test_what_a_client_was_given_already_counts() -> None:
    active = replace_target(directive("timeout_increase", 3, timeout_ms=6000), "http:carrier")
    event = slow_peer().model_copy(update={"desired_version": 3})
    assert plan("timeout_increase", event, Fleet(desired=[active])).values == {"timeout_ms": 15_000}


def replace_target(one: Directive, target: str) -> Directive:
    return one.model_copy(update={"target": target})


# cache_clear of other kinds


def corrupt(kind: str) -> Event:
    cache = {"alias": "pages", "key": "catalog:42", "prefix": "", "kind": kind}
    return error_event(("_pickle.UnpicklingError",), measurements={"cache": cache})


@pytest.mark.parametrize(
    ("kind", "scope"), [("redis", "once"), ("database", "once"), ("file", "once"), ("memory", "process")]
)
def test_what_is_in_each_processs_memory_each_process_clears(kind: str, scope: str) -> None:
    found = plan("cache_clear", corrupt(kind), cache_type="any")
    assert (found.target, found.scope, found.shared) == ("pages", scope, False)
    listed = {} if kind != "file" else {"key": "catalog:42"}
    assert found.values == {"pattern": "catalog:*", "graceful": True, **listed}


def test_a_runbook_for_one_kind_of_cache_leaves_the_others_alone() -> None:
    assert unmet("cache_clear", corrupt("memory")) == (
        "the cache is of the kind memory, and the runbook clears redis only"
    )


def test_stale_entries_are_cleared_where_the_runbook_says() -> None:
    found = plan("cache_clear", error_event(), clear_pattern="price:*", cache_alias="catalog", cache_type="memory")
    assert (found.target, found.scope, found.values["pattern"]) == ("catalog", "process", "price:*")


# circuit_break, fallback, request_throttle

PEER = {"upstream": {"host": "payments", "port": 443, "guarded": True}}
REFUSED = ("builtins.ConnectionRefusedError", "builtins.ConnectionError")


def announcing(identity: str = "host:1:boot", age_s: float = 0, **targets: list[str]) -> Instance:
    seen = datetime.now(UTC) - timedelta(seconds=age_s)
    strategies = {name: {"targets": entries} for name, entries in targets.items()}
    return Instance(identity, "django", 0, {}, {"strategies": strategies}, {}, seen)


def fleet(*instances: Instance, errors: int = 20) -> Fleet:
    return Fleet(instances, waiter_present=True, recent_errors=errors)


def too_early(name: str, event: Event, fleet: Fleet, **parameters: Any) -> str | None:
    strategy = STRATEGIES[name]
    return strategy.not_yet(event, fleet, strategy.parameters.model_validate(parameters))


BREAKING = announcing(circuit_break=["route:*"])


def test_the_circuit_of_a_guarded_peer_is_opened_rather_than_its_route() -> None:
    found = plan("circuit_break", error_event(REFUSED, measurements=PEER), fleet(BREAKING))
    assert found.target == "upstream:payments:443"
    assert found.values == {
        "failure_threshold": 5, "timeout_seconds": 60, "half_open_requests": 1, "prober": "host:1:boot",
    }  # fmt: skip
    assert found.settle_s > 60
    assert not found.lasts
    bare = error_event(REFUSED, measurements={"upstream": {"host": "payments", "port": 443}})
    assert plan("circuit_break", bare, fleet(BREAKING)).target == "route:report/<int:year>/"


def test_the_failing_process_tries_first_if_it_lives() -> None:
    event = error_event(REFUSED)
    other = announcing("host:2:boot", circuit_break=["route:*"])
    assert plan("circuit_break", event, fleet(other, BREAKING)).values["prober"] == "host:1:boot"
    assert plan("circuit_break", event, fleet(other)).values["prober"] == "host:2:boot"


def test_a_circuit_opens_after_so_many_failures_only() -> None:
    assert too_early("circuit_break", error_event(REFUSED), fleet(BREAKING, errors=4)) == (
        "4 of the 5 failures within a minute that open a circuit"
    )
    assert too_early("circuit_break", error_event(REFUSED), fleet(BREAKING, errors=5)) is None


def test_a_route_that_works_for_most_is_not_closed_to_them() -> None:
    event = error_event(REFUSED, measurements={"route": {"failed": 6, "succeeded": 40}})
    assert too_early("circuit_break", event, fleet(BREAKING)) == (
        "the route works for most: 40 of its last 46 requests succeeded"
    )
    guarded = error_event(REFUSED, measurements={"route": {"failed": 6, "succeeded": 40}, **PEER})
    assert too_early("circuit_break", guarded, fleet(BREAKING)) is None


def test_a_circuit_needs_processes_that_know_it_and_an_end_that_can_be_waited_for() -> None:
    assert "no process of the service can break" in (unmet("circuit_break", error_event(REFUSED), fleet()) or "")
    assert "540 s" in (unmet("circuit_break", error_event(REFUSED), fleet(BREAKING), timeout_seconds=900) or "")


def test_a_fallback_needs_something_to_answer() -> None:
    event = error_event(REFUSED)
    assert "keeps no last good response" in (
        unmet("fallback", event, fleet(announcing(fallback=["route:other/"]))) or ""
    )
    knowing = fleet(announcing(fallback=["route:report/<int:year>/", "service:laravel"]))
    found = plan("fallback", event, knowing)
    assert (found.target, found.values) == ("route:report/<int:year>/", {"mode": "degraded", "service": ""})
    assert plan("fallback", event, knowing, fallback_mode="full").values == {"mode": "full", "service": "laravel"}
    assert "knows a fallback service 'rails'" in (
        unmet("fallback", event, knowing, fallback_mode="full", fallback_service="rails") or ""
    )
    assert "a POST request" in (unmet("fallback", error_event(REFUSED, request=page("POST")), knowing) or "")


def test_clients_are_throttled_for_their_own_errors_and_a_route_for_others() -> None:
    processes = [announcing(f"host:{n}:boot", request_throttle=["service", "client", "route:*"]) for n in range(3)]
    found = plan("request_throttle", error_event(("shop.AuthenticationError",)), fleet(*processes))
    assert (found.target, found.values) == (
        "client", {"requests_per_minute": 100, "burst_size": 10, "processes": 3},
    )  # fmt: skip
    assert plan("request_throttle", error_event(REFUSED), fleet(*processes)).target == "route:report/<int:year>/"
    assert too_early("request_throttle", error_event(REFUSED), fleet(*processes, errors=10)) is not None
    assert too_early("request_throttle", error_event(REFUSED), fleet(*processes, errors=11)) is None
