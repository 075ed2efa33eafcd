"""pool_increase: a larger connection pool in every process of the service."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from upright.domain.event import Event
from upright.services.strategies.base import Fleet, Parameters, Plan, Strategy, as_mapping, as_number, reading


class PoolIncreaseParameters(Parameters):
    resource: Literal["db_connection_pool"] = "db_connection_pool"
    current_size: Annotated[int, Field(ge=1, le=1000)] = 10
    """The case that the other numbers were written for; the size that counts is the measured one."""
    new_size: Annotated[int, Field(ge=1, le=1000)] = 25
    """Ceiling."""
    increment_percent: Annotated[float, Field(ge=1, le=1000)] = 150


@dataclass(frozen=True)
class _Pool:
    alias: str
    max_size: int
    share: int | None
    """What the server's connection limit leaves to each process; None if it was not read."""

    def target(self, parameters: PoolIncreaseParameters) -> int:
        wanted = math.ceil(self.max_size * (1 + parameters.increment_percent / 100))
        return min(wanted, parameters.new_size, self.share if self.share is not None else wanted)


class PoolIncrease(Strategy):
    name = "pool_increase"
    success_rate = 0.85
    cost_s = 6
    parameters = PoolIncreaseParameters

    def precondition(self, event: Event, fleet: Fleet, parameters: PoolIncreaseParameters) -> str | None:
        pools = as_mapping(event.measurements.get("pools"))
        if not pools:
            return "the process has no connection pool"
        found = _exhausted(event, fleet)
        if isinstance(found, str):
            return found
        if found.share is None:
            return f"the connection limit of {found.alias!r} has not been read, so there is no telling what it can bear"
        if parameters.new_size <= found.max_size:
            return (
                f"the pool's maximum is {found.max_size} already, and the runbook allows {parameters.new_size} at most"
            )
        if found.target(parameters) <= found.max_size:
            return f"no connections left on the server: {found.share} for each process, {found.max_size} in use"
        return None

    def plan(self, event: Event, fleet: Fleet, parameters: PoolIncreaseParameters) -> Plan:
        found = _exhausted(event, fleet)
        if isinstance(found, str):
            raise ValueError(found)  # noqa: TRY004 (the string is the reason)
        target = found.target(parameters)
        return Plan(
            command="apply",
            target=found.alias,
            values={"max_size": target},
            before={"max_size": found.max_size},
            why=f"maximum of pool {found.alias!r} from {found.max_size} to {target}, in every process",
        )


def _exhausted(event: Event, fleet: Fleet) -> _Pool | str:
    """The pool that ran out of connections while the database answers, or why there is none."""
    reasons: list[str] = []
    for alias, value in as_mapping(event.measurements.get("pools")).items():
        pool = as_mapping(value)
        size, maximum = as_number(pool.get("size")) or 0, as_number(pool.get("max")) or 0
        waiting = as_number(pool.get("requests_waiting")) or 0
        # The pool's count of requests that timed out only grows: whether this one did, its exception tells.
        timed_out = maximum > 0 and size >= maximum and _from_pool(event)
        if not waiting and not timed_out:
            reasons.append(f"nothing waits for a connection of {alias!r}")
        elif not maximum:
            reasons.append(f"the pool of {alias!r} has no maximum")
        elif _connecting_fails(event, fleet, alias, pool, full=size >= maximum):
            reasons.append(f"connecting to {alias!r} fails, and more connections can't help")
        else:
            return _Pool(alias, int(maximum), _share(event, fleet, alias))
    return "; ".join(reasons)


def _from_pool(event: Event) -> bool:
    return any(name.startswith("psycopg_pool.") for chain in event.error.classes for name in chain)


def _connecting_fails(event: Event, fleet: Fleet, alias: str, pool: dict[str, Any], *, full: bool) -> bool:
    """Whether attempts to connect are failing now. The counter only ever grows, so it is compared with what the same
    process's agent reported last; without that, failures count unless the pool is full of connections all the same."""
    failures = as_number(pool.get("connections_errors")) or 0
    if not failures:
        return False
    for instance in fleet.instances:
        earlier = as_mapping(as_mapping(instance.measurements.get("pools")).get(alias))
        if instance.id == event.instance and "connections_errors" in earlier:
            return failures > (as_number(earlier["connections_errors"]) or 0)
    return not full


def _share(event: Event, fleet: Fleet, alias: str) -> int | None:
    database = reading(event, fleet, "databases", alias)
    limit = as_number(database.get("max_connections"))
    if limit is None:
        return None
    reserved = as_number(database.get("reserved_connections")) or 0
    others = as_number(database.get("other_connections")) or 0
    processes = {one.id for one in fleet.instances}
    if event.instance:
        processes.add(event.instance)
    return max(0, math.floor((limit - reserved - others) / max(1, len(processes))))
