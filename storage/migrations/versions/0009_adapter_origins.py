"""What kind an adapter is, and whether it was trained here, imported or made of others."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

KINDS = ("dora", "prefix")


def upgrade() -> None:
    for column in (
        sa.Column("kind", sa.String(20), nullable=False, server_default=sa.text("'lora'")),
        sa.Column("origin", sa.String(20), nullable=False, server_default=sa.text("'training'")),
        sa.Column("source", sa.String(500), nullable=False, server_default=sa.text("''")),
        sa.Column("parents", sa.JSON, nullable=False, server_default=sa.text("'[]'")),
    ):
        op.add_column("adapter", column)
    # Read row by row: the two databases have other functions for what is inside JSON.
    adapter = sa.table("adapter", sa.column("id", sa.String), sa.column("kind", sa.String), sa.column("config", sa.JSON))
    connection = op.get_bind()
    for row in connection.execute(sa.select(adapter.c.id, adapter.c.config)).all():
        method = row.config.get("method") if isinstance(row.config, dict) else None
        if method in KINDS:
            connection.execute(adapter.update().where(adapter.c.id == row.id).values(kind=method))
