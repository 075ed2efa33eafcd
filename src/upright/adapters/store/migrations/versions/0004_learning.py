"""Learning: how actions came to be chosen, versions of models, and which of them scores"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_index("recovery_finished_at_idx", "recovery", ["finished_at"], schema="upright")
    op.add_column("action", sa.Column("propensity", postgresql.DOUBLE_PRECISION(), nullable=True), schema="upright")
    op.add_column(
        "action",
        sa.Column("attributed", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        schema="upright",
    )
    op.create_table(
        "model_version",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("artifact", sa.LargeBinary(), nullable=True),
        sa.Column("sha256", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("beta", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("evaluation", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("card", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("outcomes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("trained_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("promoted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("tenant", "version", name=op.f("model_version_pkey")),
        schema="upright",
    )
    op.create_table(
        "model_use",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("uses", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("who", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("why", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("uses IN ('priors', 'beta', 'challenger')", name=op.f("model_use_uses_check")),
        sa.PrimaryKeyConstraint("tenant", name=op.f("model_use_pkey")),
        schema="upright",
    )


def downgrade() -> None:
    op.drop_table("model_use", schema="upright")
    op.drop_table("model_version", schema="upright")
    op.drop_column("action", "attributed", schema="upright")
    op.drop_column("action", "propensity", schema="upright")
    op.drop_index("recovery_finished_at_idx", "recovery", schema="upright")
