"""Evaluations: voices, the rows that they are held to, and what each made of each."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    long = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "evaluation",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("dataset_id", sa.String(32), nullable=False),
        sa.Column("dataset_name", sa.String(300), nullable=False),
        sa.Column("dataset_hash", sa.String(64), nullable=False),
        sa.Column("base_id", sa.String(32), nullable=False),
        sa.Column("base_name", sa.String(200), nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("beat_at", sa.Float, nullable=False),
        sa.Column("finished_at", sa.Float),
        sa.Column("reason", sa.String(1000), nullable=False),
    )
    op.create_index("evaluation_by_age", "evaluation", ["created_at", "id"])
    op.create_table(
        "evaluation_voice",
        sa.Column("evaluation_id", sa.String(32), sa.ForeignKey("evaluation.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(2000), nullable=False),
        sa.Column("label", sa.String(1000), nullable=False),
        sa.Column("adapter_id", sa.String(32), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("errors", sa.Integer, nullable=False),
        sa.Column("values", sa.JSON, nullable=False),
    )
    op.create_index("evaluation_by_adapter", "evaluation_voice", ["adapter_id"])
    op.create_table(
        "evaluation_case",
        sa.Column("evaluation_id", sa.String(32), sa.ForeignKey("evaluation.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("row", long, nullable=False),
        sa.Column("prompt", sa.String, nullable=False),
        sa.Column("reference", sa.String, nullable=False),
    )
    op.create_table(
        "evaluation_answer",
        sa.Column("evaluation_id", sa.String(32), sa.ForeignKey("evaluation.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True),
        sa.Column("nats", sa.Float),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("hits", sa.Integer, nullable=False),
        sa.Column("answer", sa.String, nullable=False),
        sa.Column("scores", sa.JSON, nullable=False),
        sa.Column("error", sa.String(1000), nullable=False),
    )
