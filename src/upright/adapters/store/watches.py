"""Health watches: which runner probes a service, and what it has seen. One at a time; the next goes on from there."""

from __future__ import annotations

from sqlalchemy import text

from upright.adapters.store.database import Database, Row
from upright.services.ports import HealthWatch

_SEEN = """
    RETURNING failures, failing_since, reports,
              extract(epoch FROM clock_timestamp() - reported_at)::float8 AS reported_ago_s"""

_TAKE = text(f"""
    INSERT INTO upright.health_watch AS w (tenant, service, runner, leased_until)
    VALUES (:tenant, :service, :runner, clock_timestamp() + make_interval(secs => :lease_s))
    ON CONFLICT (tenant, service) DO UPDATE SET runner = excluded.runner, leased_until = excluded.leased_until
    WHERE w.runner = excluded.runner OR w.leased_until <= clock_timestamp()
    {_SEEN}""")  # noqa: S608  # constants only

_RECORD = text(f"""
    UPDATE upright.health_watch SET
        failures = CASE WHEN :failing THEN failures + CASE WHEN :reported THEN 0 ELSE 1 END ELSE 0 END,
        failing_since = CASE WHEN :failing THEN COALESCE(failing_since, clock_timestamp()) END,
        reports = CASE WHEN :failing THEN reports + CASE WHEN :reported THEN 1 ELSE 0 END ELSE 0 END,
        reported_at = CASE WHEN :failing THEN CASE WHEN :reported THEN clock_timestamp() ELSE reported_at END END
    WHERE tenant = :tenant AND service = :service AND runner = :runner
    {_SEEN}""")  # noqa: S608  # constants only


class Watches:
    _database: Database

    async def take_watch(self, tenant: str, service: str, runner: str, lease_s: float) -> HealthWatch | None:
        return _watch(
            await self._database.run(
                lambda tx: tx.row(_TAKE, tenant=tenant, service=service, runner=runner, lease_s=lease_s)
            )
        )

    async def record_watch(
        self, tenant: str, service: str, runner: str, *, failing: bool, reported: bool = False
    ) -> HealthWatch | None:
        return _watch(
            await self._database.run(
                lambda tx: tx.row(
                    _RECORD, tenant=tenant, service=service, runner=runner, failing=failing, reported=reported
                )
            )
        )


def _watch(row: Row | None) -> HealthWatch | None:
    return None if row is None else HealthWatch(**row)
