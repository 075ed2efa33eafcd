"""Holds: what keeps failing is left to people until they say so, or some time has passed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import text

from upright.adapters.store import audit
from upright.adapters.store.database import Database, Row, Transaction
from upright.domain.guardrails import Guardrails
from upright.errors import NotFound, StaleEpoch
from upright.services.guardrails.holds import failing_service, repeated_failures
from upright.services.guardrails.ports import Hold

_ACTIVE = text("""
    SELECT * FROM upright.hold
    WHERE tenant = :tenant AND service = :service AND fingerprint IN ('', :fingerprint) AND until > clock_timestamp()
    ORDER BY fingerprint = '', until DESC LIMIT 1""")

_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('upright.hold ' || :tenant || ' ' || :service))")

# How the recoveries that acted have ended since they were last held or reset, the latest first. One that relapsed has
# failed where that counts against its action: a retry that is needed again, or a change that expired, did help.
_ENDED = text("""
    SELECT r.id, r.finished_at,
           NOT (r.status = 'recovered' OR r.status = 'relapsed' AND EXISTS (
               SELECT FROM upright.action a WHERE a.recovery_id = r.id AND a.verdict = 'recovered')) AS failed,
           r.finished_at + make_interval(secs => :hold_s) AS until,
           r.finished_at + make_interval(secs => :hold_s) > clock_timestamp() AS due
    FROM upright.recovery r
    WHERE r.tenant = :tenant AND r.service = :service AND (:fingerprint = '' OR r.fingerprint = :fingerprint)
      AND r.status NOT IN ('queued', 'running', 'cancelled')
      AND (r.status = 'recovered' OR EXISTS (SELECT FROM upright.permit p WHERE p.recovery_id = r.id))
      AND r.finished_at > COALESCE(greatest(
          (SELECT max(at) FROM upright.hold_reset
           WHERE tenant = :tenant AND service = :service AND fingerprint IN ('', :fingerprint)),
          (SELECT max(until) FROM upright.hold
           WHERE tenant = :tenant AND service = :service AND fingerprint = :fingerprint)), '-infinity')
    ORDER BY r.finished_at DESC LIMIT :limit""")

_BEGIN = text("""
    INSERT INTO upright.hold (tenant, service, fingerprint, reason, recovery_id, until)
    VALUES (:tenant, :service, :fingerprint, :reason, :recovery_id, :until)
    RETURNING *""")

_LIST = text("SELECT * FROM upright.hold WHERE until > clock_timestamp() ORDER BY began_at")

_WHICH = text("""
    SELECT DISTINCT tenant, service, CASE WHEN service = :which THEN '' ELSE fingerprint END AS fingerprint
    FROM upright.incident WHERE service = :which OR fingerprint = :which""")

_END = text("""
    UPDATE upright.hold SET until = clock_timestamp()
    WHERE tenant = :tenant AND service = :service AND (:fingerprint = '' OR fingerprint = :fingerprint)
      AND until > clock_timestamp()""")

_RESET = text("""
    INSERT INTO upright.hold_reset (tenant, service, fingerprint) VALUES (:tenant, :service, :fingerprint)
    ON CONFLICT (tenant, service, fingerprint) DO UPDATE SET at = clock_timestamp()""")

_WITHHOLD = text("""
    UPDATE upright.recovery SET withheld = :why
    WHERE id = :id AND epoch = :epoch AND status IN ('queued', 'running') RETURNING id""")

_TOLD = text("""
    SELECT EXISTS (SELECT FROM upright.alert a JOIN upright.recovery r ON r.id = a.recovery_id
                   WHERE r.incident_id = :incident_id AND a.recorded_at >= :since AND a.status = 'sent') AS told""")


class Holds:
    _database: Database

    async def hold(self, tenant: str, service: str, fingerprint: str, guardrails: Guardrails) -> Hold | None:
        where = {"tenant": tenant, "service": service}

        async def work(tx: Transaction) -> Hold | None:
            active = await tx.row(_ACTIVE, **where, fingerprint=fingerprint)
            if active is not None:
                return _hold(active)
            await tx.run(_LOCK, **where)
            active = await tx.row(_ACTIVE, **where, fingerprint=fingerprint)
            if active is not None:
                return _hold(active)
            one, all_of_it = guardrails.repeated_failures, guardrails.failing_service
            ended = await tx.rows(_ENDED, **where, fingerprint=fingerprint, hold_s=one.hold_s, limit=one.failures)
            begun = await _begin(
                tx, where, fingerprint, ended, repeated_failures(one, [row["failed"] for row in ended])
            )
            if begun is None:
                ended = await tx.rows(_ENDED, **where, fingerprint="", hold_s=all_of_it.hold_s, limit=all_of_it.window)
                begun = await _begin(tx, where, "", ended, failing_service(all_of_it, [row["failed"] for row in ended]))
            return begun

        return await self._database.run(work)

    async def holds(self) -> Sequence[Hold]:
        return [_hold(row) for row in await self._database.run(lambda tx: tx.rows(_LIST))]

    async def reset(self, which: str, *, by: str, why: str = "") -> int:
        async def work(tx: Transaction) -> int:
            found = await tx.rows(_WHICH, which=which)
            if not found:
                raise NotFound(f"There is no service and no fingerprint {which!r}.")
            for row in found:
                ended = await tx.run(_END, **row)
                await tx.run(_RESET, **row)
                await audit.add(
                    tx,
                    tenant=row["tenant"],
                    service=row["service"],
                    who=by,
                    what="hold.reset",
                    subject=which,
                    why=why,
                    after={"holds_ended": ended},
                )
            return len(found)

        return await self._database.run(work)

    async def withhold(self, recovery_id: UUID, *, epoch: int, why: str) -> None:
        if await self._database.run(lambda tx: tx.row(_WITHHOLD, id=recovery_id, epoch=epoch, why=why)) is None:
            raise StaleEpoch

    async def told_since(self, incident_id: UUID, since: datetime) -> bool:
        row = await self._database.run(lambda tx: tx.row(_TOLD, incident_id=incident_id, since=since))
        return row is not None and bool(row["told"])


async def _begin(
    tx: Transaction, where: dict[str, str], fingerprint: str, ended: Sequence[Row], reason: str | None
) -> Hold | None:
    if reason is None or not ended[0]["due"]:
        return None
    latest = ended[0]
    row = await tx.row(
        _BEGIN, **where, fingerprint=fingerprint, reason=reason, recovery_id=latest["id"], until=latest["until"]
    )
    await audit.add(
        tx,
        tenant=where["tenant"],
        service=where["service"],
        who="service",
        what="hold.begun",
        subject=fingerprint or where["service"],
        why=reason,
        after={"until": str(latest["until"]), "recovery_id": str(latest["id"])},
    )
    return None if row is None else _hold(row)


def _hold(row: Row) -> Hold:
    names = ("tenant", "service", "fingerprint", "reason", "began_at", "until", "recovery_id")
    return Hold(**{name: row[name] for name in names})
