"""The audit trail: who did what, why, and what changed. Rows are only ever added."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from upright.adapters.store.database import Database, Transaction, as_json
from upright.domain.message import Json
from upright.domain.verdict import Verdict
from upright.services.ports import ActionRecord

_ADD = text("""
    INSERT INTO upright.audit (tenant, service, who, what, subject, why, before, after)
    VALUES (:tenant, :service, :who, :what, :subject, :why, CAST(:before AS jsonb), CAST(:after AS jsonb))""")


async def add(
    tx: Transaction,
    *,
    tenant: str,
    service: str = "",
    who: str,
    what: str,
    subject: object,
    why: str = "",
    before: Json | None = None,
    after: Json | None = None,
) -> None:
    await tx.run(
        _ADD,
        tenant=tenant,
        service=service,
        who=who,
        what=what,
        subject=str(subject),
        why=why.replace("\x00", "\ufffd"),
        before=as_json(before or {}),
        after=as_json(after or {}),
    )


_ACTION = text("""
    INSERT INTO upright.audit (tenant, service, who, what, subject, why, before, after)
    SELECT tenant, service, COALESCE(runner, 'service'), :what, :subject, :why, CAST(:before AS jsonb),
           CAST(:after AS jsonb)
    FROM upright.recovery WHERE id = :recovery_id""")


async def of_action(tx: Transaction, action: ActionRecord) -> None:
    """What became of an action."""
    idle = action.verdict in (Verdict.SKIPPED, Verdict.REFUSED, Verdict.FAILED)
    await tx.run(
        _ACTION,
        what=f"action.{action.verdict.value}",
        subject=f"{action.recovery_id}/{action.strategy}",
        why=action.reason.replace("\x00", "\ufffd"),
        before=as_json(action.before),
        after=as_json(action.after or ({} if idle else action.values)),
        recovery_id=action.recovery_id,
    )


_LIST = text("""
    SELECT id, at, tenant, service, who, what, subject, why, before, after FROM upright.audit
    WHERE at > clock_timestamp() - make_interval(secs => :since_s)
      AND (CAST(:service AS text) IS NULL OR service = :service)
      AND (CAST(:subject AS text) IS NULL OR starts_with(subject, :subject))
    ORDER BY id DESC LIMIT :limit""")


class Audit:
    _database: Database

    async def audit(
        self, *, since_s: float, service: str | None = None, subject: str | None = None, limit: int = 1000
    ) -> Sequence[Json]:
        """Newest first."""
        found = await self._database.run(
            lambda tx: tx.rows(_LIST, since_s=since_s, service=service, subject=subject, limit=limit)
        )
        return [dict(row) for row in found]
