"""Approvals: questions to people, and what they have said. The first decision stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID, uuid4

from sqlalchemy import text

from upright.adapters.store import audit
from upright.adapters.store.database import Database, Row, Transaction, as_json
from upright.domain.message import Json
from upright.errors import NotFound, StaleEpoch
from upright.services.guardrails.ports import Approval, Via

_SELECT = """
    SELECT a.*, r.tenant, r.service, r.runbook,
           extract(epoch FROM a.expires_at - clock_timestamp()) AS expires_in_s
    FROM upright.approval a JOIN upright.recovery r ON r.id = a.recovery_id """

_ONE = text(f"{_SELECT} WHERE a.id = :id")
_OF_RECOVERY = text(f"{_SELECT} WHERE a.recovery_id = :recovery_id")
_LIST = text(f"""{_SELECT}
    WHERE NOT :waiting OR a.status = 'waiting' AND a.expires_at > clock_timestamp()
      AND r.status IN ('queued', 'running')
    ORDER BY a.created_at DESC LIMIT :limit""")

_ASK = text("""
    WITH held AS (
        SELECT id FROM upright.recovery
        WHERE id = :recovery_id AND epoch = :epoch AND status IN ('queued', 'running') FOR SHARE
    )
    INSERT INTO upright.approval (id, recovery_id, strategy, target, "values", plan, expires_at)
    SELECT :id, id, :strategy, :target, CAST(:values AS jsonb), :plan,
           clock_timestamp() + make_interval(secs => :within_s) FROM held
    ON CONFLICT (recovery_id, strategy) DO UPDATE SET plan = approval.plan
    RETURNING id""")

_EXPIRE = text("""
    UPDATE upright.approval SET status = 'expired', via = 'upright', decided_at = clock_timestamp()
    WHERE id = :id AND status = 'waiting' AND expires_at <= clock_timestamp()""")

_DECIDE = text("""
    UPDATE upright.approval SET status = :status, decided_by = :by, via = :via, why = :why,
           decided_at = clock_timestamp()
    WHERE id = :id AND status = 'waiting' AND expires_at > clock_timestamp()""")


class Approvals:
    _database: Database

    async def ask(
        self, recovery_id: UUID, strategy: str, *, epoch: int, target: str, values: Json, plan: str, within_s: float
    ) -> Approval:
        approval_id = uuid4()

        async def work(tx: Transaction) -> Approval:
            row = await tx.row(
                _ASK,
                id=approval_id,
                recovery_id=recovery_id,
                epoch=epoch,
                strategy=strategy,
                target=target,
                values=as_json(values),
                plan=plan.replace("\x00", "\ufffd"),
                within_s=within_s,
            )
            if row is None:
                raise StaleEpoch
            approval = await _read(tx, row["id"])
            if approval.id == approval_id:
                await _audit(tx, approval, "approval.asked", "service", plan)
            return approval

        return await self._database.run(work)

    async def approval(self, approval_id: UUID) -> Approval:
        return await self._database.run(lambda tx: _read(tx, approval_id))

    async def approvals_of(self, recovery_id: UUID) -> Mapping[str, Approval]:
        found = await self._database.run(lambda tx: tx.rows(_OF_RECOVERY, recovery_id=recovery_id))
        return {row["strategy"]: _approval(row) for row in found}

    async def approvals(self, *, waiting: bool = True, limit: int = 100) -> Sequence[Approval]:
        found = await self._database.run(lambda tx: tx.rows(_LIST, waiting=waiting, limit=limit))
        return [_approval(row) for row in found]

    async def decide(self, approval_id: UUID, *, approve: bool, by: str, via: Via, why: str = "") -> Approval:
        status = "approved" if approve else "rejected"

        async def work(tx: Transaction) -> Approval:
            decided = await tx.run(_DECIDE, id=approval_id, status=status, by=by, via=via, why=why)
            approval = await _read(tx, approval_id)
            if decided:
                await _audit(tx, approval, f"approval.{status}", by, why)
            return approval

        return await self._database.run(work)


async def _read(tx: Transaction, approval_id: UUID) -> Approval:
    expired = await tx.run(_EXPIRE, id=approval_id)
    row = await tx.row(_ONE, id=approval_id)
    if row is None:
        raise NotFound(f"There is no approval {approval_id}.")
    approval = _approval(row)
    if expired:
        await _audit(tx, approval, "approval.expired", "service", "nobody answered in time")
    return approval


async def _audit(tx: Transaction, approval: Approval, what: str, who: str, why: str) -> None:
    await audit.add(
        tx,
        tenant=approval.tenant,
        service=approval.service,
        who=who,
        what=what,
        subject=f"{approval.recovery_id}/{approval.strategy}",
        why=why,
        after={"approval_id": str(approval.id), "via": approval.via, "values": approval.values},
    )


def _approval(row: Row) -> Approval:
    names = (
        "id", "recovery_id", "tenant", "service", "runbook", "strategy", "target", "values", "plan", "status",
        "created_at", "expires_at", "decided_by", "via", "why",
    )  # fmt: skip
    return Approval(**{name: row[name] for name in names}, expires_in_s=float(row["expires_in_s"]))
