"""What a strategy is: when it applies, and what exactly it would do.

A strategy decides; it never acts itself. Recovery (services/recovery.py) carries its plan out, so that locks, fencing,
evidence and reverts are written once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from upright.domain.directive import Directive, RetryPolicy
from upright.domain.event import Event
from upright.domain.message import Json
from upright.services.ports import Instance, ReplicaState, Scaling


class Parameters(BaseModel):
    """Base of every strategy's parameters, as they stand in a runbook."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class PlatformState:
    """What is known of the processes of a service by their manager."""

    replicas: Sequence[ReplicaState]
    max_processes: int
    max_memory_mb: int | None = None
    scalings: Sequence[Scaling] = ()
    """What has been added for a time, and still is there."""
    probed: bool = False
    """Whether every replica has a health address."""

    @property
    def problem(self) -> str:
        return "; ".join(one.problem for one in self.replicas if one.problem)

    def base(self, replica: ReplicaState) -> int:
        """How many processes it has when nothing is added."""
        for one in self.scalings:
            if one.replica == replica.name and one.incarnation == replica.incarnation:
                return one.base
        return len(replica.processes)


@dataclass(frozen=True)
class Fleet:
    """What is known of the service's processes when a strategy is considered."""

    instances: Sequence[Instance] = ()
    desired: Sequence[Directive] = ()
    """The directives in force."""
    waiter_present: bool = False
    platform: PlatformState | None = None
    """Where its processes run, if they may be acted on from here."""
    recent_errors: int = 0
    """Errors of this incident within the last minute."""

    def announces(self, strategy: str, target: str, *, any_route: bool = True) -> bool:
        """Whether a process of the service could act on the target; `route:*` stands for every route."""
        wanted = {target, "route:*"} if any_route and target.startswith("route:") else {target}
        if target.startswith("upstream:"):
            # A process that has not called it yet learns of it with the directive.
            wanted.add("route:*")
        for instance in self.instances:
            known = as_mapping(as_mapping(instance.capabilities.get("strategies")).get(strategy))
            if wanted & set(as_list(known.get("targets"), default="")):
                return True
        return False

    def first(self, preferred: str) -> str:
        """Id of the process that goes first: the preferred one if it lives, else the last seen."""
        living = sorted(self.instances, key=lambda one: one.seen_at, reverse=True)
        if not living or any(one.id == preferred for one in living):
            return preferred
        return living[0].id

    @property
    def out_of_reach(self) -> str | None:
        """Why the service's processes can't be acted on from here, or None if they can."""
        if self.platform is None:
            return "the service has no entry in platforms.yaml, so its processes can't be reached"
        return self.platform.problem or None

    def active(self, strategy: str, target: str) -> Directive | None:
        return next((one for one in self.desired if one.strategy == strategy and one.target == target), None)

    def able(self, command: str) -> list[Instance]:
        """Processes whose agent can carry out a kind of command, most recently seen first. One that announces no
        kinds is taken to know them all."""
        found = [one for one in self.instances if command in as_list(one.capabilities.get("commands"), default=command)]
        return sorted(found, key=lambda one: one.seen_at, reverse=True)


@dataclass(frozen=True)
class Plan:
    """What is to be done: absolute values, decided from measurements."""

    command: Literal["apply", "retry", "platform"]
    target: str = ""
    values: Json = field(default_factory=dict[str, object])
    before: Json = field(default_factory=dict[str, object])
    """The readings that the values were computed from."""
    scope: Literal["process", "once"] = "process"
    retry: RetryPolicy | None = None
    shared: bool = True
    """Whether a directive that is in force for the target serves as well, whatever its values."""
    why: str = ""
    settle_s: float = 0.0
    """How long after it was applied the failed operation is to be tried again; 0: at once, by who applied it."""
    half_open: bool = False
    """Whether requests of users that a half-open circuit lets through are evidence too."""
    lasts: bool = True
    """False: it is withdrawn as soon as the failed operation is seen to work."""


class Strategy(ABC):
    name: ClassVar[str]
    success_rate: ClassVar[float]
    """Where scoring starts, 0 to 1."""
    cost_s: ClassVar[float]
    """Seconds that trying it takes, for scoring."""
    on_platform: ClassVar[bool] = False
    """Whether it needs to know the processes as their manager does."""
    parameters: ClassVar[type[Parameters]] = Parameters

    @abstractmethod
    def precondition(self, event: Event, fleet: Fleet, parameters: Any) -> str | None:
        """Why it doesn't apply to this error, or None if it does."""

    def not_yet(self, event: Event, fleet: Fleet, parameters: Any) -> str | None:
        """Why it is too early for it, or None. Asked when its turn comes, since others are tried before."""
        return None

    @abstractmethod
    def plan(self, event: Event, fleet: Fleet, parameters: Any) -> Plan:
        """What it would do. Only called where the precondition is met."""


def route_of(event: Event) -> str | None:
    """The failed request's route, as targets name it."""
    request = event.request
    return None if request is None or not (request.route or request.view) else f"route:{request.route}"


def as_mapping(value: object) -> dict[str, Any]:
    """Measurements come from outside: anything that is not an object counts as no reading."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}  # pyright: ignore


def as_list(value: object, *, default: str) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else [default]  # pyright: ignore


def as_number(value: object) -> float | None:
    """A finite number that is not negative, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < float("inf") else None


def reading(event: Event, fleet: Fleet, kind: str, alias: str) -> dict[str, Any]:
    """Readings of an alias: the failing process's own, else the newest that an agent has sent."""
    own = as_mapping(as_mapping(event.measurements.get(kind)).get(alias))
    if own:
        return own
    for instance in sorted(fleet.instances, key=lambda one: one.seen_at, reverse=True):
        found = as_mapping(as_mapping(instance.measurements.get(kind)).get(alias))
        if found:
            return found
    return {}


def announced_targets(fleet: Fleet, strategy: str) -> set[str] | None:
    """What the service's processes can act on by a strategy; None where no process has said what it can do."""
    announced = [as_mapping(one.capabilities.get("strategies")) for one in fleet.instances]
    if not any(announced):
        return None
    return {
        target
        for one in announced
        for target in as_list(as_mapping(one.get(strategy)).get("targets"), default="")
        if target
    }
