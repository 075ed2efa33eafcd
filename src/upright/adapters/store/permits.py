"""Permits: places within the limits. One lock for all of them, so that two replicas can't both take the last one."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text

from upright.adapters.store import switches
from upright.adapters.store.database import Database, Transaction
from upright.domain.verdict import Verdict
from upright.services.guardrails.limits import Count, Scope, refusal
from upright.services.guardrails.ports import Occupant
from upright.services.ports import ActionRecord

_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('upright.permit'))")

_OWN = text("""
    UPDATE upright.permit SET ended_at = NULL WHERE recovery_id = :recovery_id AND strategy = :strategy
    RETURNING recovery_id""")

# An action of a recovery that has ended is over, whatever became of its process.
_COUNT = text("""
    SELECT count(*) FILTER (WHERE p.taken_at > clock_timestamp() - interval '1 hour') AS last_hour,
           count(DISTINCT p.recovery_id) FILTER (WHERE p.ended_at IS NULL AND r.status IN ('queued', 'running')
                                                   AND p.recovery_id <> :recovery_id) AS under_way,
           extract(epoch FROM clock_timestamp() - max(p.taken_at)) AS since_last_s
    FROM upright.permit p JOIN upright.recovery r ON r.id = p.recovery_id
    WHERE p.taken_at > clock_timestamp() - interval '1 day'
      AND (CAST(:service AS text) IS NULL OR p.tenant = :tenant AND p.service = :service)
      AND (CAST(:runbook AS text) IS NULL OR p.runbook = :runbook)
      AND (CAST(:strategy AS text) IS NULL OR p.strategy = :strategy)""")

_TAKE = text("""
    INSERT INTO upright.permit (recovery_id, strategy, tenant, service, runbook)
    VALUES (:recovery_id, :strategy, :tenant, :service, :runbook)""")

_END = text("""
    UPDATE upright.permit SET ended_at = clock_timestamp()
    WHERE recovery_id = :recovery_id AND strategy = :strategy AND ended_at IS NULL""")

_GIVE_BACK = text("DELETE FROM upright.permit WHERE recovery_id = :recovery_id AND strategy = :strategy")


class Permits:
    _database: Database

    async def admit(self, action: Occupant) -> str | None:
        async def work(tx: Transaction) -> str | None:
            await switches.pass_by(tx, action.tenant, action.service)
            await tx.run(_LOCK)
            if await tx.row(_OWN, recovery_id=action.recovery_id, strategy=action.strategy) is not None:
                return None
            why = refusal([(scope, await _count(tx, action, scope)) for scope in action.scopes])
            if why is None:
                await tx.run(
                    _TAKE,
                    recovery_id=action.recovery_id,
                    strategy=action.strategy,
                    tenant=action.tenant,
                    service=action.service,
                    runbook=action.runbook,
                )
            return why

        return await self._database.run(work)

    async def give_back(self, recovery_id: UUID, strategy: str) -> None:
        await self._database.run(lambda tx: tx.run(_GIVE_BACK, recovery_id=recovery_id, strategy=strategy))


async def _count(tx: Transaction, action: Occupant, scope: Scope) -> Count:
    row = await tx.row(
        _COUNT,
        recovery_id=action.recovery_id,
        tenant=action.tenant,
        service=scope.service,
        runbook=scope.runbook,
        strategy=scope.strategy,
    )
    if row is None:
        return Count()
    since = row["since_last_s"]
    return Count(row["last_hour"], row["under_way"], None if since is None else float(since))


async def end(tx: Transaction, action: ActionRecord) -> None:
    """The action has its verdict."""
    idle = action.verdict in (Verdict.SKIPPED, Verdict.REFUSED)
    await tx.run(_GIVE_BACK if idle else _END, recovery_id=action.recovery_id, strategy=action.strategy)
