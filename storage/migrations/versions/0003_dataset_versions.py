"""Datasets have versions: what is unique is a name with its version."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NAMES = {"uq": "%(table_name)s_%(column_0_name)s_key"}  # SQLite gave the old constraint none; PostgreSQL names its own so


def upgrade() -> None:
    with op.batch_alter_table("dataset", naming_convention=NAMES) as table:
        table.drop_constraint("dataset_name_key", type_="unique")
        table.add_column(sa.Column("version", sa.Integer, nullable=False, server_default=sa.text("1")))
        table.add_column(sa.Column("parent_id", sa.String(32), nullable=False, server_default=sa.text("''")))
        table.add_column(sa.Column("made_by", sa.String(500), nullable=False, server_default=sa.text("''")))
        table.create_unique_constraint("dataset_name_version", ["name", "version"])
