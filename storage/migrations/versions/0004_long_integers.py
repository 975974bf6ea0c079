"""Counts and sizes of more than 2,147,483,647: a base of three gigabytes has more bytes than 32 bits can count.

SQLite's integers have 64 bits already, and rebuilding its tables would delete the rows that point at theirs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

COLUMNS = {
    "base": ("size_bytes",),
    "dataset": ("rows", "turns", "size_bytes"),
    "adapter": ("size_bytes",),
    "job_event": ("id",),
}


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, columns in COLUMNS.items():
        for column in columns:
            op.alter_column(table, column, existing_type=sa.Integer(), type_=sa.BigInteger())
    op.execute("ALTER SEQUENCE job_event_id_seq AS bigint")
