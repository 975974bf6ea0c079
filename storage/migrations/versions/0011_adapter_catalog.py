"""Adapters have versions, tags, collections, a card and an index that they are found by.

The index itself is no table of SQLAlchemy's: a full-text table on SQLite, a column of words on PostgreSQL. Both hold what the
studio split and folded itself, and are filled when it opens the database (`storage.shelf`). From here on `shelf` points at
`adapter`: who rebuilds that table empties this one, and the studio fills it again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

NAMES = {"uq": "%(table_name)s_%(column_0_name)s_key"}  # SQLite gave the old constraint none; PostgreSQL names its own so
SORTED = {"newest": (), "name": ("name",), "loss": ("loss",), "rank": ("rank",), "size": ("size_bytes",)}
SQLITE = (
    # The words are split already. Prefixes of up to seven characters are looked up; what longer ones begin is merged each time.
    "CREATE VIRTUAL TABLE adapter_words USING fts5(words, tokenize='ascii', prefix='1 2 3 4 5 6 7', detail='none')",
    "CREATE VIRTUAL TABLE adapter_words_vocab USING fts5vocab(adapter_words, 'row')",
    "CREATE TRIGGER shelf_left AFTER DELETE ON shelf BEGIN DELETE FROM adapter_words WHERE rowid = old.number; END",
)
POSTGRES = (
    "CREATE TABLE adapter_words (number bigint PRIMARY KEY REFERENCES shelf (number) ON DELETE CASCADE, "
    "words tsvector NOT NULL, facets text[] NOT NULL)",
    "CREATE INDEX adapter_words_found ON adapter_words USING gin (words)",
)


def upgrade() -> None:
    empty, none = sa.text("''"), sa.text("'[]'")
    with op.batch_alter_table("adapter", naming_convention=NAMES) as table:
        table.drop_constraint("adapter_name_key", type_="unique")
        table.add_column(sa.Column("version", sa.Integer, nullable=False, server_default=sa.text("1")))
        table.add_column(sa.Column("current", sa.Boolean, nullable=False, server_default=sa.text("true")))
        table.add_column(sa.Column("tags", sa.JSON, nullable=False, server_default=none))
        table.add_column(sa.Column("collections", sa.JSON, nullable=False, server_default=none))
        table.add_column(sa.Column("favourite", sa.Boolean, nullable=False, server_default=sa.text("false")))
        table.add_column(sa.Column("archived_at", sa.Float))
        table.add_column(sa.Column("owner", sa.String(100), nullable=False, server_default=empty))
        table.add_column(sa.Column("licence", sa.String(100), nullable=False, server_default=empty))
        table.add_column(sa.Column("card", sa.String, nullable=False, server_default=empty))
        table.create_unique_constraint("adapter_name_version", ["name", "version"])
    is_current = sa.text("current")
    op.create_index("adapter_current", "adapter", ["name"], unique=True, sqlite_where=is_current, postgresql_where=is_current)
    op.create_index("adapter_by_dataset", "adapter", ["dataset_id"])
    listed = sa.text("current AND archived_at IS NULL")
    columns = ["base_fingerprint", "favourite", "created_at", "id"]
    op.create_index("adapter_voices", "adapter", columns, sqlite_where=listed, postgresql_where=listed)
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "shelf",
        sa.Column("number", number, primary_key=True, autoincrement=True),
        sa.Column("adapter_id", sa.String(32), sa.ForeignKey("adapter.id", ondelete="CASCADE"), nullable=False, unique=True),
        sa.Column("state", sa.String(1), nullable=False),
        sa.Column("name", sa.String(400), nullable=False),
        sa.Column("loss", sa.Float, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("size_bytes", number, nullable=False),
    )
    for name, sorted_by in SORTED.items():
        op.create_index(f"shelf_by_{name}", "shelf", ["state", *sorted_by, "number"])
    for statement in SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRES:
        op.execute(statement)
