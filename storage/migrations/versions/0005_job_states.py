"""Jobs have more states, attempts, an order of their own and a queue that can be held."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INDEXES: tuple[tuple[str, list[Any], str], ...] = (
    ("job_order", [sa.text("priority DESC"), "position", "id"], "state IN ('queued', 'waiting')"),
    ("job_held", ["started_at"], "state IN ('starting', 'running', 'pausing', 'cancelling', 'paused', 'lost')"),
    ("job_over", ["finished_at"], "state IN ('done', 'failed', 'cancelled')"),
)


def upgrade() -> None:
    # Plain ADD and DROP COLUMN: rebuilding the table would delete the events that point at its rows.
    empty = sa.text("''")
    op.add_column("job", sa.Column("priority", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.add_column("job", sa.Column("position", sa.Float, nullable=False, server_default=sa.text("0")))
    op.add_column("job", sa.Column("after", sa.String(32), nullable=False, server_default=empty))
    op.add_column("job", sa.Column("copied_from", sa.String(32), nullable=False, server_default=empty))
    op.add_column("job", sa.Column("device", sa.String(100), nullable=False, server_default=empty))
    op.add_column("job", sa.Column("cause", sa.String(20), nullable=False, server_default=empty))
    op.create_table(
        "job_attempt",
        sa.Column("job_id", sa.String(32), sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("device", sa.String(100), nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("finished_at", sa.Float),
        sa.Column("ended", sa.String(20), nullable=False),
        sa.Column("reason", sa.String(2000), nullable=False),
    )
    op.create_table(
        "queue",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("held", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("stop_after", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
    )
    op.execute("INSERT INTO queue (id, held, reason, stop_after, failures) VALUES (1, false, '', 0, 0)")
    op.execute("UPDATE job SET position = created_at")
    op.execute("UPDATE job SET state = 'cancelling' WHERE state = 'running' AND cancel_requested")
    # Of the attempts before, only the last is known.
    op.execute(
        "INSERT INTO job_attempt (job_id, number, owner, device, started_at, finished_at, ended, reason) "
        "SELECT id, attempt, lease_owner, '', coalesce(started_at, created_at), finished_at, "
        "CASE WHEN state IN ('running', 'cancelling') THEN '' ELSE state END, reason FROM job WHERE attempt > 0"
    )
    op.drop_column("job", "cancel_requested")
    op.drop_index("job_queue", "job")
    op.create_index("job_by_age", "job", ["created_at"])
    for name, columns, states in INDEXES:
        op.create_index(name, "job", columns, sqlite_where=sa.text(states), postgresql_where=sa.text(states))
