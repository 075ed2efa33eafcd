"""Errors: what is known of each, and of the caller that may wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from upright.adapters.store import commands, rows, topics
from upright.adapters.store.database import Database, Transaction
from upright.domain.directive import CommandResult
from upright.domain.event import Event
from upright.domain.message import Json
from upright.domain.severity import Severity
from upright.errors import NotFound
from upright.services.ports import RecoveryRecord

FIRST_HAND = ("replay", "retry", "caller_probe")
"""Kinds of evidence that are about the caller's own operation."""


@dataclass(frozen=True)
class ErrorState:
    """One error as its caller sees it."""

    error_id: UUID
    tenant: str
    service: str
    severity: Severity
    own_result: bool | None
    recovery: RecoveryRecord | None
    waiter_present: bool
    waiter_can: tuple[str, ...]
    has_command: bool
    """Work waits for this error's caller."""


_EVENT = text("""
    SELECT v.body FROM upright.event v
    WHERE v.error_id = :error_id AND v.tenant = COALESCE(CAST(:tenant AS text), v.tenant)
    ORDER BY v.id DESC LIMIT 1""")

_RECURRENCES = text("""
    SELECT count(*) AS errors FROM (
        SELECT FROM upright.error e
        WHERE e.incident_id = :incident_id AND e.began_at > clock_timestamp() - make_interval(secs => :within_s)
          AND e.desired_version >= :version
          AND (CAST(:instances AS text[]) IS NULL
               OR EXISTS (SELECT FROM upright.event v WHERE v.error_id = e.id
                          AND v.body ->> 'instance' = ANY(CAST(:instances AS text[]))))
        LIMIT 10000) AS recent""")

_OF_ERROR = rows.select_recoveries("JOIN upright.error e ON e.recovery_id = r.id WHERE e.id = :error_id")

_STATE = text(f"""
    SELECT r.*, {rows.ACTIONS},
           e.id AS error, e.tenant AS error_tenant, e.service AS error_service, e.severity AS error_severity,
           e.own_result, COALESCE(e.waiter_until > clock_timestamp(), false) AS waiter_present, e.waiter_can,
           EXISTS (SELECT FROM upright.command c WHERE c.error_id = e.id AND c.status = 'waiting'
                   AND c.deadline_at > clock_timestamp()) AS has_command
    FROM upright.error e LEFT JOIN upright.recovery r ON r.id = e.recovery_id
    WHERE e.id = :error_id AND e.tenant = COALESCE(CAST(:tenant AS text), e.tenant)""")  # noqa: S608  # constants only

_OWN_RESULT = text("UPDATE upright.error SET own_result = :success WHERE id = :error_id")

_PRESENT = text("SELECT waiter_until > clock_timestamp() AS present FROM upright.error WHERE id = :error_id")

_TAKE_WAIT = text("""
    UPDATE upright.error SET waiter_until = clock_timestamp() + make_interval(secs => :seconds), waiter_can = :can
    WHERE id = :error_id AND (waiter_until IS NULL OR waiter_until <= clock_timestamp())""")

_KEEP_WAIT = text("""
    UPDATE upright.error SET waiter_until = clock_timestamp() + make_interval(secs => :seconds) WHERE id = :error_id""")

_SETTLE = text("""
    UPDATE upright.error SET
        waiter_until = CASE WHEN :waited THEN NULL ELSE waiter_until END,
        delivered_recovery_id = COALESCE(
            (SELECT r.id FROM upright.recovery r WHERE r.id = CAST(:delivered AS uuid) AND r.status <> 'relapsed'),
            delivered_recovery_id)
    WHERE id = :error_id""")

_LIST = text("""
    SELECT e.id, e.service, e.type, e.severity, e.message, e.occurred_at, COALESCE(r.status, 'queued') AS status,
           r.flow_run_id,
           (SELECT a.strategy FROM upright.action a
            WHERE a.recovery_id = r.id AND a.verdict NOT IN ('skipped', 'refused')
            ORDER BY a.verdict = 'recovered' DESC, a.position DESC LIMIT 1) AS strategy
    FROM upright.error e LEFT JOIN upright.recovery r ON r.id = e.recovery_id
    WHERE e.service = COALESCE(CAST(:service AS text), e.service)
      AND (CAST(:status AS text) IS NULL OR r.status = :status)
    ORDER BY e.received_at DESC LIMIT :limit""")


