"""What was added for a time is taken away when that is over: by whichever replica of Upright lives then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from upright.errors import PlatformFailed
from upright.services.dependencies import Store
from upright.services.operating import ACTUATOR, TARGET
from upright.services.ports import Scaling
from upright.services.running import RunningService, revert

log = logging.getLogger("upright.platforms")

POLL_S = 1.0
TIMEOUT_S = 30.0
LEASE_S = 2 * TIMEOUT_S
"""A revert that fails is tried again after this."""


class Reverts:
    def __init__(self, store: Store, services: Mapping[tuple[str, str], RunningService], runner: str) -> None:
        self._store, self._services, self._runner = store, services, runner

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                for one in await self._store.due_scalings(self._runner, LEASE_S):
                    await self._revert(one)
            except Exception as error:
                log.warning("Scalings that are over could not be looked up: %r", error)
            await asyncio.sleep(POLL_S)

    async def _revert(self, scaling: Scaling) -> None:
        service = self._services.get((scaling.tenant, scaling.service))
        if service is None:
            log.warning("%s is no longer in platforms.yaml; what was added stays", scaling.service)
            await self._store.end_scaling(scaling, why="the service is no longer configured", before={}, after={})
            return
        if not await self._store.lock_actuator(
            scaling.tenant, scaling.service, ACTUATOR, TARGET, recovery_id=scaling.recovery_id, ttl_s=LEASE_S
        ):
            return  # a recovery scales or restarts it at this moment
        try:
            done = await revert(self._store, service, scaling, "its time is over", timeout_s=TIMEOUT_S)
        except PlatformFailed as error:
            log.warning("%s could not be scaled back, trying again: %s", scaling.service, error)
        else:
            log.info("%s was scaled back: %s", scaling.service, done)
        finally:
            await self._store.unlock_actuators(scaling.recovery_id)
