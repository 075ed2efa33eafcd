"""The audit trail: who did what, why, and what changed. Rows are only ever added."""

from __future__ import annotations

from sqlalchemy import text

from upright.adapters.store.database import Transaction, as_json
from upright.domain.message import Json

_ADD = text("""
    INSERT INTO upright.audit (tenant, who, what, subject, why, before, after)
    VALUES (:tenant, :who, :what, :subject, :why, CAST(:before AS jsonb), CAST(:after AS jsonb))""")


async def add(
    tx: Transaction,
    *,
    tenant: str,
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
        who=who,
        what=what,
        subject=str(subject),
        why=why,
        before=as_json(before or {}),
        after=as_json(after or {}),
    )
