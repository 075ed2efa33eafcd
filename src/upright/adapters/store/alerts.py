"""Alerts: who was told of a recovery, how, and whether it went out."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from upright.adapters.store.database import Database
from upright.services.ports import AlertRecord, ChannelDelivery, Told

_RECORD = text("""
    INSERT INTO upright.alert (recovery_id, kind, channel, recipients, subject, status, detail, about, attempt)
    VALUES (:recovery_id, :kind, :channel, CAST(:recipients AS text[]), :subject, :status, :detail, :about,
            :attempt)""")

_LIST = text("""
    SELECT recovery_id, kind, channel, recipients, subject, status, detail, about, attempt FROM upright.alert
    WHERE recovery_id = :recovery_id ORDER BY id""")

_LAST_TOLD = text("""
    WITH of_incident AS (
        SELECT a.id, a.status, a.about, a.recorded_at
        FROM upright.alert a JOIN upright.recovery r ON r.id = a.recovery_id
        WHERE r.incident_id = :incident_id AND a.kind = :kind
    ), last AS (SELECT * FROM of_incident WHERE status = 'sent' ORDER BY id DESC LIMIT 1)
    SELECT last.about, extract(epoch FROM clock_timestamp() - last.recorded_at) AS age_s,
           (SELECT count(*) FROM of_incident o WHERE o.status = 'held' AND o.id > last.id) AS held
    FROM last""")

_CHANNELS = text("""
    SELECT channel, recipients,
           count(*) FILTER (WHERE status = 'sent') AS sent,
           count(*) FILTER (WHERE status = 'failed') AS failed,
           (array_agg(status ORDER BY id DESC))[1] = 'sent' AS works,
           max(recorded_at) FILTER (WHERE status = 'failed') AS last_failure,
           coalesce((array_agg(detail ORDER BY id DESC) FILTER (WHERE status = 'failed'))[1], '') AS detail
    FROM upright.alert
    WHERE status IN ('sent', 'failed') AND recorded_at > clock_timestamp() - make_interval(secs => :within_s)
    GROUP BY channel, recipients ORDER BY last_failure DESC NULLS LAST, channel, recipients""")


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
                about=alert.about,
                attempt=alert.attempt,
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
                about=row["about"],
                attempt=row["attempt"],
            )
            for row in found
        ]

    async def last_told(self, incident_id: UUID, kind: str) -> Told | None:
        row = await self._database.run(lambda tx: tx.row(_LAST_TOLD, incident_id=incident_id, kind=kind))
        return None if row is None else Told(row["about"], float(row["age_s"]), row["held"])

    async def channel_deliveries(self, within_s: float) -> Sequence[ChannelDelivery]:
        found = await self._database.run(lambda tx: tx.rows(_CHANNELS, within_s=within_s))
        return [
            ChannelDelivery(
                channel=row["channel"],
                recipients=tuple(row["recipients"]),
                sent=row["sent"],
                failed=row["failed"],
                works=row["works"],
                last_failure=row["last_failure"],
                detail=row["detail"],
            )
            for row in found
        ]
