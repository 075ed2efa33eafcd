"""Guardrails: permits, holds, switches, trust, approvals; the audit's service.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "hold_reset",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "service", "fingerprint", name=op.f("hold_reset_pkey")),
        schema="upright",
    )
    op.create_table(
        "switch",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("origin IN ('operator', 'application')", name=op.f("switch_origin_check")),
        sa.PrimaryKeyConstraint("tenant", "service", "origin", name=op.f("switch_pkey")),
        schema="upright",
    )
    op.create_table(
        "trust",
        sa.Column("runbook", sa.Text(), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("level IN ('shadow', 'approve', 'auto')", name=op.f("trust_level_check")),
        sa.PrimaryKeyConstraint("runbook", "strategy", name=op.f("trust_pkey")),
        schema="upright",
    )
    op.create_table(
        "approval",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("recovery_id", sa.Uuid(), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column(
            "values", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("plan", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'waiting'"), nullable=False),
        sa.Column("decided_by", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("via", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("why", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('waiting', 'approved', 'rejected', 'expired')", name=op.f("approval_status_check")
        ),
        sa.ForeignKeyConstraint(
            ["recovery_id"], ["upright.recovery.id"], name=op.f("approval_recovery_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("approval_pkey")),
        sa.UniqueConstraint("recovery_id", "strategy", name=op.f("approval_recovery_id_strategy_key")),
        schema="upright",
    )
    op.create_index(
        "approval_waiting_idx",
        "approval",
        ["created_at"],
        unique=False,
        schema="upright",
        postgresql_where=sa.text("status = 'waiting'"),
    )
    op.create_table(
        "hold",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("recovery_id", sa.Uuid(), nullable=True),
        sa.Column("began_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["recovery_id"], ["upright.recovery.id"], name=op.f("hold_recovery_id_fkey"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("hold_pkey")),
        schema="upright",
    )
    op.create_index("hold_service_idx", "hold", ["tenant", "service", "until"], unique=False, schema="upright")
    op.create_table(
        "permit",
        sa.Column("recovery_id", sa.Uuid(), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("runbook", sa.Text(), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["recovery_id"], ["upright.recovery.id"], name=op.f("permit_recovery_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("recovery_id", "strategy", name=op.f("permit_pkey")),
        schema="upright",
    )
    op.create_index("permit_service_idx", "permit", ["tenant", "service", "taken_at"], unique=False, schema="upright")
    op.create_index("permit_taken_at_idx", "permit", ["taken_at"], unique=False, schema="upright")
    op.create_index(
        "action_strategy_recorded_at_idx", "action", ["strategy", "recorded_at"], unique=False, schema="upright"
    )
    op.add_column(
        "audit", sa.Column("service", sa.Text(), server_default=sa.text("''"), nullable=False), schema="upright"
    )
    op.create_index("audit_at_idx", "audit", ["at"], unique=False, schema="upright")
    op.add_column(
        "recovery", sa.Column("withheld", sa.Text(), server_default=sa.text("''"), nullable=False), schema="upright"
    )
    op.create_index(
        "recovery_finished_idx", "recovery", ["tenant", "service", "finished_at"], unique=False, schema="upright"
    )


def downgrade() -> None:
    op.drop_index("recovery_finished_idx", table_name="recovery", schema="upright")
    op.drop_column("recovery", "withheld", schema="upright")
    op.drop_index("audit_at_idx", table_name="audit", schema="upright")
    op.drop_column("audit", "service", schema="upright")
    op.drop_index("action_strategy_recorded_at_idx", table_name="action", schema="upright")
    op.drop_index("permit_taken_at_idx", table_name="permit", schema="upright")
    op.drop_index("permit_service_idx", table_name="permit", schema="upright")
    op.drop_table("permit", schema="upright")
    op.drop_index("hold_service_idx", table_name="hold", schema="upright")
    op.drop_table("hold", schema="upright")
    op.drop_index(
        "approval_waiting_idx", table_name="approval", schema="upright", postgresql_where=sa.text("status = 'waiting'")
    )
    op.drop_table("approval", schema="upright")
    op.drop_table("trust", schema="upright")
    op.drop_table("switch", schema="upright")
    op.drop_table("hold_reset", schema="upright")
