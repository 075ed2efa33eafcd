"""Relapses: an incident that had recovered, and came back."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import text

from upright.adapters.store import audit, topics
from upright.adapters.store.database import Database, Row, Transaction

# A retry repaired its one request and promised nothing for the next: that it is not enough shows in the counts alone.
RETRY = "retry"

COLUMNS = """,
    r.finished_at > clock_timestamp() - make_interval(secs => :relapse_window_s) AS relapses,
    extract(epoch FROM now() - make_interval(secs => :age_s) - r.finished_at) AS after_s,
    -- What had become of the change when the operation began.
    (SELECT CASE WHEN d.withdrawn_at IS NOT NULL THEN 'was withdrawn'
                 WHEN d.superseded_at IS NOT NULL THEN 'was replaced'
                 WHEN d.expires_at <= now() - make_interval(secs => :age_s) THEN 'expired' END
     FROM upright.action a
     JOIN upright.directive d ON d.tenant = r.tenant AND d.service = r.service AND d.version = a.directive_version
     WHERE a.recovery_id = r.id AND a.verdict = 'recovered' AND d.scope = 'process' LIMIT 1) AS change_over"""
"""What the latest recovery's row says besides, for `reason`."""

_MARK = text("""
    UPDATE upright.recovery SET status = 'relapsed', relapsed_at = clock_timestamp(), relapse = :why
    WHERE id = :id AND status = 'recovered' RETURNING tenant, service""")

_COUNT_AGAINST = text("""
    UPDATE upright.action SET verdict = 'relapsed', reason = concat_ws('; ', NULLIF(reason, ''), CAST(:why AS text))
    WHERE recovery_id = :id AND verdict = 'recovered' AND strategy <> :retry""")

# Everyone who was told that it had recovered is told otherwise. What a process still acknowledges is the former end.
_TELL_AGAIN = text("""
    UPDATE upright.error SET delivered_recovery_id = NULL, outcome_handed_at = NULL
    WHERE recovery_id = :id AND (delivered_recovery_id = :id OR outcome_handed_at IS NOT NULL)""")

_RELAPSES = text("""
    SELECT a.strategy, count(*) AS times FROM upright.recovery r JOIN upright.action a ON a.recovery_id = r.id
    WHERE r.incident_id = :incident_id AND r.status = 'relapsed'
      AND r.relapsed_at > clock_timestamp() - make_interval(secs => :within_s)
      AND (a.verdict = 'relapsed' OR a.verdict = 'recovered' AND a.strategy = :retry)
    GROUP BY a.strategy""")


class Relapses:
    _database: Database

    async def relapses(self, incident_id: UUID, within_s: float) -> Mapping[str, int]:
        found = await self._database.run(
            lambda tx: tx.rows(_RELAPSES, incident_id=incident_id, within_s=within_s, retry=RETRY)
        )
        return {row["strategy"]: int(row["times"]) for row in found}


async def mark(tx: Transaction, latest: Row, error_id: UUID) -> UUID | None:
    """The recovery of this row has relapsed, if it had recovered lately: its id then."""
    if latest["status"] != "recovered" or not latest["relapses"]:
        return None
    recovery_id, over = latest["id"], latest["change_over"]
    seconds = max(0.0, float(latest["after_s"]))
    why = f"the error came back {seconds:.0f} s after it" + (f", when the change {over}" if over else "")
    marked = await tx.row(_MARK, id=recovery_id, why=why)
    if marked is None:
        return None
    if not over:
        await tx.run(_COUNT_AGAINST, id=recovery_id, why=why, retry=RETRY)
    await tx.run(_TELL_AGAIN, id=recovery_id)
    await audit.add(
        tx, tenant=marked["tenant"], service=marked["service"], who="service", what="recovery.relapsed",
        subject=recovery_id, why=why, before={"status": "recovered"},
        after={"status": "relapsed", "error_id": str(error_id)},
    )  # fmt: skip
    tx.announce(topics.of_service(marked["tenant"], marked["service"]))
    return recovery_id
