"""Actuator locks: one recovery at a time for each actuator target."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text

from upright.adapters.store.database import Database

_LOCK = text("""
    INSERT INTO upright.actuator_lock AS l (tenant, service, actuator, target, recovery_id, expires_at)
    VALUES (:tenant, :service, :actuator, :target, :recovery_id,
            clock_timestamp() + make_interval(secs => :ttl_s))
    ON CONFLICT (tenant, service, actuator, target) DO UPDATE SET
        recovery_id = excluded.recovery_id, expires_at = excluded.expires_at
    WHERE l.recovery_id = excluded.recovery_id OR l.expires_at <= clock_timestamp()
    RETURNING recovery_id""")

_UNLOCK = text("DELETE FROM upright.actuator_lock WHERE recovery_id = :recovery_id")


class Locks:
    _database: Database

    async def lock_actuator(
        self, tenant: str, service: str, actuator: str, target: str, *, recovery_id: UUID, ttl_s: float
    ) -> bool:
        row = await self._database.run(
            lambda tx: tx.row(
                _LOCK,
                tenant=tenant,
                service=service,
                actuator=actuator,
                target=target,
                recovery_id=recovery_id,
                ttl_s=ttl_s,
            )
        )
        return row is not None

    async def unlock_actuators(self, recovery_id: UUID) -> None:
        await self._database.run(lambda tx: tx.run(_UNLOCK, recovery_id=recovery_id))
