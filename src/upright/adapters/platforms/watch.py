"""Errors that nobody raises: a hung worker, a deploy that failed. Each service's health addresses are probed, and an
outage becomes a ServiceUnavailableError, taken in as one that the application had sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from uuid import NAMESPACE_URL, uuid5

from upright.domain.event import ErrorDetail, Event
from upright.domain.fingerprint import fingerprint
from upright.domain.verdict import Evidence
from upright.services.dependencies import Store
from upright.services.ports import HealthWatch, Launcher, PlatformStore
from upright.services.routing import Router
from upright.services.running import RunningService

log = logging.getLogger("upright.health")

PATIENCE = 3
"""A watch passes to another runner after this many intervals without a sign of life."""


class Watch:
    def __init__(
        self,
        store: Store,
        watches: PlatformStore,
        router: Router,
        launcher: Launcher,
        services: Iterable[RunningService],
        runner: str,
    ) -> None:
        self._store, self._watches = store, watches
        self._router, self._launcher, self._runner = router, launcher, runner
        self._services = [one for one in services if any(replica.health is not None for replica in one.replicas)]

    async def run(self) -> None:
        """Until it is cancelled."""
        await asyncio.gather(*(self._repeat(one) for one in self._services))

    async def _repeat(self, service: RunningService) -> None:
        while True:
            try:
                await self.probe(service)
            except Exception as error:
                log.warning("The health of %s could not be watched: %r", service.name, error)
            await asyncio.sleep(service.rules.health.interval_s)

    async def probe(self, service: RunningService) -> None:
        """Once, if it is this runner's turn."""
        rules = service.rules.health
        lease_s = PATIENCE * (rules.interval_s + 3 * rules.timeout_s)
        if await self._watches.take_watch(service.tenant, service.name, self._runner, lease_s) is None:
            return
        seen = await service.health()
        failed = {name: one for name, one in seen.items() if one.outcome != "passed"}
        found = await self._watches.record_watch(service.tenant, service.name, self._runner, failing=bool(failed))
        if found is None or not failed or found.failures < rules.failures:
            return
        if found.reported_ago_s is None or found.reported_ago_s >= rules.repeat_s:
            await self._report(service, found, failed)
            await self._watches.record_watch(service.tenant, service.name, self._runner, failing=True, reported=True)

    async def _report(self, service: RunningService, watch: HealthWatch, failed: Mapping[str, Evidence]) -> None:
        # The same outage makes the same delivery, should this runner die before it has noted that it was sent.
        since = watch.failing_since or datetime.now(UTC)
        delivery_id = f"health:{service.name}:{since.isoformat()}:{watch.reports}"
        # It fails with all that is in force now: none of that can be what is to end it.
        version, _ = await self._store.desired(service.tenant, service.name)
        details = "; ".join(f"{name}: {one.detail}" for name, one in failed.items())
        event = Event(
            error_id=uuid5(NAMESPACE_URL, f"{service.tenant}:{delivery_id}"),
            service=service.name,
            environment=service.rules.environment,
            occurred_at=datetime.now(UTC),
            origin="health",
            desired_version=version,
            error=ErrorDetail(
                type="ServiceUnavailableError",
                message=f"The health address of {service.name} fails: {details}"[:4000],
                classes=[["ServiceUnavailableError"]],
                fingerprint=["health", service.name],
            ),
            context={"replicas": sorted(failed), "failures": watch.failures},
        )
        routing = self._router.route(event)
        accepted = await self._store.accept(
            service.tenant,
            delivery_id,
            event,
            fingerprint=fingerprint(event),
            runbook=routing.runbook,
            severity=routing.severity,
            cooldown_s=routing.cooldown_s,
            queued=True,
            relapse_window_s=routing.relapse_window_s,
        )
        log.warning("%s is down (%s): error %s", service.name, details, accepted.error_id)
        if accepted.role == "opened" and accepted.recovery is not None:
            self._launcher.submit(accepted.recovery)
