"""Scalings: processes that were added for a time. A row stays until they have been taken away again."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from upright.adapters.store import audit, switches
from upright.adapters.store.database import Database, Row, Transaction
from upright.domain.message import Json
from upright.errors import StaleEpoch
from upright.services.ports import Scaling

_COLUMNS = "tenant, service, replica, base, processes, incarnation, recovery_id"

_LIST = text(f"SELECT {_COLUMNS} FROM upright.scaling WHERE tenant = :tenant AND service = :service ORDER BY replica")  # noqa: S608

_FENCE = text("""
    SELECT id FROM upright.recovery
    WHERE id = :recovery_id AND epoch = :epoch AND status IN ('queued', 'running') FOR SHARE""")

_PUT = text("""
    INSERT INTO upright.scaling
        (tenant, service, replica, base, processes, incarnation, recovery_id, expires_at)
    VALUES (:tenant, :service, :replica, :base, :processes, :incarnation, :recovery_id,
            clock_timestamp() + make_interval(secs => :ttl_s))
    ON CONFLICT (tenant, service, replica) DO UPDATE SET
        base = excluded.base, processes = excluded.processes, incarnation = excluded.incarnation,
        recovery_id = excluded.recovery_id, expires_at = excluded.expires_at, runner = NULL, leased_until = NULL""")

# Not while its recovery is under way, which decides about it; nor while another one scales or restarts the service.
_DUE = text(f"""
    UPDATE upright.scaling SET runner = :runner, leased_until = clock_timestamp() + make_interval(secs => :lease_s)
    WHERE (tenant, service, replica) IN (
        SELECT s.tenant, s.service, s.replica FROM upright.scaling s JOIN upright.recovery r ON r.id = s.recovery_id
        WHERE s.expires_at <= clock_timestamp() AND r.status NOT IN ('queued', 'running')
          AND (s.leased_until IS NULL OR s.leased_until <= clock_timestamp())
          AND NOT EXISTS (
              SELECT FROM upright.actuator_lock l
              WHERE l.tenant = s.tenant AND l.service = s.service AND l.actuator = 'platform'
                AND l.expires_at > clock_timestamp())
        FOR UPDATE OF s SKIP LOCKED)
    RETURNING {_COLUMNS}""")  # noqa: S608  # constants only

_END = text("""
    DELETE FROM upright.scaling
    WHERE tenant = :tenant AND service = :service AND replica = :replica AND recovery_id = :recovery_id""")


class Scalings:
    _database: Database

    async def scalings(self, tenant: str, service: str) -> Sequence[Scaling]:
        return [
            _scaling(row) for row in await self._database.run(lambda tx: tx.rows(_LIST, tenant=tenant, service=service))
        ]

    async def put_scaling(self, scaling: Scaling, *, ttl_s: float, epoch: int) -> None:
        async def work(tx: Transaction) -> None:
            if await tx.row(_FENCE, recovery_id=scaling.recovery_id, epoch=epoch) is None:
                raise StaleEpoch
            if ttl_s > 0:
                await switches.pass_by(tx, scaling.tenant, scaling.service)
            await tx.run(
                _PUT,
                **_place(scaling),
                base=scaling.base,
                processes=scaling.processes,
                incarnation=scaling.incarnation,
                ttl_s=ttl_s,
            )
            await audit.add(
                tx,
                tenant=scaling.tenant,
                service=scaling.service,
                who="service",
                what="scaling.put",
                subject=scaling.recovery_id,
                before={"replica": scaling.replica, "processes": scaling.base},
                after={"service": scaling.service, "processes": scaling.processes, "ttl_s": ttl_s},
            )

        await self._database.run(work)

    async def due_scalings(self, runner: str, lease_s: float) -> Sequence[Scaling]:
        found = await self._database.run(lambda tx: tx.rows(_DUE, runner=runner, lease_s=lease_s))
        return [_scaling(row) for row in found]

    async def end_scaling(self, scaling: Scaling, *, why: str, before: Json, after: Json) -> None:
        async def work(tx: Transaction) -> None:
            if await tx.run(_END, **_place(scaling)):
                await audit.add(
                    tx,
                    tenant=scaling.tenant,
                    service=scaling.service,
                    who="service",
                    what="scaling.reverted",
                    subject=scaling.recovery_id,
                    why=why,
                    before={"service": scaling.service, "replica": scaling.replica, **before},
                    after=after,
                )

        await self._database.run(work)


def _place(scaling: Scaling) -> dict[str, object]:
    return {
        "tenant": scaling.tenant,
        "service": scaling.service,
        "replica": scaling.replica,
        "recovery_id": scaling.recovery_id,
    }


def _scaling(row: Row) -> Scaling:
    return Scaling(**row)
