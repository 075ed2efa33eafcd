"""timeout_increase: a longer statement timeout for the statements of the service, or a longer read timeout for one of
its HTTP clients."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from upright.domain.event import Event
from upright.services.strategies.base import Fleet, Parameters, Plan, Strategy, as_list, as_mapping, as_number, reading

READ_TIMEOUTS = frozenset(
    ("requests.exceptions.ReadTimeout", "httpx.ReadTimeout", "urllib3.exceptions.ReadTimeoutError")
)


class TimeoutIncreaseParameters(Parameters):
    current_timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 5000
    """Used only where the timeout can't be measured."""
    new_timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 15_000
    """Ceiling."""
    increment_percent: Annotated[float, Field(ge=1, le=1000)] = 200


class TimeoutIncrease(Strategy):
    name = "timeout_increase"
    success_rate = 0.65
    cost_s = 4
    parameters = TimeoutIncreaseParameters

    def precondition(self, event: Event, fleet: Fleet, parameters: TimeoutIncreaseParameters) -> str | None:
        if _read_timed_out(event):
            return self._client_unmet(event, fleet, parameters)
        cancelled = event.measurements.get("query_cancelled")
        if cancelled != "statement_timeout":
            return f"no statement was cancelled for its timeout{f' ({cancelled})' if cancelled else ''}"
        _, now_ms = _in_force(event, fleet, parameters)
        if not now_ms:
            return "the database has no statement timeout; the one that struck was set by the application itself"
        if parameters.new_timeout_ms <= now_ms:
            return f"the timeout is {now_ms} ms already, and the runbook allows {parameters.new_timeout_ms} ms at most"
        return None

    def _client_unmet(self, event: Event, fleet: Fleet, parameters: TimeoutIncreaseParameters) -> str | None:
        peer = _peer(event)
        found = _client(event, fleet)
        if found is None:
            return f"no HTTP client is registered for {peer}" if peer else "the peer that was too slow is not known"
        name, now_ms = found
        if now_ms is None:
            return f"the HTTP client {name!r} has no read timeout"
        now_ms = _client_in_force(event, fleet, name, now_ms)
        if parameters.new_timeout_ms <= now_ms:
            return f"the timeout is {now_ms} ms already, and the runbook allows {parameters.new_timeout_ms} ms at most"
        return None

    def plan(self, event: Event, fleet: Fleet, parameters: TimeoutIncreaseParameters) -> Plan:
        found = _client(event, fleet) if _read_timed_out(event) else None
        if found is not None:
            name, own_ms = found
            now_ms = _client_in_force(event, fleet, name, own_ms or 0)
            wanted_ms = min(parameters.new_timeout_ms, math.ceil(now_ms * (1 + parameters.increment_percent / 100)))
            return Plan(
                command="apply",
                target=f"http:{name}",
                values={"timeout_ms": wanted_ms},
                before={"timeout_ms": now_ms},
                why=f"read timeout of the HTTP client {name!r} from {now_ms} to {wanted_ms} ms",
            )
        alias, now_ms = _in_force(event, fleet, parameters)
        wanted_ms = min(parameters.new_timeout_ms, math.ceil(now_ms * (1 + parameters.increment_percent / 100)))
        return Plan(
            command="apply",
            target=alias,
            values={"timeout_ms": wanted_ms},
            before={"timeout_ms": now_ms},
            why=f"statement timeout of {alias!r} from {now_ms} to {wanted_ms} ms",
        )


def _in_force(event: Event, fleet: Fleet, parameters: TimeoutIncreaseParameters) -> tuple[str, int]:
    """The alias whose statement was cancelled, and its timeout in ms (0: none) as the failing process had it."""
    known = as_mapping(event.measurements.get("databases"))
    for instance in fleet.instances:
        known = {**as_mapping(instance.measurements.get("databases")), **known}
    measured = {
        alias: as_number(reading(event, fleet, "databases", alias).get("statement_timeout_ms")) for alias in known
    }
    if not measured:
        alias, base_ms = "default", float(parameters.current_timeout_ms)
    else:
        # The message doesn't name the alias: one that has a timeout, `default` before the others.
        alias = min(measured, key=lambda one: (not measured[one], one != "default", one))
        value = measured[alias]
        base_ms = float(parameters.current_timeout_ms) if value is None else value
    active = fleet.active(TimeoutIncrease.name, alias)
    if active is not None and active.version <= event.desired_version:
        base_ms = max(base_ms, as_number(active.values.get("timeout_ms")) or 0)
    return alias, int(base_ms)


def _read_timed_out(event: Event) -> bool:
    return any(name in READ_TIMEOUTS for chain in event.error.classes for name in chain)


def _peer(event: Event) -> str:
    upstream = as_mapping(event.measurements.get("upstream"))
    return f"{upstream.get('host')}:{upstream.get('port')}" if upstream.get("host") else ""


def _client(event: Event, fleet: Fleet) -> tuple[str, int | None] | None:
    """The registered client that talks to the peer, and its read timeout in ms as the application has it."""
    peer = _peer(event)
    known = as_mapping(event.measurements.get("http_clients"))
    for instance in fleet.instances:
        known = {**as_mapping(instance.measurements.get("http_clients")), **known}
    # The one that the exception came from, before others that talk to the same peer.
    raiser = as_mapping(event.measurements.get("upstream")).get("client")
    for name, told in sorted(known.items(), key=lambda one: (one[0] != raiser, one[0])):
        hosts = as_list(as_mapping(told).get("hosts"), default="")
        if peer and (peer in hosts or peer.rpartition(":")[0] in hosts):
            own = as_number(as_mapping(told).get("timeout_ms"))
            return name, None if own is None else int(own)
    return None


def _client_in_force(event: Event, fleet: Fleet, name: str, own_ms: int) -> int:
    active = fleet.active(TimeoutIncrease.name, f"http:{name}")
    if active is not None and active.version <= event.desired_version:
        return int(max(own_ms, as_number(active.values.get("timeout_ms")) or 0))
    return own_ms
