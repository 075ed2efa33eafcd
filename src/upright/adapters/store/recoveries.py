"""Recoveries: who carries one out, what it did, how it ended. Writers name their epoch."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from upright.adapters.store import audit, permits, rows, topics
from upright.adapters.store.database import Database, Row, Transaction, as_json
from upright.domain.message import Json
from upright.domain.verdict import Status
from upright.errors import NotFound, RecoveryInFlight, StaleEpoch
from upright.services.ports import ActionRecord, RecoveryRecord

_ONE = rows.select_recoveries("WHERE r.id = :id")
_SEVERAL = rows.select_recoveries("WHERE r.id = ANY(CAST(:ids AS uuid[])) ORDER BY r.created_at")

_QUEUED = rows.select_recoveries(f"WHERE r.status = 'queued' ORDER BY {rows.SEVERITY_RANK}, r.created_at LIMIT :limit")

# A run that was never bound to a flow run has no lease; it is given the time of one. A concluded recovery keeps its
# lease until its run has ended: people are yet to be told of it.
_EXPIRED = text("""
    UPDATE upright.recovery SET runner = :runner, epoch = epoch + 1,
           lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s)
    WHERE id IN (
        SELECT id FROM upright.recovery
        WHERE status = 'running'
          AND COALESCE(lease_expires_at, created_at + make_interval(secs => :lease_s)) <= clock_timestamp()
          OR lease_expires_at <= clock_timestamp() AND NOT (status IN ('queued', 'running'))
        ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED)
    RETURNING id, tenant, service, epoch""")

_RENEW = text("""
    UPDATE upright.recovery SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s)
    WHERE id = ANY(CAST(:ids AS uuid[])) AND runner = :runner AND lease_expires_at IS NOT NULL""")

_CLOSE = text("""
    UPDATE upright.recovery SET lease_expires_at = NULL
    WHERE id = :id AND epoch = :epoch AND status NOT IN ('queued', 'running')""")

_BIND = text("""
    UPDATE upright.recovery SET status = 'running', flow_run_id = :flow_run_id, runner = :runner,
           started_at = COALESCE(started_at, clock_timestamp()),
           lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s)
    WHERE id = :id AND (status = 'queued' OR status = 'running' AND (flow_run_id IS NULL OR flow_run_id = :flow_run_id))
    RETURNING id""")

_OF_FLOW_RUN = rows.select_recoveries("WHERE r.flow_run_id = :flow_run_id ORDER BY r.created_at DESC LIMIT 1")

_IN_FLIGHT = rows.select_recoveries("WHERE r.incident_id = :incident_id AND r.status IN ('queued', 'running')")

_ERROR = text("""
    SELECT e.id, e.tenant, e.service, e.severity, e.incident_id, i.fingerprint
    FROM upright.error e JOIN upright.incident i ON i.id = e.incident_id
    WHERE e.id = :error_id
    FOR UPDATE OF i""")

# The same runner and attempt go on under their epoch; anyone else gets a new one, which fences them out.
_TAKE = text("""
    UPDATE upright.recovery r SET
        epoch = CASE WHEN r.flow_run_id IS NULL AND r.runner IS NULL THEN r.epoch
                     WHEN r.runner IS DISTINCT FROM :runner THEN r.epoch + 1
                     WHEN r.flow_run_attempt NOT IN (0, :attempt) THEN r.epoch + 1
                     ELSE r.epoch END,
        status = CASE WHEN r.status = 'queued' THEN 'running' ELSE r.status END,
        runner = :runner, flow_run_id = :flow_run_id, flow_run_attempt = :attempt,
        started_at = COALESCE(r.started_at, clock_timestamp()),
        lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s)
    WHERE r.id = :id AND (r.status IN ('queued', 'running') OR r.lease_expires_at IS NOT NULL)
      AND (r.flow_run_id IS NULL OR r.flow_run_id = :flow_run_id)
    RETURNING r.id""")

_RERUN = text("""
    WITH opened AS (
        INSERT INTO upright.recovery
            (id, tenant, incident_id, error_id, fingerprint, service, runbook, severity, status, flow_run_id,
             flow_run_attempt, runner, started_at, lease_expires_at)
        VALUES
            (:id, :tenant, :incident_id, :error_id, :fingerprint, :service, :runbook, :severity, 'running',
             :flow_run_id, :attempt, :runner, clock_timestamp(), clock_timestamp() + make_interval(secs => :lease_s))
        RETURNING id
    )
    UPDATE upright.error SET recovery_id = opened.id, own_result = NULL FROM opened WHERE error.id = :error_id
    RETURNING error.id""")

_ACT = text("""
    WITH held AS (
        SELECT id FROM upright.recovery
        WHERE id = :recovery_id AND epoch = :epoch AND status IN ('queued', 'running') FOR SHARE
    )
    INSERT INTO upright.action
        (recovery_id, position, strategy, verdict, reason, "values", before, after, evidence, score, cost_s,
         duration_ms, directive_version, propensity, attributed, checks)
    SELECT id, :position, :strategy, :verdict, :reason, CAST(:values AS jsonb), CAST(:before AS jsonb),
           CAST(:after AS jsonb), CAST(:evidence AS jsonb), :score, :cost_s, :duration_ms, :directive_version,
           :propensity, :attributed, CAST(:checks AS jsonb)
    FROM held
    ON CONFLICT (recovery_id, position) DO UPDATE SET
        strategy = excluded.strategy, verdict = excluded.verdict, reason = excluded.reason,
        "values" = excluded."values", before = excluded.before, after = excluded.after, evidence = excluded.evidence,
        score = excluded.score, cost_s = excluded.cost_s, duration_ms = excluded.duration_ms,
        directive_version = excluded.directive_version, propensity = excluded.propensity,
        attributed = excluded.attributed, checks = excluded.checks,
        recorded_at = clock_timestamp()
    RETURNING recovery_id""")

_CONCLUDE = text("""
    UPDATE upright.recovery SET status = :status, message = :message, explanation = CAST(:explanation AS jsonb),
           finished_at = clock_timestamp()
    WHERE id = :id AND epoch = :epoch AND status IN ('queued', 'running')
    RETURNING id, tenant, service""")

_UNLOCK = text("DELETE FROM upright.actuator_lock WHERE recovery_id = :recovery_id")


class Recoveries:
    _database: Database

    async def recovery(self, recovery_id: UUID) -> RecoveryRecord:
        return await self._database.run(lambda tx: _read(tx, recovery_id))

    async def begin_run(
        self, error_id: UUID, *, flow_run_id: UUID, attempt: int, runner: str, lease_s: float, runbook: str
    ) -> RecoveryRecord:
        """Raises NotFound, and RecoveryInFlight where another recovery of the incident is under way."""
        run: dict[str, object] = {
            "flow_run_id": flow_run_id,
            "attempt": attempt,
            "runner": runner,
            "lease_s": lease_s,
        }

        async def work(tx: Transaction) -> RecoveryRecord:
            error = await tx.row(_ERROR, error_id=error_id)
            if error is None:
                raise NotFound(f"There is no error {error_id}.")
            own = await tx.row(_OF_FLOW_RUN, flow_run_id=flow_run_id)
            closed = own is not None and Status(own["status"]).final and own["lease_expires_at"] is None
            if own is None or closed:
                own = await tx.row(_IN_FLIGHT, incident_id=error["incident_id"])
                if own is not None and (own["error_id"] != error_id or own["flow_run_id"] not in (None, flow_run_id)):
                    raise RecoveryInFlight(
                        f"Recovery {own['id']} of the same incident is under way (flow run {own['flow_run_id']})."
                    )
            if own is None:
                recovery_id = await _rerun(tx, error, run, runbook)
            else:
                recovery_id = own["id"]
                if await tx.row(_TAKE, id=recovery_id, **run) is None:
                    raise StaleEpoch
            await audit.add(
                tx,
                tenant=error["tenant"],
                service=error["service"],
                who=runner,
                what="recovery.begun",
                subject=recovery_id,
                why="re-run" if own is None else "",
                after={"flow_run_id": str(flow_run_id), "attempt": attempt},
            )
            return await _read(tx, recovery_id)

        try:
            return await self._database.run(work)
        except IntegrityError as error:
            raise RecoveryInFlight from error

    async def bind(self, recovery_id: UUID, *, flow_run_id: UUID, runner: str, lease_s: float) -> RecoveryRecord:
        """Raises StaleEpoch where another flow run has it, NotFound."""

        async def work(tx: Transaction) -> RecoveryRecord:
            bound = await tx.row(_BIND, id=recovery_id, flow_run_id=flow_run_id, runner=runner, lease_s=lease_s)
            record = await _read(tx, recovery_id)
            if bound is None:
                raise StaleEpoch("This recovery is finished, or another flow run carries it out.")
            return record

        return await self._database.run(work)

    async def queued(self, limit: int) -> Sequence[RecoveryRecord]:
        return [rows.recovery(row) for row in await self._database.run(lambda tx: tx.rows(_QUEUED, limit=limit))]

    async def renew(self, runner: str, recovery_ids: Sequence[UUID], lease_s: float) -> None:
        if recovery_ids:
            ids = list(recovery_ids)
            await self._database.run(lambda tx: tx.run(_RENEW, runner=runner, ids=ids, lease_s=lease_s))

    async def take_expired(self, runner: str, lease_s: float, limit: int) -> Sequence[RecoveryRecord]:
        async def work(tx: Transaction) -> list[RecoveryRecord]:
            taken = await tx.rows(_EXPIRED, runner=runner, lease_s=lease_s, limit=limit)
            for row in taken:
                after: Json = {"epoch": row["epoch"]}
                await audit.add(
                    tx, tenant=row["tenant"], service=row["service"], who=runner, what="recovery.taken_over",
                    subject=row["id"], why="its runner's lease ran out", after=after,
                )  # fmt: skip
            if not taken:
                return []
            return [rows.recovery(row) for row in await tx.rows(_SEVERAL, ids=[row["id"] for row in taken])]

        return await self._database.run(work)

    async def record_action(self, action: ActionRecord, *, epoch: int) -> None:
        evidence = None if action.evidence is None else as_json(action.evidence.model_dump(mode="json"))

        async def work(tx: Transaction) -> None:
            row = await tx.row(
                _ACT,
                recovery_id=action.recovery_id,
                epoch=epoch,
                position=action.position,
                strategy=action.strategy,
                verdict=action.verdict.value,
                reason=action.reason.replace("\x00", "\ufffd"),
                values=as_json(action.values),
                before=as_json(action.before),
                after=as_json(action.after),
                evidence=evidence,
                score=action.score,
                cost_s=action.cost_s,
                duration_ms=action.duration_ms,
                directive_version=action.directive_version,
                propensity=action.propensity,
                attributed=action.attributed,
                checks=as_json([one.model_dump(mode="json") for one in action.checks]),
            )
            if row is None:
                raise StaleEpoch
            await permits.end(tx, action)
            await audit.of_action(tx, action)

        await self._database.run(work)

    async def conclude(
        self, recovery_id: UUID, *, epoch: int, status: Status, message: str, explanation: Json
    ) -> RecoveryRecord:
        """Saying the same again is no error: the answer to the first time may have been lost."""
        if not status.final:
            raise ValueError(f"{status.value} is not how a recovery ends")

        async def work(tx: Transaction) -> RecoveryRecord:
            row = await tx.row(
                _CONCLUDE,
                id=recovery_id,
                epoch=epoch,
                status=status.value,
                message=message.replace("\x00", "\ufffd"),
                explanation=as_json(explanation),
            )
            record = await _read(tx, recovery_id)
            if row is None:
                if record.epoch == epoch and record.status is status:
                    return record
                raise StaleEpoch
            await tx.run(_UNLOCK, recovery_id=recovery_id)
            await audit.add(
                tx,
                tenant=row["tenant"],
                service=row["service"],
                who="service",
                what="recovery.concluded",
                subject=recovery_id,
                why=record.message,
                after={"status": status.value, "epoch": epoch},
            )
            tx.announce(topics.of_recovery(recovery_id), topics.of_service(row["tenant"], row["service"]))
            return record

        return await self._database.run(work)

    async def close(self, recovery_id: UUID, *, epoch: int) -> None:
        await self._database.run(lambda tx: tx.run(_CLOSE, id=recovery_id, epoch=epoch))


async def _read(tx: Transaction, recovery_id: UUID) -> RecoveryRecord:
    row = await tx.row(_ONE, id=recovery_id)
    if row is None:
        raise NotFound(f"There is no recovery {recovery_id}.")
    return rows.recovery(row)


async def _rerun(tx: Transaction, error: Row, run: dict[str, object], runbook: str) -> UUID:
    recovery_id = uuid4()
    await tx.run(
        _RERUN,
        id=recovery_id,
        tenant=error["tenant"],
        incident_id=error["incident_id"],
        error_id=error["id"],
        fingerprint=error["fingerprint"],
        service=error["service"],
        severity=error["severity"],
        runbook=runbook,
        **run,
    )
    return recovery_id
