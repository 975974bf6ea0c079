"""Adapters are sorted by how often they won a vote and by what training gained; their content is looked up by an index."""

import math
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

AT_ONCE = 500


def upgrade() -> None:
    op.create_table(
        "tally",
        sa.Column("adapter_id", sa.String(32), primary_key=True),
        sa.Column("wins", sa.Integer, nullable=False),
        sa.Column("votes", sa.Integer, nullable=False),
    )
    op.add_column("shelf", sa.Column("won", sa.Float, nullable=False, server_default=sa.text("-1")))
    op.add_column("shelf", sa.Column("gain", sa.Float, nullable=False, server_default=sa.text("-1e300")))
    _fill_tally()
    _fill_gain()
    op.execute(
        "UPDATE shelf SET won = (SELECT CAST(t.wins AS FLOAT) / t.votes FROM tally t WHERE t.adapter_id = shelf.adapter_id) "
        "WHERE adapter_id IN (SELECT adapter_id FROM tally)"
    )
    for name in ("won", "gain"):
        op.create_index(f"shelf_by_{name}", "shelf", ["state", name, "number"])
    op.create_index("adapter_by_content", "adapter", ["sha256"])


def _fill_tally() -> None:
    vote = sa.table("vote", sa.column("compared", sa.JSON), sa.column("winner", sa.Integer))
    tally = sa.table("tally", sa.column("adapter_id"), sa.column("wins"), sa.column("votes"))
    counted: dict[str, list[int]] = {}
    for compared, winner in op.get_bind().execute(sa.select(vote.c.compared, vote.c.winner)):
        if len({voice.get("sha256", "") for voice in compared}) > 1:  # replies of one voice alone say nothing about it
            for adapter_id in {voice.get("adapter_id", "") for voice in compared} - {""}:
                wins_votes = counted.setdefault(adapter_id, [0, 0])
                wins_votes[0] += compared[winner].get("adapter_id") == adapter_id
                wins_votes[1] += 1
    if counted:
        rows = [{"adapter_id": adapter_id, "wins": wins, "votes": votes} for adapter_id, (wins, votes) in counted.items()]
        op.get_bind().execute(sa.insert(tally), rows)


def _fill_gain() -> None:
    adapter = sa.table("adapter", sa.column("id"), sa.column("metrics", sa.JSON))
    change = sa.text("UPDATE shelf SET gain = :gain WHERE adapter_id = :id")
    found = op.get_bind().execute(sa.select(adapter.c.id, adapter.c.metrics)).all()
    gains = [{"id": adapter_id, "gain": gain} for adapter_id, metrics in found if (gain := _gain(metrics)) is not None]
    for start in range(0, len(gains), AT_ONCE):
        op.get_bind().execute(change, gains[start : start + AT_ONCE])


def _gain(metrics: Any) -> float | None:
    if not isinstance(metrics, Mapping):
        return None
    before, after = metrics.get("eval_loss_before"), metrics.get("eval_loss")
    is_known = all(isinstance(loss, int | float) and math.isfinite(loss) for loss in (before, after))
    return float(before - after) if is_known else None  # type: ignore[operator]
