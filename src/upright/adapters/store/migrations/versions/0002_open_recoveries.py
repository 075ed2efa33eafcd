"""Indexes: concluded recoveries whose run has more to do, commands by their error.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "recovery_open_idx",
        "recovery",
        ["lease_expires_at"],
        schema="upright",
        postgresql_where=sa.text("lease_expires_at IS NOT NULL AND NOT (status IN ('queued', 'running'))"),
    )
    op.create_index(
        "command_error_id_idx",
        "command",
        ["error_id"],
        schema="upright",
        postgresql_where=sa.text("error_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("command_error_id_idx", "command", schema="upright")
    op.drop_index("recovery_open_idx", "recovery", schema="upright")
