"""Outcomes: ends of recoveries that the application has not been told of."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from upright.adapters.report import report, strategy_of
from upright.adapters.store import rows
from upright.adapters.store.database import Database, Transaction
from upright.domain.directive import Outcome

# An outcome is handed to one process; if that one doesn't acknowledge it within seconds, the next one gets it. What no
# process has fetched in a week is not news any more. What the health probe found, the application has never heard of.
DUE = """
    FROM upright.error e JOIN upright.recovery r ON r.id = e.recovery_id
    WHERE e.tenant = :tenant AND e.service = :service AND e.delivered_recovery_id IS DISTINCT FROM e.recovery_id
      AND r.status NOT IN ('queued', 'running')
      AND (e.outcome_handed_at IS NULL OR e.outcome_handed_at < clock_timestamp() - interval '5 seconds')
      AND (e.waiter_until IS NULL OR e.waiter_until <= clock_timestamp())
      AND e.received_at > clock_timestamp() - interval '7 days'
      AND e.origin <> 'health' """

_HAND = text(f"""
    UPDATE upright.error SET outcome_instance = :instance, outcome_handed_at = clock_timestamp()
    WHERE id IN (SELECT e.id {DUE} AND e.recovery_id <> ALL(CAST(:besides AS uuid[]))
                 ORDER BY e.received_at LIMIT :limit FOR UPDATE OF e SKIP LOCKED)
    RETURNING id, recovery_id, own_result""")  # noqa: S608  # constants only

_ENDED = rows.select_recoveries("WHERE r.id = ANY(CAST(:ids AS uuid[]))")

# Only what was handed to this process: of many errors of one recovery it may have got a part.
_RECEIVE = text("""
    UPDATE upright.error SET delivered_recovery_id = recovery_id, outcome_handed_at = NULL
    WHERE tenant = :tenant AND service = :service AND recovery_id = ANY(CAST(:ids AS uuid[]))
      AND outcome_handed_at IS NOT NULL AND outcome_instance IN (:instance, '')""")


class Outcomes:
    _database: Database

    async def undelivered_outcomes(
        self, tenant: str, service: str, limit: int = 100, *, instance: str = "", besides: Sequence[UUID] = ()
    ) -> list[Outcome]:
        """Hand them to a process, which is to name their recoveries in `outcomes_received`.

        `besides`: recoveries that this very sync acknowledges. Were more of one handed out in its answer, and that
        lost, then the acknowledgement that comes once more would cover them too.
        """

        async def work(tx: Transaction) -> list[Outcome]:
            handed = await tx.rows(
                _HAND, tenant=tenant, service=service, instance=instance, limit=limit, besides=list(besides)
            )
            if not handed:
                return []
            ended = await tx.rows(_ENDED, ids=list({row["recovery_id"] for row in handed}))
            recoveries = {row["id"]: rows.recovery(row) for row in ended}
            return [
                Outcome(
                    recovery_id=row["recovery_id"],
                    error_id=row["id"],
                    report=report(
                        recoveries[row["recovery_id"]], error_id=row["id"], own_result=row["own_result"]
                    ).model_dump(mode="json"),
                    strategy=strategy_of(recoveries[row["recovery_id"]]),
                )
                for row in handed
            ]

        return await self._database.run(work)


async def receive(tx: Transaction, tenant: str, service: str, instance: str, recoveries: Sequence[UUID]) -> None:
    await tx.run(_RECEIVE, tenant=tenant, service=service, instance=instance, ids=list(recoveries))
