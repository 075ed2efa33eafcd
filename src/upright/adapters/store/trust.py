"""Trust: what was decided of runbooks and strategies, and what they have achieved since."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from upright.adapters.store import audit
from upright.adapters.store.database import Database, Transaction
from upright.domain.guardrails import Trust
from upright.services.guardrails.ports import TrustSetting
from upright.services.guardrails.trust import Record

_LIST = text("""
    SELECT * FROM upright.trust WHERE CAST(:runbook AS text) IS NULL OR runbook = :runbook
    ORDER BY runbook, strategy""")

_FORMER = text("SELECT level FROM upright.trust WHERE runbook = :runbook AND strategy = :strategy FOR UPDATE")

_SET = text("""
    INSERT INTO upright.trust (runbook, strategy, level, by, why) VALUES (:runbook, :strategy, :level, :by, :why)
    ON CONFLICT (runbook, strategy) DO UPDATE SET
        level = excluded.level, by = excluded.by, why = excluded.why, at = clock_timestamp()""")

_SINCE = """
    COALESCE((SELECT max(at) FROM upright.trust
              WHERE runbook = :runbook AND strategy IN ('', :strategy)), '-infinity')"""

_OUTCOMES = text(f"""
    SELECT count(*) FILTER (WHERE success) AS successes, count(*) FILTER (WHERE NOT success) AS failures
    FROM (
        SELECT a.verdict = 'recovered' AS success
        FROM upright.action a JOIN upright.recovery r ON r.id = a.recovery_id
        WHERE a.strategy = :strategy AND r.runbook = :runbook
          AND a.verdict IN ('recovered', 'not_recovered', 'relapsed') AND a.recorded_at > {_SINCE}
        ORDER BY a.recorded_at DESC LIMIT :window) AS latest""")  # noqa: S608  # constants only

_SHADOW = text(f"""
    SELECT count(*) AS decisions FROM upright.action a JOIN upright.recovery r ON r.id = a.recovery_id
    WHERE a.strategy = :strategy AND r.runbook = :runbook AND a.verdict = 'skipped' AND a.reason LIKE 'shadow: %'
      AND a.recorded_at > {_SINCE}""")  # noqa: S608  # constants only


class TrustLevels:
    _database: Database

    async def trust(self, runbook: str | None = None) -> Sequence[TrustSetting]:
        found = await self._database.run(lambda tx: tx.rows(_LIST, runbook=runbook))
        return [
            TrustSetting(row["runbook"], row["strategy"], Trust(row["level"]), row["by"], row["why"], row["at"])
            for row in found
        ]

    async def set_trust(self, runbook: str, strategy: str, level: Trust, *, by: str, why: str) -> None:
        async def work(tx: Transaction) -> None:
            former = await tx.row(_FORMER, runbook=runbook, strategy=strategy)
            await tx.run(_SET, runbook=runbook, strategy=strategy, level=level.value, by=by, why=why)
            await audit.add(
                tx,
                tenant="*",
                who=by,
                what="trust.set",
                subject=f"{runbook}/{strategy}" if strategy else runbook,
                why=why,
                before={} if former is None else {"level": former["level"]},
                after={"level": level.value},
            )

        await self._database.run(work)

    async def track_record(self, runbook: str, strategy: str, window: int) -> Record:
        row = await self._database.run(lambda tx: tx.row(_OUTCOMES, runbook=runbook, strategy=strategy, window=window))
        return Record() if row is None else Record(row["successes"], row["failures"])

    async def shadow_decisions(self, runbook: str, strategy: str) -> int:
        row = await self._database.run(lambda tx: tx.row(_SHADOW, runbook=runbook, strategy=strategy))
        return 0 if row is None else int(row["decisions"])
