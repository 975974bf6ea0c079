"""Jobs that were submitted together share a group."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A plain ADD COLUMN: rebuilding the table would delete the events that point at its rows.
    op.add_column("job", sa.Column("group", sa.String(32), nullable=False, server_default=sa.text("''")))
    op.create_index("ix_job_group", "job", ["group"])
