"""Acknowledgements: what a process says it did with a directive, the latest for each status."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from upright.adapters.store import topics
from upright.adapters.store.database import Database, Transaction, as_json
from upright.domain.directive import Acknowledgement

_ACKNOWLEDGE = text("""
    INSERT INTO upright.acknowledgement
        (directive_id, instance, status, version, reason, before, after, duration_ms)
    SELECT d.id, :instance, :status, least(CAST(:version AS numeric), 9223372036854775807), :reason,
           CAST(:before AS jsonb), CAST(:after AS jsonb), :duration_ms
    FROM upright.directive d WHERE d.id = :directive_id AND d.tenant = :tenant
    ON CONFLICT (directive_id, instance, status) DO UPDATE SET
        version = excluded.version, reason = excluded.reason, before = excluded.before, after = excluded.after,
        duration_ms = excluded.duration_ms, received_at = clock_timestamp()
    RETURNING directive_id""")

_LIST = text("""
    SELECT instance, directive_id, version, status, reason, before, after, duration_ms
    FROM upright.acknowledgement WHERE directive_id = :directive_id ORDER BY received_at, instance""")


class Acknowledgements:
    _database: Database

    async def acknowledgements(self, directive_id: UUID) -> Sequence[tuple[str, Acknowledgement]]:
        """By instance, oldest first."""
        found = await self._database.run(lambda tx: tx.rows(_LIST, directive_id=directive_id))
        return [(row["instance"], Acknowledgement.model_validate(dict(row))) for row in found]


async def acknowledge(tx: Transaction, tenant: str, instance: str, acknowledgements: Sequence[Acknowledgement]) -> None:
    """Keep them; those of a directive that is not the tenant's are ignored."""
    for one in acknowledgements:
        kept = await tx.row(
            _ACKNOWLEDGE,
            tenant=tenant,
            directive_id=one.directive_id,
            instance=instance,
            status=one.status,
            version=one.version,
            reason=one.reason.replace("\x00", "\ufffd"),
            before=as_json(one.before),
            after=as_json(one.after),
            duration_ms=one.duration_ms if abs(one.duration_ms) < 1e12 else 0.0,
        )
        if kept is not None:
            tx.announce(topics.of_directive(one.directive_id))