class Errors:
    _database: Database

    async def event_of(self, error_id: UUID, tenant: str | None = None) -> Event:
        row = await self._database.run(lambda tx: tx.row(_EVENT, error_id=error_id, tenant=tenant))
        if row is None:
            raise NotFound(f"There is no error {error_id}.")
        return Event.model_validate(row["body"])

    async def recurrences(
        self, incident_id: UUID, within_s: float, *, version: int = 0, instances: Sequence[str] | None = None
    ) -> int:
        named = None if instances is None else list(instances)
        row = await self._database.run(
            lambda tx: tx.row(
                _RECURRENCES, incident_id=incident_id, within_s=within_s, version=version, instances=named
            )
        )
        return 0 if row is None else int(row["errors"])

    async def recovery_of_error(self, error_id: UUID) -> RecoveryRecord | None:
        row = await self._database.run(lambda tx: tx.row(_OF_ERROR, error_id=error_id))
        return None if row is None else rows.recovery(row)

    async def record_own_result(self, error_id: UUID, success: bool) -> None:
        await self._database.run(lambda tx: tx.run(_OWN_RESULT, error_id=error_id, success=success))

    async def errors(self, *, limit: int = 50, service: str | None = None, status: str | None = None) -> Sequence[Json]:
        found = await self._database.run(lambda tx: tx.rows(_LIST, limit=limit, service=service, status=status))
        return [
            {
                "error_id": str(row["id"]),
                "service": row["service"],
                "type": row["type"],
                "severity": row["severity"],
                "message": row["message"],
                "occurred_at": row["occurred_at"].isoformat(),
                "status": row["status"],
                "strategy": row["strategy"],
                "flow_run_id": None if row["flow_run_id"] is None else str(row["flow_run_id"]),
            }
            for row in found
        ]

    async def error_state(self, error_id: UUID, tenant: str | None = None) -> ErrorState:
        """Raises NotFound."""
        row = await self._database.run(lambda tx: tx.row(_STATE, error_id=error_id, tenant=tenant))
        if row is None:
            raise NotFound(f"There is no error {error_id}.")
        return ErrorState(
            error_id=row["error"],
            tenant=row["error_tenant"],
            service=row["error_service"],
            severity=Severity(row["error_severity"]),
            own_result=row["own_result"],
            recovery=None if row["id"] is None else rows.recovery(row),
            waiter_present=row["waiter_present"],
            waiter_can=tuple(row["waiter_can"]),
            has_command=row["has_command"],
        )

    async def waiter_present(self, error_id: UUID) -> bool:
        row = await self._database.run(lambda tx: tx.row(_PRESENT, error_id=error_id))
        return row is not None and bool(row["present"])

    async def take_wait(self, error_id: UUID, seconds: float, can: Sequence[str]) -> bool:
        """Become the caller that waits for this error; False if there is one."""
        return (
            await self._database.run(lambda tx: tx.run(_TAKE_WAIT, error_id=error_id, seconds=seconds, can=list(can)))
            > 0
        )

    async def record_results(
        self, error_id: UUID, tenant: str, instance: str, results: Sequence[CommandResult], *, wait_s: float
    ) -> None:
        """What the waiting caller did; it waits on for `wait_s` seconds. What it saw of its own operation is kept as
        its own result."""

        async def work(tx: Transaction) -> None:
            for result in results:
                await commands.finish(tx, tenant, instance, result, error_id=error_id)
                success = first_hand(result)
                if success is not None:
                    await tx.run(_OWN_RESULT, error_id=error_id, success=success)
            await tx.run(_KEEP_WAIT, error_id=error_id, seconds=wait_s)

        await self._database.run(work)

    async def settle(self, error_id: UUID, *, waited: bool, delivered: UUID | None) -> None:
        """The caller has been answered: it waits no more, and `delivered` is the recovery whose end it was told."""

        async def work(tx: Transaction) -> None:
            await tx.run(_SETTLE, error_id=error_id, waited=waited, delivered=delivered)
            if waited and delivered is None:
                tx.announce(topics.of_error(error_id))  # whoever has a command for it need not wait

        await self._database.run(work)


def first_hand(result: CommandResult) -> bool | None:
    """Whether the caller's own operation was seen to work; None if it was not tried to an end."""
    evidence = result.evidence
    if evidence is None or evidence.kind not in FIRST_HAND or evidence.outcome == "inconclusive":
        return None
    return evidence.outcome == "passed"
