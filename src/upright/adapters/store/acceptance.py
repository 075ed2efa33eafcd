"""Taking an event in: event, incident, recovery and error, durable together.

Three statements, for this is the hot path. The incident's row is the lock: accepts of one fingerprint take turns on it,
so what the second statement sees of its recoveries is final. The index on unfinished recoveries holds it all the same.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from upright.adapters.store import relapses, rows, topics
from upright.adapters.store.database import Database, Row, Transaction, as_json
from upright.domain.event import Event
from upright.domain.severity import Severity
from upright.domain.verdict import Status
from upright.errors import ForeignService
from upright.services.ports import Acceptance, RecoveryRecord

Role = Literal["opened", "joined_running", "joined_closed", "duplicate"]

_LONGEST_AGE_S = 30 * 86_400.0
_LARGEST_VERSION = 2**63 - 1

_TAKE = text("""
    WITH known AS (
        INSERT INTO upright.tenant (name) VALUES (:tenant) ON CONFLICT DO NOTHING
    ), delivered AS (
        INSERT INTO upright.event (tenant, delivery_id, error_id, body)
        VALUES (:tenant, :delivery_id, :error_id, CAST(:body AS jsonb))
        ON CONFLICT (tenant, delivery_id) DO NOTHING
        RETURNING id
    ), incident AS (
        INSERT INTO upright.incident AS i (tenant, service, fingerprint, error_type)
        SELECT :tenant, :service, :fingerprint, :type FROM delivered
        ON CONFLICT (tenant, service, fingerprint) DO UPDATE SET
            count = i.count + CASE WHEN EXISTS (SELECT FROM upright.error WHERE id = :error_id) THEN 0 ELSE 1 END,
            last_seen = greatest(i.last_seen, clock_timestamp())
        RETURNING id
    )
    SELECT id, EXISTS (SELECT FROM upright.error WHERE id = :error_id) AS known FROM incident""")

_LATEST = rows.select_recoveries(
    "WHERE r.incident_id = :incident_id ORDER BY r.created_at DESC LIMIT 1",
    """,
    r.finished_at > now() - make_interval(secs => :age_s) AS began_before_end,
    r.finished_at > clock_timestamp() - make_interval(secs => :cooldown_s) AS cooling,
    -- Its process had not yet applied what ended the incident; that counts only while it is still in force.
    EXISTS (
        SELECT FROM upright.action a
        JOIN upright.directive d ON d.recovery_id = r.id AND d.version = a.directive_version
        WHERE a.recovery_id = r.id AND a.verdict = 'recovered' AND d.scope = 'process'
          AND d.version > :desired_version AND d.withdrawn_at IS NULL AND d.expires_at > now()
    ) AS began_before_directive"""
    + relapses.COLUMNS,
)

_OWN = rows.select_recoveries(
    "JOIN upright.error e ON e.recovery_id = r.id WHERE e.id = :error_id AND e.tenant = :tenant"
)

_ERROR = """
    INSERT INTO upright.error AS e
        (id, tenant, service, environment, incident_id, recovery_id, type, message, severity, origin, occurred_at,
         began_at, desired_version, waiter_until, waiter_can)
    VALUES
        (:error_id, :tenant, :service, :environment, :incident_id, :recovery_id, :type, :message, :severity, :origin,
         :occurred_at, now() - make_interval(secs => :age_s), :desired_version,
         clock_timestamp() + make_interval(secs => CAST(:waiter_s AS double precision)), CAST(:can AS text[]))
    ON CONFLICT (id) DO UPDATE SET
        recovery_id = excluded.recovery_id, incident_id = excluded.incident_id, severity = excluded.severity,
        waiter_until = excluded.waiter_until, waiter_can = excluded.waiter_can,
        own_result = CASE WHEN e.recovery_id IS DISTINCT FROM excluded.recovery_id THEN NULL ELSE e.own_result END
    WHERE e.tenant = excluded.tenant
    RETURNING id"""

_JOIN = text(_ERROR)

_OPEN = text(f"""
    WITH opened AS (
        INSERT INTO upright.recovery
            (id, tenant, incident_id, error_id, fingerprint, service, runbook, severity, status, waited,
             relapse_of)
        VALUES
            (:recovery_id, :tenant, :incident_id, :error_id, :fingerprint, :service, :runbook, :severity, :status,
             :waited, :relapse_of)
        RETURNING *
    ), taken AS ({_ERROR}
    ), trail AS (
        INSERT INTO upright.audit (tenant, service, who, what, subject, why, after)
        SELECT :tenant, :service, 'service', 'recovery.opened', CAST(id AS text), :why,
               jsonb_build_object('error_id', error_id, 'runbook', runbook, 'status', status)
        FROM opened
    )
    SELECT opened.* FROM opened, taken""")  # noqa: S608  # constants only

_DUPLICATE = text("""
    SELECT e.id, e.severity FROM upright.event v JOIN upright.error e ON e.id = v.error_id
    WHERE v.tenant = :tenant AND v.delivery_id = :delivery_id""")


class Acceptances:
    _database: Database

    async def accept(
        self,
        tenant: str,
        delivery_id: str,
        event: Event,
        *,
        fingerprint: str,
        runbook: str,
        severity: Severity,
        cooldown_s: float,
        rerun: bool = False,
        queued: bool = False,
        relapse_window_s: float = 600,
    ) -> Acceptance:
        facts = _facts(tenant, event, fingerprint, runbook, severity)

        async def work(tx: Transaction) -> Acceptance:
            taken = await tx.row(_TAKE, **_only(_TAKE_KEYS, facts), delivery_id=delivery_id, body=_body(event))
            if taken is None:
                return await _duplicate(tx, tenant, delivery_id)
            facts["incident_id"] = taken["id"]
            own = None
            if taken["known"] and not rerun:
                own = await tx.row(_OWN, error_id=event.error_id, tenant=tenant)
            if own is not None:
                return Acceptance(event.error_id, severity, rows.recovery(own), "duplicate")
            latest = await tx.row(
                _LATEST,
                incident_id=taken["id"],
                age_s=facts["age_s"],
                cooldown_s=cooldown_s,
                desired_version=facts["desired_version"],
                relapse_window_s=relapse_window_s,
            )
            role = _role(latest, rerun=rerun)
            if latest is None or role == "opened":
                relapsed = None if latest is None or rerun else await relapses.mark(tx, latest, event.error_id)
                facts["relapse_of"] = relapsed
                why = "re-run" if rerun else "error" if relapsed is None else f"relapse of {relapsed}"
                return await _open(tx, facts, event, severity, status_of(queued=queued), why)
            if await tx.row(_JOIN, **_only(_ERROR_KEYS, facts), recovery_id=latest["id"]) is None:
                raise ForeignService("This error belongs to another tenant.")
            return Acceptance(event.error_id, severity, rows.recovery(latest), role)

        try:
            return await self._database.run(work)
        except IntegrityError:
            # Someone opened a recovery of this incident without its lock: now it is there to be joined.
            return await self._database.run(work)


def status_of(*, queued: bool) -> Status:
    return Status.QUEUED if queued else Status.RUNNING


def _role(latest: Row | None, *, rerun: bool) -> Role:
    if latest is None:
        return "opened"
    status = Status(latest["status"])
    if not status.final:
        return "joined_running"
    if rerun:
        return "opened"
    if status is Status.RECOVERED:
        joins = latest["began_before_end"] or latest["began_before_directive"]
    else:
        joins = latest["cooling"] and status is not Status.RELAPSED
    return "joined_closed" if joins else "opened"


async def _open(
    tx: Transaction, facts: dict[str, object], event: Event, severity: Severity, status: Status, why: str
) -> Acceptance:
    row = await tx.row(
        _OPEN, **facts, recovery_id=uuid4(), status=status.value, waited=event.waiter is not None, why=why
    )
    if row is None:
        raise ForeignService("This error belongs to another tenant.")
    tx.announce(topics.QUEUE)
    return Acceptance(event.error_id, severity, rows.recovery(row), "opened")


async def _duplicate(tx: Transaction, tenant: str, delivery_id: str) -> Acceptance:
    found = await tx.row(_DUPLICATE, tenant=tenant, delivery_id=delivery_id)
    if found is None:
        raise RuntimeError("A delivery is stored without its error.")
    own = await tx.row(_OWN, error_id=found["id"], tenant=tenant)
    recovery: RecoveryRecord | None = rows.recovery(own) if own is not None else None
    return Acceptance(UUID(str(found["id"])), Severity(found["severity"]), recovery, "duplicate")


_TAKE_KEYS = ("tenant", "service", "fingerprint", "type", "error_id")
_ERROR_KEYS = (
    "error_id", "tenant", "service", "environment", "incident_id", "type", "message", "severity", "origin",
    "occurred_at", "age_s", "desired_version", "waiter_s", "can",
)  # fmt: skip


def _only(keys: tuple[str, ...], facts: dict[str, object]) -> dict[str, object]:
    return {key: facts[key] for key in keys}


def _facts(tenant: str, event: Event, fingerprint: str, runbook: str, severity: Severity) -> dict[str, object]:
    """Parameters of the statements. Numbers are held within what PostgreSQL can count."""
    return {
        "tenant": tenant,
        "error_id": event.error_id,
        "service": _line(event.service),
        "environment": _line(event.environment),
        "fingerprint": fingerprint,
        "runbook": runbook,
        "severity": severity.value,
        "type": _line(event.error.type),
        "message": _line(event.error.message),
        "origin": event.origin,
        "occurred_at": _moment(event.occurred_at),
        "age_s": min(event.age_ms / 1000 if event.age_ms < 1e12 else _LONGEST_AGE_S, _LONGEST_AGE_S),
        "desired_version": min(event.desired_version, _LARGEST_VERSION),
        "waiter_s": None if event.waiter is None else event.waiter.budget_ms / 1000,
        "can": [] if event.waiter is None else [_line(one) for one in event.waiter.can],
    }


def _line(value: str) -> str:
    return value.replace("\x00", "\ufffd")


def _moment(value: datetime) -> datetime:
    """A time that every side can represent; one without a zone is taken as UTC."""
    aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    return aware if 1970 <= aware.year <= 2200 else datetime.now(UTC)


def _body(event: Event) -> str:
    body = event.model_dump_json()
    return as_json(event.model_dump(mode="json")) if "\\u0000" in body else body
