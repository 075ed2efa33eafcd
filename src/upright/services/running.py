"""A service whose processes can be acted on from here: its replicas, and what may be done to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from upright.domain.platform import ServiceRules
from upright.domain.verdict import Evidence
from upright.services.ports import Platform, PlatformStore, Scaling
from upright.services.strategies.base import PlatformState


@dataclass(frozen=True)
class RunningService:
    tenant: str
    name: str
    rules: ServiceRules
    replicas: Sequence[Platform]

    def replica(self, name: str) -> Platform | None:
        return next((one for one in self.replicas if one.name == name), None)

    async def state(self, store: PlatformStore) -> PlatformState:
        scalings, replicas = await asyncio.gather(
            store.scalings(self.tenant, self.name), asyncio.gather(*(one.state() for one in self.replicas))
        )
        return PlatformState(
            replicas=replicas,
            max_processes=self.rules.max_processes,
            max_memory_mb=self.rules.max_memory_mb,
            scalings=scalings,
            probed=all(one.health is not None for one in self.replicas),
        )

    async def health(self) -> dict[str, Evidence]:
        """By replica, of those that have a health address."""
        probed = [(one.name, one.health) for one in self.replicas if one.health is not None]
        seen = await asyncio.gather(*(health.look() for _, health in probed))
        return dict(zip([name for name, _ in probed], seen, strict=True))


def together(seen: dict[str, Evidence]) -> Evidence | None:
    """One evidence for the service: a replica that fails is a service that fails."""
    if not seen:
        return None
    failed = {name: one for name, one in seen.items() if one.outcome != "passed"}
    name, worst = next(iter(failed.items() or seen.items()))
    detail = f"{name}: {worst.detail}" if len(seen) > 1 and failed else worst.detail
    return worst.model_copy(update={"detail": detail})


async def revert(store: PlatformStore, service: RunningService, scaling: Scaling, why: str, *, timeout_s: float) -> str:
    """Take back what a scaling has added, and no more: others may have changed the number meanwhile. Says what was
    measured. Raises PlatformFailed."""
    platform = service.replica(scaling.replica)
    if platform is None:
        await store.end_scaling(scaling, why=f"{why}; the replica is no longer configured", before={}, after={})
        return f"{scaling.replica} is no longer configured"
    before = await platform.state()
    count = len(before.processes)
    if before.incarnation != scaling.incarnation and not before.problem:
        why = f"{why}; its process manager was started anew meanwhile"
    else:
        wanted = max(scaling.base, count - (scaling.processes - scaling.base))
        if before.problem or count > wanted:
            await platform.scale(wanted, timeout_s=timeout_s)
    after = len((await platform.state()).processes)
    await store.end_scaling(scaling, why=why, before={"processes": count}, after={"processes": after})
    return f"{scaling.replica} from {count} to {after}"
