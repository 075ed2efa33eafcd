"""resource_scale: more worker processes for a time; where memory is short, new processes for those that grew."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from upright.domain.event import Event
from upright.domain.matching import names
from upright.domain.message import Json
from upright.services.ports import ReplicaState
from upright.services.strategies.base import Fleet, Parameters, Plan, PlatformState, Strategy, as_number

MEBIBYTE = 1024 * 1024
MEMORY_ERRORS = frozenset({"MemoryError", "OutOfMemoryError"})


class ResourceScaleParameters(Parameters):
    resource_type: Literal["cpu", "memory"] = "cpu"
    scale_factor: Annotated[float, Field(gt=1, le=10)] = 1.5
    """For `cpu`: of the number of processes that there were at the start. For `memory`: a process with more than so
    many times the memory of the smallest one has grown."""
    auto_scale: bool = True
    """False: never scale; the step only says what it would do."""


class ResourceScale(Strategy):
    name = "resource_scale"
    success_rate = 0.80
    cost_s = 20
    on_platform = True
    parameters = ResourceScaleParameters

    def precondition(self, event: Event, fleet: Fleet, parameters: ResourceScaleParameters) -> str | None:
        platform = fleet.platform
        if platform is None or fleet.out_of_reach:
            return fleet.out_of_reach
        refusal = _not_allowed(fleet)
        if refusal:
            return refusal
        if of_memory(event, parameters):
            unmet = None if _grown(platform, parameters) else _none_grown(platform, parameters)
        else:
            unmet = _no_room(platform, _wanted(platform, fleet, parameters), fleet)
        if unmet is None and not parameters.auto_scale:
            return f"auto_scale is off in the runbook; it would be: {self.plan(event, fleet, parameters).why}"
        return unmet

    def plan(self, event: Event, fleet: Fleet, parameters: ResourceScaleParameters) -> Plan:
        platform = fleet.platform
        assert platform is not None  # noqa: S101 (the precondition is met)
        before: Json = {"processes": {one.name: len(one.processes) for one in platform.replicas}}
        if of_memory(event, parameters):
            grown = _grown(platform, parameters)
            told = ", ".join(f"{pid} ({size})" for pids in grown.values() for pid, size in pids.items())
            return Plan(
                command="platform",
                target="recycle",
                values={"recycle": {replica: list(pids) for replica, pids in grown.items()}},
                before={**before, "memory_mb": _memory(platform)},
                why=f"processes that grew are replaced, one after the other: {told}",
            )
        wanted = _wanted(platform, fleet, parameters)
        changes = [f"{name} from {before_} to {wanted[name]}" for name, before_ in _counts(platform).items()]
        return Plan(
            command="platform",
            target="scale",
            values={"processes": wanted},
            before=before,
            why=f"processes of {', '.join(changes)}, for a time",
        )


def of_memory(event: Event, parameters: ResourceScaleParameters) -> bool:
    """More processes take more memory, so that they can't be the answer where memory ran out."""
    return parameters.resource_type == "memory" or not MEMORY_ERRORS.isdisjoint(names(event.error))


def _not_allowed(fleet: Fleet) -> str | None:
    """The application's word counts, not the runbook's. Its processes agree, or nothing is done."""
    if not fleet.instances:
        return "no process of the service has said whether it may be scaled (AUTO_SCALE_ON_ERROR)"
    if not all(one.settings.get("auto_scale_on_error") is True for one in fleet.instances):
        return "AUTO_SCALE_ON_ERROR is not set in the application"
    return None


def _most(fleet: Fleet) -> float:
    return min((as_number(one.settings.get("max_scale_factor")) or 1.0 for one in fleet.instances), default=1.0)


def _counts(platform: PlatformState) -> dict[str, int]:
    return {one.name: len(one.processes) for one in platform.replicas}


def _wanted(platform: PlatformState, fleet: Fleet, parameters: ResourceScaleParameters) -> dict[str, int]:
    """Against the number at the start, so that one scaling after another doesn't multiply."""
    found: dict[str, int] = {}
    for one in platform.replicas:
        base = platform.base(one)
        ceiling = min(math.floor(base * _most(fleet) + 1e-9), platform.max_processes)
        # One that is there already is not taken away: it may be somebody else's.
        found[one.name] = max(len(one.processes), min(math.ceil(base * parameters.scale_factor - 1e-9), ceiling))
    return found


def _no_room(platform: PlatformState, wanted: dict[str, int], fleet: Fleet) -> str | None:
    added = {one.name: wanted[one.name] - len(one.processes) for one in platform.replicas}
    if not any(added.values()):
        counts = ", ".join(f"{name} has {count}" for name, count in _counts(platform).items())
        bounds = f"MAX_SCALE_FACTOR is {_most(fleet):g}, max_processes {platform.max_processes}"
        return f"no more processes are allowed: {counts}, {bounds}"
    for one in platform.replicas:
        largest = max((process.memory_bytes or 0 for process in one.processes), default=0)
        needed, left = added[one.name] * largest, one.memory_available_bytes
        if left is not None and needed > left:
            return (
                f"{added[one.name]} more processes of {one.name} need some {needed // MEBIBYTE} MiB of memory, and the "
                f"host has {left // MEBIBYTE} left"
            )
    return None


def _grown(platform: PlatformState, parameters: ResourceScaleParameters) -> dict[str, dict[int, str]]:
    """Processes to replace, largest first, with their size."""
    found: dict[str, dict[int, str]] = {}
    for one in platform.replicas:
        sizes = _sizes(one)
        if not sizes:
            continue
        limit = min(sizes.values()) * parameters.scale_factor
        if platform.max_memory_mb is not None:
            limit = min(limit, platform.max_memory_mb * MEBIBYTE)
        above = sorted(((size, pid) for pid, size in sizes.items() if size > limit), reverse=True)
        if above:
            found[one.name] = {pid: f"{size // MEBIBYTE} MiB" for size, pid in above}
    return found


def _none_grown(platform: PlatformState, parameters: ResourceScaleParameters) -> str:
    if not any(_sizes(one) for one in platform.replicas):
        return "the memory of its processes can't be read from here"
    limit = "" if platform.max_memory_mb is None else f", nor more than {platform.max_memory_mb} MiB"
    return (
        f"no process has grown: none holds more than {parameters.scale_factor:g} times what the smallest does{limit} "
        f"({_memory(platform)} MiB), and more processes would need more memory"
    )


def _sizes(replica: ReplicaState) -> dict[int, int]:
    return {one.pid: one.memory_bytes for one in replica.processes if one.memory_bytes is not None}


def _memory(platform: PlatformState) -> dict[str, list[int]]:
    return {one.name: sorted(size // MEBIBYTE for size in _sizes(one).values()) for one in platform.replicas}
