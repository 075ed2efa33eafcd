"""Alerts: who was told of a recovery, how, and whether it went out."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from upright.adapters.store.database import Database
from upright.services.ports import AlertRecord

_RECORD = text("""
    INSERT INTO upright.alert (recovery_id, kind, channel, recipients, subject, status, detail)
    VALUES (:recovery_id, :kind, :channel, CAST(:recipients AS text[]), :subject, :status, :detail)""")

_LIST = text("""
    SELECT recovery_id, kind, channel, recipients, subject, status, detail FROM upright.alert
    WHERE recovery_id = :recovery_id ORDER BY id""")


class Alerts:
    _database: Database

    async def record_alert(self, alert: AlertRecord) -> None:
        await self._database.run(
            lambda tx: tx.run(
                _RECORD,
                recovery_id=alert.recovery_id,
                kind=alert.kind,
                channel=alert.channel,
                recipients=list(alert.recipients),
                subject=alert.subject.replace("\x00", "\ufffd"),
                status=alert.status,
                detail=alert.detail.replace("\x00", "\ufffd"),
            )
        )

    async def alerts(self, recovery_id: UUID) -> Sequence[AlertRecord]:
        found = await self._database.run(lambda tx: tx.rows(_LIST, recovery_id=recovery_id))
        return [
            AlertRecord(
                recovery_id=row["recovery_id"],
                kind=row["kind"],
                channel=row["channel"],
                recipients=tuple(row["recipients"]),
                subject=row["subject"],
                status=row["status"],
                detail=row["detail"],
            )
            for row in found
        ]
