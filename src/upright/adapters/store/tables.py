"""The tables, in a schema of their own so that the database may be shared. Migrations must agree with this; a test
compares them. Every time is PostgreSQL's own clock."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB

from upright.domain.verdict import Status

SCHEMA = "upright"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    },
)

UNFINISHED = "status IN ('queued', 'running')"


def _moment(name: str, *, default: bool = False) -> Column[object]:
    now = text("clock_timestamp()") if default else None
    return Column(name, DateTime(timezone=True), nullable=not default, server_default=now)


def _object(name: str) -> Column[object]:
    return Column(name, JSONB, nullable=False, server_default=text("'{}'::jsonb"))


def _words(name: str) -> Column[object]:
    return Column(name, ARRAY(Text), nullable=False, server_default=text("'{}'::text[]"))


def _text(name: str, default: str | None = None) -> Column[object]:
    return Column(name, Text, nullable=False, server_default=None if default is None else text(f"'{default}'"))


tenant = Table("tenant", metadata, Column("name", Text, primary_key=True), _moment("created_at", default=True))

event = Table(
    "event",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _text("tenant"),
    _text("delivery_id"),
    Column("error_id", Uuid, nullable=False),
    _moment("received_at", default=True),
    Column("body", JSONB, nullable=False),
    UniqueConstraint("tenant", "delivery_id"),
    Index("event_error_id_id_idx", "error_id", "id"),
)

incident = Table(
    "incident",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("tenant", Text, ForeignKey(tenant.c.name), nullable=False),
    _text("service"),
    _text("fingerprint"),
    _text("error_type"),
    Column("count", BigInteger, nullable=False, server_default=text("1")),
    _moment("first_seen", default=True),
    _moment("last_seen", default=True),
    UniqueConstraint("tenant", "service", "fingerprint"),
)

error = Table(
    "error",
    metadata,
    Column("id", Uuid, primary_key=True),
    _text("tenant"),
    _text("service"),
    _text("environment"),
    Column("incident_id", Uuid, ForeignKey(incident.c.id), nullable=False),
    Column("recovery_id", Uuid, ForeignKey("upright.recovery.id", use_alter=True), nullable=True),
    _text("type"),
    _text("message"),
    _text("severity"),
    _text("origin"),
    _moment("occurred_at", default=True),
    _moment("began_at", default=True),
    _moment("received_at", default=True),
    Column("desired_version", BigInteger, nullable=False, server_default=text("0")),
    # What this caller found out about its own operation; null while nothing is known.
    Column("own_result", Boolean, nullable=True),
    # Until then a caller waits: its request is held, or it is busy with a command.
    _moment("waiter_until"),
    _words("waiter_can"),
    # The recovery whose final verdict the application has.
    Column("delivered_recovery_id", Uuid, nullable=True),
    # The process that was last given the outcome, and when: another one gets it if this one doesn't acknowledge.
    _text("outcome_instance", ""),
    _moment("outcome_handed_at"),
    Index("error_recovery_id_idx", "recovery_id"),
    Index("error_incident_id_idx", "incident_id"),
    Index("error_received_at_idx", "received_at"),
    Index(
        "error_undelivered_idx",
        "tenant",
        "service",
        "received_at",
        postgresql_where=text("delivered_recovery_id IS DISTINCT FROM recovery_id"),
    ),
)

recovery = Table(
    "recovery",
    metadata,
    Column("id", Uuid, primary_key=True),
    _text("tenant"),
    Column("incident_id", Uuid, ForeignKey(incident.c.id), nullable=False),
    Column("error_id", Uuid, ForeignKey(error.c.id), nullable=False),
    _text("fingerprint"),
    _text("service"),
    _text("runbook"),
    _text("severity"),
    _text("status"),
    Column("epoch", BigInteger, nullable=False, server_default=text("1")),
    Column("flow_run_id", Uuid, nullable=True),
    Column("flow_run_attempt", Integer, nullable=False, server_default=text("0")),
    Column("runner", Text, nullable=True),
    _moment("lease_expires_at"),
    Column("waited", Boolean, nullable=False, server_default=text("false")),
    _text("message", ""),
    _object("explanation"),
    _moment("created_at", default=True),
    _moment("started_at"),
    _moment("finished_at"),
    # Why it was not attempted, or empty.
    _text("withheld", ""),
    # The recovery whose error came back, and, of one that relapsed, when and how.
    Column("relapse_of", Uuid, ForeignKey("upright.recovery.id", ondelete="SET NULL"), nullable=True),
    _moment("relapsed_at"),
    _text("relapse", ""),
    CheckConstraint(
        "status IN ({})".format(", ".join(f"'{status.value}'" for status in Status)),
        name="status",
    ),
    Index("recovery_one_in_flight_idx", "incident_id", unique=True, postgresql_where=text(UNFINISHED)),
    Index("recovery_incident_id_created_at_idx", "incident_id", "created_at"),
    Index("recovery_error_id_idx", "error_id"),
    Index("recovery_flow_run_id_idx", "flow_run_id"),
    Index("recovery_finished_at_idx", "finished_at"),
    Index("recovery_finished_idx", "tenant", "service", "finished_at"),
    Index("recovery_relapse_of_idx", "relapse_of"),
    Index("recovery_unfinished_idx", "status", "lease_expires_at", postgresql_where=text(UNFINISHED)),
    Index(
        "recovery_open_idx",
        "lease_expires_at",
        postgresql_where=text(f"lease_expires_at IS NOT NULL AND NOT ({UNFINISHED})"),
    ),
)

action = Table(
    "action",
    metadata,
    Column("recovery_id", Uuid, ForeignKey(recovery.c.id, ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    _text("strategy"),
    _text("verdict"),
    _text("reason", ""),
    _object("values"),
    _object("before"),
    _object("after"),
    Column("evidence", JSONB, nullable=True),
    Column("score", DOUBLE_PRECISION, nullable=True),
    Column("cost_s", DOUBLE_PRECISION, nullable=True),
    Column("duration_ms", DOUBLE_PRECISION, nullable=False, server_default=text("0")),
    Column("directive_version", BigInteger, nullable=True),
    # How likely scoring was to give it its place, and whether its verdict tells of it rather than of another's change.
    Column("propensity", DOUBLE_PRECISION, nullable=True),
    Column("attributed", Boolean, nullable=False, server_default=text("true")),
    Column("checks", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    _moment("recorded_at", default=True),
    Index("action_strategy_recorded_at_idx", "strategy", "recorded_at"),
)

model_version = Table(
    "model_version",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    # The challenger's file, and its digest; null where there was too little to train one.
    Column("artifact", LargeBinary, nullable=True),
    _text("sha256", ""),
    _object("beta"),
    _object("evaluation"),
    _text("card", ""),
    Column("outcomes", Integer, nullable=False, server_default=text("0")),
    _moment("trained_until"),
    _moment("promoted_at"),
    _moment("created_at", default=True),
)

model_use = Table(
    "model_use",
    metadata,
    Column("tenant", Text, primary_key=True),
    _text("uses"),
    Column("version", Integer, nullable=True),
    _text("who", ""),
    _text("why", ""),
    _moment("since", default=True),
    CheckConstraint("uses IN ('priors', 'beta', 'challenger')", name="uses"),
)

service_version = Table(
    "service_version",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
)

directive = Table(
    "directive",
    metadata,
    Column("id", Uuid, primary_key=True),
    _text("tenant"),
    _text("service"),
    _text("strategy"),
    _text("target"),
    Column("version", BigInteger, nullable=False),
    _object("values"),
    _text("scope"),
    Column("recovery_id", Uuid, ForeignKey(recovery.c.id), nullable=False),
    _moment("created_at", default=True),
    _moment("expires_at", default=True),
    # Another directive has taken its place; the target is still changed.
    _moment("superseded_at"),
    _moment("withdrawn_at"),
    # The processes that it is for, null for all; the others hold on to what it replaces.
    Column("instances", ARRAY(Text), nullable=True),
    Column("replaces", Uuid, nullable=True),
    CheckConstraint("scope IN ('process', 'once')", name="scope"),
    UniqueConstraint("tenant", "service", "version"),
    Index("directive_recovery_id_idx", "recovery_id"),
    Index(
        "directive_desired_idx",
        "tenant",
        "service",
        "strategy",
        "target",
        unique=True,
        postgresql_where=text("scope = 'process' AND superseded_at IS NULL AND withdrawn_at IS NULL"),
    ),
)

acknowledgement = Table(
    "acknowledgement",
    metadata,
    Column("directive_id", Uuid, ForeignKey(directive.c.id, ondelete="CASCADE"), primary_key=True),
    Column("instance", Text, primary_key=True),
    Column("status", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    _text("reason", ""),
    _object("before"),
    _object("after"),
    Column("duration_ms", DOUBLE_PRECISION, nullable=False, server_default=text("0")),
    _moment("received_at", default=True),
)

instance = Table(
    "instance",
    metadata,
    Column("tenant", Text, ForeignKey(tenant.c.name), primary_key=True),
    Column("service", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    _text("environment"),
    Column("desired_version", BigInteger, nullable=False, server_default=text("0")),
    _object("measurements"),
    _object("capabilities"),
    _object("settings"),
    # Grows with every sync, so that the end of an older held one can't speak for the process.
    Column("sync", BigInteger, nullable=False, server_default=text("1")),
    _moment("seen_at", default=True),
    _moment("held_until"),
    _moment("gone_at"),
)

command = Table(
    "command",
    metadata,
    Column("id", Uuid, primary_key=True),
    _text("tenant"),
    _text("service"),
    # The caller that waits for this error carries it out; null: an agent of the service does.
    Column("error_id", Uuid, ForeignKey(error.c.id, ondelete="CASCADE"), nullable=True),
    Column("instance", Text, nullable=True),
    _text("kind"),
    Column("body", JSONB, nullable=False),
    _text("status", "waiting"),
    Column("taken_by", Text, nullable=True),
    Column("result", JSONB, nullable=True),
    _moment("created_at", default=True),
    _moment("deadline_at", default=True),
    _moment("taken_at"),
    _moment("finished_at"),
    CheckConstraint("status IN ('waiting', 'taken', 'done', 'expired')", name="status"),
    Index("command_error_id_idx", "error_id", postgresql_where=text("error_id IS NOT NULL")),
    Index(
        "command_waiting_error_idx",
        "error_id",
        postgresql_where=text("status = 'waiting' AND error_id IS NOT NULL"),
    ),
    Index(
        "command_waiting_service_idx",
        "tenant",
        "service",
        postgresql_where=text("status = 'waiting' AND error_id IS NULL"),
    ),
)

alert = Table(
    "alert",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("recovery_id", Uuid, ForeignKey(recovery.c.id, ondelete="CASCADE"), nullable=False),
    _text("kind"),
    _text("channel"),
    _words("recipients"),
    _text("subject"),
    _text("status"),
    _text("detail", ""),
    _text("about", ""),
    Column("attempt", Integer, nullable=False, server_default=text("1")),
    _moment("recorded_at", default=True),
    Index("alert_recovery_id_idx", "recovery_id"),
    Index("alert_recorded_at_idx", "recorded_at"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _moment("at", default=True),
    _text("tenant"),
    _text("who"),
    _text("what"),
    _text("subject"),
    _text("why", ""),
    _object("before"),
    _object("after"),
    _text("service", ""),
    Index("audit_subject_idx", "subject"),
    Index("audit_at_idx", "at"),
)

actuator_lock = Table(
    "actuator_lock",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("actuator", Text, primary_key=True),
    Column("target", Text, primary_key=True),
    Column("recovery_id", Uuid, ForeignKey(recovery.c.id, ondelete="CASCADE"), nullable=False),
    _moment("expires_at", default=True),
    Index("actuator_lock_recovery_id_idx", "recovery_id"),
)

scaling = Table(
    "scaling",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("replica", Text, primary_key=True),
    # Processes before anything was added, and with what was added.
    Column("base", Integer, nullable=False),
    Column("processes", Integer, nullable=False),
    _text("incarnation"),
    Column("recovery_id", Uuid, ForeignKey(recovery.c.id), nullable=False),
    _moment("created_at", default=True),
    _moment("expires_at", default=True),
    # Who takes it back, until when.
    Column("runner", Text, nullable=True),
    _moment("leased_until"),
    Index("scaling_recovery_id_idx", "recovery_id"),
)

health_watch = Table(
    "health_watch",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    # Who probes it, until when.
    _text("runner"),
    _moment("leased_until", default=True),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    _moment("failing_since"),
    Column("reports", Integer, nullable=False, server_default=text("0")),
    _moment("reported_at"),
)

# A place within the limits, taken when an action begins. What came to nothing gives it back.
permit = Table(
    "permit",
    metadata,
    Column("recovery_id", Uuid, ForeignKey(recovery.c.id, ondelete="CASCADE"), primary_key=True),
    Column("strategy", Text, primary_key=True),
    _text("tenant"),
    _text("service"),
    _text("runbook"),
    _moment("taken_at", default=True),
    _moment("ended_at"),
    Index("permit_taken_at_idx", "taken_at"),
    Index("permit_service_idx", "tenant", "service", "taken_at"),
)

hold = Table(
    "hold",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _text("tenant"),
    _text("service"),
    # Empty: of the whole service.
    _text("fingerprint"),
    _text("reason"),
    Column("recovery_id", Uuid, ForeignKey(recovery.c.id, ondelete="SET NULL"), nullable=True),
    _moment("began_at", default=True),
    Column("until", DateTime(timezone=True), nullable=False),
    Index("hold_service_idx", "tenant", "service", "until"),
)

# From when on failures count again.
hold_reset = Table(
    "hold_reset",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("fingerprint", Text, primary_key=True),
    _moment("at", default=True),
)

switch = Table(
    "switch",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("origin", Text, primary_key=True),
    Column("by", Text, nullable=False),
    _text("why", ""),
    _moment("at", default=True),
    CheckConstraint("origin IN ('operator', 'application')", name="origin"),
)

trust = Table(
    "trust",
    metadata,
    Column("runbook", Text, primary_key=True),
    # Empty: the whole runbook.
    Column("strategy", Text, primary_key=True),
    _text("level"),
    Column("by", Text, nullable=False),
    _text("why", ""),
    _moment("at", default=True),
    CheckConstraint("level IN ('shadow', 'approve', 'auto')", name="level"),
)

approval = Table(
    "approval",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("recovery_id", Uuid, ForeignKey(recovery.c.id, ondelete="CASCADE"), nullable=False),
    _text("strategy"),
    _text("target", ""),
    _object("values"),
    _text("plan", ""),
    _text("status", "waiting"),
    _text("decided_by", ""),
    _text("via", ""),
    _text("why", ""),
    _moment("created_at", default=True),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    _moment("decided_at"),
    CheckConstraint("status IN ('waiting', 'approved', 'rejected', 'expired')", name="status"),
    UniqueConstraint("recovery_id", "strategy"),
    Index("approval_waiting_idx", "created_at", postgresql_where=text("status = 'waiting'")),
)
