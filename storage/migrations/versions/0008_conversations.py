"""Conversations with their messages, votes between replies, and a library of prompts."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "conversation",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("title", sa.String(200), nullable=False),
        sa.Column("system", sa.String, nullable=False),
        sa.Column("leaf_id", sa.String(32), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
    )
    op.create_index("conversation_by_age", "conversation", ["updated_at", "id"])
    op.create_table(
        "message",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("conversation_id", sa.String(32), sa.ForeignKey("conversation.id", ondelete="CASCADE"), nullable=False),
        sa.Column("parent_id", sa.String(32), nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("content", sa.String, nullable=False),
        sa.Column("voice", sa.String(1000), nullable=False),
        sa.Column("adapter_id", sa.String(32), nullable=False),
        sa.Column("adapter_sha256", sa.String(64), nullable=False),
        sa.Column("base", sa.String(200), nullable=False),
        sa.Column("stamp", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_index("message_by_conversation", "message", ["conversation_id", "created_at"])
    op.create_table(
        "vote",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("prompt", sa.String, nullable=False),
        sa.Column("compared", sa.JSON, nullable=False),
        sa.Column("winner", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "prompt",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("text", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.UniqueConstraint("name"),
    )
