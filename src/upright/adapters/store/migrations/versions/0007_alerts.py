"""Alerts: what each told, and which attempt it was.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "alert", sa.Column("about", sa.Text(), server_default=sa.text("''"), nullable=False), schema="upright"
    )
    op.add_column(
        "alert", sa.Column("attempt", sa.Integer(), server_default=sa.text("1"), nullable=False), schema="upright"
    )
    op.create_index("alert_recorded_at_idx", "alert", ["recorded_at"], schema="upright")


def downgrade() -> None:
    op.drop_index("alert_recorded_at_idx", "alert", schema="upright")
    op.drop_column("alert", "attempt", schema="upright")
    op.drop_column("alert", "about", schema="upright")
