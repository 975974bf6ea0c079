"""What is to be told to a webhook, written in the transaction that it tells of."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

OPEN = "state = 'open'"


def upgrade() -> None:
    op.create_table(
        "notification",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("event", sa.String(20), nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("due_at", sa.Float, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.String(100), nullable=False),
        sa.Column("ended_at", sa.Float),
        sa.Column("error", sa.String(500), nullable=False),
    )
    op.create_index("notification_by_age", "notification", ["created_at"])
    op.create_index("notification_due", "notification", ["due_at"], sqlite_where=sa.text(OPEN), postgresql_where=sa.text(OPEN))
