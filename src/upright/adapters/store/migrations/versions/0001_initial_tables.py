"""Initial tables"""

# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

# Retention may prune old rows, and says so; nothing may rewrite one.
_APPEND_ONLY = """
CREATE FUNCTION upright.audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('upright.pruning', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'The audit trail is append-only.';
END $$;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON upright.audit
    FOR EACH ROW EXECUTE FUNCTION upright.audit_is_append_only();
CREATE TRIGGER audit_not_emptied BEFORE TRUNCATE ON upright.audit
    FOR EACH STATEMENT EXECUTE FUNCTION upright.audit_is_append_only();
"""


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column(
            "before", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column(
            "after", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_pkey")),
        schema="upright",
    )
    op.create_index("audit_subject_idx", "audit", ["subject"], unique=False, schema="upright")
    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("delivery_id", sa.Text(), nullable=False),
        sa.Column("error_id", sa.Uuid(), nullable=False),
        sa.Column(
            "received_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("body", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("event_pkey")),
        sa.UniqueConstraint("tenant", "delivery_id", name=op.f("event_tenant_delivery_id_key")),
        schema="upright",
    )
    op.create_index("event_error_id_id_idx", "event", ["error_id", "id"], unique=False, schema="upright")
    op.create_table(
        "service_version",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "service", name=op.f("service_version_pkey")),
        schema="upright",
    )
    op.create_table(
        "tenant",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("tenant_pkey")),
        schema="upright",
    )
    op.create_table(
        "incident",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("error_type", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "first_seen", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("last_seen", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["upright.tenant.name"], name=op.f("incident_tenant_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("incident_pkey")),
        sa.UniqueConstraint("tenant", "service", "fingerprint", name=op.f("incident_tenant_service_fingerprint_key")),
        schema="upright",
    )
    op.create_table(
        "instance",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("desired_version", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "measurements",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "capabilities",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "settings", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("sync", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("gone_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["upright.tenant.name"], name=op.f("instance_tenant_fkey")),
        sa.PrimaryKeyConstraint("tenant", "service", "id", name=op.f("instance_pkey")),
        schema="upright",
    )
    op.create_table(
        "error",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("incident_id", sa.Uuid(), nullable=False),
        sa.Column("recovery_id", sa.Uuid(), nullable=True),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column(
            "occurred_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("began_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column(
            "received_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("desired_version", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("own_result", sa.Boolean(), nullable=True),
        sa.Column("waiter_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("waiter_can", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("delivered_recovery_id", sa.Uuid(), nullable=True),
        sa.Column("outcome_instance", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("outcome_handed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["incident_id"], ["upright.incident.id"], name=op.f("error_incident_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("error_pkey")),
        schema="upright",
    )
    op.create_index("error_incident_id_idx", "error", ["incident_id"], unique=False, schema="upright")
    op.create_index("error_received_at_idx", "error", ["received_at"], unique=False, schema="upright")
    op.create_index("error_recovery_id_idx", "error", ["recovery_id"], unique=False, schema="upright")
    op.create_index(
        "error_undelivered_idx",
        "error",
        ["tenant", "service", "received_at"],
        unique=False,
        schema="upright",
        postgresql_where=sa.text("delivered_recovery_id IS DISTINCT FROM recovery_id"),
    )
    op.create_table(
        "command",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("error_id", sa.Uuid(), nullable=True),
        sa.Column("instance", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("body", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'waiting'"), nullable=False),
        sa.Column("taken_by", sa.Text(), nullable=True),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "deadline_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('waiting', 'taken', 'done', 'expired')", name=op.f("command_status_check")),
        sa.ForeignKeyConstraint(
            ["error_id"], ["upright.error.id"], name=op.f("command_error_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("command_pkey")),
        schema="upright",
    )
    op.create_index(
        "command_waiting_error_idx",
        "command",
        ["error_id"],
        unique=False,
        schema="upright",
        postgresql_where=sa.text("status = 'waiting' AND error_id IS NOT NULL"),
    )
    op.create_index(
        "command_waiting_service_idx",
        "command",
        ["tenant", "service"],
        unique=False,
        schema="upright",
        postgresql_where=sa.text("status = 'waiting' AND error_id IS NULL"),
    )
    op.create_table(
        "recovery",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("incident_id", sa.Uuid(), nullable=False),
        sa.Column("error_id", sa.Uuid(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("runbook", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("flow_run_id", sa.Uuid(), nullable=True),
        sa.Column("flow_run_attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("runner", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("waited", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("message", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column(
            "explanation",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'recovered', 'not_recovered', 'unknown', 'cancelled')",
            name=op.f("recovery_status_check"),
        ),
        sa.ForeignKeyConstraint(["error_id"], ["upright.error.id"], name=op.f("recovery_error_id_fkey")),
        sa.ForeignKeyConstraint(["incident_id"], ["upright.incident.id"], name=op.f("recovery_incident_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("recovery_pkey")),
        schema="upright",
    )
    op.create_index("recovery_error_id_idx", "recovery", ["error_id"], unique=False, schema="upright")
    op.create_index("recovery_flow_run_id_idx", "recovery", ["flow_run_id"], unique=False, schema="upright")
    op.create_index(
        "recovery_incident_id_created_at_idx", "recovery", ["incident_id", "created_at"], unique=False, schema="upright"
    )
    op.create_index(
        "recovery_one_in_flight_idx",
        "recovery",
        ["incident_id"],
        unique=True,
        schema="upright",
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.create_index(
        "recovery_unfinished_idx",
        "recovery",
        ["status", "lease_expires_at"],
        unique=False,
        schema="upright",
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.create_table(
        "action",
        sa.Column("recovery_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column(
            "values", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column(
            "before", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column(
            "after", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("evidence", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("score", postgresql.DOUBLE_PRECISION(), nullable=True),
        sa.Column("cost_s", postgresql.DOUBLE_PRECISION(), nullable=True),
        sa.Column("duration_ms", postgresql.DOUBLE_PRECISION(), server_default=sa.text("0"), nullable=False),
        sa.Column("directive_version", sa.BigInteger(), nullable=True),
        sa.Column(
            "recorded_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["recovery_id"], ["upright.recovery.id"], name=op.f("action_recovery_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("recovery_id", "position", name=op.f("action_pkey")),
        schema="upright",
    )
    op.create_table(
        "actuator_lock",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("actuator", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("recovery_id", sa.Uuid(), nullable=False),
        sa.Column(
            "expires_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["recovery_id"], ["upright.recovery.id"], name=op.f("actuator_lock_recovery_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "service", "actuator", "target", name=op.f("actuator_lock_pkey")),
        schema="upright",
    )
    op.create_index("actuator_lock_recovery_id_idx", "actuator_lock", ["recovery_id"], unique=False, schema="upright")
    op.create_table(
        "alert",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("recovery_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("recipients", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column(
            "recorded_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["recovery_id"], ["upright.recovery.id"], name=op.f("alert_recovery_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("alert_pkey")),
        schema="upright",
    )
    op.create_index("alert_recovery_id_idx", "alert", ["recovery_id"], unique=False, schema="upright")
    op.create_table(
        "directive",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column(
            "values", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("recovery_id", sa.Uuid(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "expires_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("scope IN ('process', 'once')", name=op.f("directive_scope_check")),
        sa.ForeignKeyConstraint(["recovery_id"], ["upright.recovery.id"], name=op.f("directive_recovery_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("directive_pkey")),
        sa.UniqueConstraint("tenant", "service", "version", name=op.f("directive_tenant_service_version_key")),
        schema="upright",
    )
    op.create_index(
        "directive_desired_idx",
        "directive",
        ["tenant", "service", "strategy", "target"],
        unique=True,
        schema="upright",
        postgresql_where=sa.text("scope = 'process' AND superseded_at IS NULL AND withdrawn_at IS NULL"),
    )
    op.create_index("directive_recovery_id_idx", "directive", ["recovery_id"], unique=False, schema="upright")
    op.create_table(
        "acknowledgement",
        sa.Column("directive_id", sa.Uuid(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column(
            "before", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column(
            "after", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("duration_ms", postgresql.DOUBLE_PRECISION(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "received_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["directive_id"],
            ["upright.directive.id"],
            name=op.f("acknowledgement_directive_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("directive_id", "instance", "status", name=op.f("acknowledgement_pkey")),
        schema="upright",
    )
    op.create_foreign_key(
        "error_recovery_id_fkey",
        "error",
        "recovery",
        ["recovery_id"],
        ["id"],
        source_schema="upright",
        referent_schema="upright",
    )
    op.execute(_APPEND_ONLY)


def downgrade() -> None:
    op.drop_constraint("error_recovery_id_fkey", "error", schema="upright")
    op.drop_table("acknowledgement", schema="upright")
    op.drop_table("directive", schema="upright")
    op.drop_table("alert", schema="upright")
    op.drop_table("actuator_lock", schema="upright")
    op.drop_table("action", schema="upright")
    op.drop_table("recovery", schema="upright")
    op.drop_table("command", schema="upright")
    op.drop_table("error", schema="upright")
    op.drop_table("instance", schema="upright")
    op.drop_table("incident", schema="upright")
    op.drop_table("tenant", schema="upright")
    op.drop_table("service_version", schema="upright")
    op.drop_table("event", schema="upright")
    op.drop_table("audit", schema="upright")
    op.execute("DROP FUNCTION upright.audit_is_append_only()")
