"""Verification: the checks of an action, relapses, and directives that are for some processes first.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_BEFORE = "status IN ('queued', 'running', 'recovered', 'not_recovered', 'unknown', 'cancelled')"
_AFTER = "status IN ('queued', 'running', 'recovered', 'not_recovered', 'unknown', 'cancelled', 'relapsed')"


def upgrade() -> None:
    _check(_AFTER)
    op.add_column("recovery", sa.Column("relapse_of", sa.Uuid(), nullable=True), schema="upright")
    op.create_foreign_key(
        op.f("recovery_relapse_of_fkey"),
        "recovery",
        "recovery",
        ["relapse_of"],
        ["id"],
        source_schema="upright",
        referent_schema="upright",
        ondelete="SET NULL",
    )
    op.add_column("recovery", sa.Column("relapsed_at", sa.DateTime(timezone=True), nullable=True), schema="upright")
    op.add_column(
        "recovery", sa.Column("relapse", sa.Text(), server_default=sa.text("''"), nullable=False), schema="upright"
    )
    op.create_index("recovery_relapse_of_idx", "recovery", ["relapse_of"], schema="upright")
    op.add_column(
        "action",
        sa.Column("checks", postgresql.JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False),
        schema="upright",
    )
    op.add_column("directive", sa.Column("instances", postgresql.ARRAY(sa.Text()), nullable=True), schema="upright")
    op.add_column("directive", sa.Column("replaces", sa.Uuid(), nullable=True), schema="upright")


def downgrade() -> None:
    op.drop_column("directive", "replaces", schema="upright")
    op.drop_column("directive", "instances", schema="upright")
    op.drop_column("action", "checks", schema="upright")
    op.drop_index("recovery_relapse_of_idx", "recovery", schema="upright")
    op.drop_column("recovery", "relapse", schema="upright")
    op.drop_column("recovery", "relapsed_at", schema="upright")
    op.drop_constraint(op.f("recovery_relapse_of_fkey"), "recovery", schema="upright")
    op.drop_column("recovery", "relapse_of", schema="upright")
    op.execute("UPDATE upright.action SET verdict = 'not_recovered' WHERE verdict = 'relapsed'")
    op.execute("UPDATE upright.recovery SET status = 'not_recovered' WHERE status = 'relapsed'")
    _check(_BEFORE)


def _check(condition: str) -> None:
    op.drop_constraint(op.f("recovery_status_check"), "recovery", schema="upright")
    op.create_check_constraint(op.f("recovery_status_check"), "recovery", condition, schema="upright")
