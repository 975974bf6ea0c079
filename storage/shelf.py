"""The index of the adapters, kept in the transaction of whatever changes one; all of it follows from other tables."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Float, Table, cast, insert, select, text, update
from sqlalchemy.orm import Session

from storage.records import AdapterRecord
from storage.tables import AdapterRow, BaseRow, DatasetRow, JobRow, ShelfRow, TallyRow
from storage.words import SIGN, facet, folded, words_of

LISTED, ARCHIVED, OLD = "l", "a", "o"  # states; old is a version that its name does not stand for
UNMEASURED = 1e300  # a loss that sorts behind all others
# Kinds of facets.
TAG, BASE, DATASET, KIND, ORIGIN, OWNER, COLLECTION, FAVOURITE = "tbdkrocf"
AT_ONCE = 500


def _table(row: Any) -> Table:
    table = row.__table__
    assert isinstance(table, Table)
    return table


SHELF = _table(ShelfRow)

SQLITE = (
    "DELETE FROM adapter_words WHERE rowid = :number",
    "INSERT INTO adapter_words (rowid, words) VALUES (:number, :words)",
)
COUNT = (
    "INSERT INTO tally (adapter_id, wins, votes) VALUES (:id, :won, 1) "
    "ON CONFLICT (adapter_id) DO UPDATE SET wins = tally.wins + excluded.wins, votes = tally.votes + 1"
)
POSTGRES = (
    "DELETE FROM adapter_words WHERE number = :number",
    "INSERT INTO adapter_words (number, words, facets) VALUES (:number, array_to_tsvector(CAST(:words AS text[])), :facets)",
)


def state_of(adapter: AdapterRow | AdapterRecord) -> str:
    """Where an adapter is listed."""
    return OLD if not adapter.current else LISTED if adapter.archived_at is None else ARCHIVED


def made_of(parent_id: str) -> str:
    """The word of what was made of an adapter, whatever became of it since."""
    return f"{SIGN}p{parent_id.encode().hex()}"


def shelve(session: Session, ids: Iterable[str]) -> None:
    """Write these adapters' entries of the index anew, as their rows are in this transaction."""
    session.flush()
    wanted = list(ids)
    for start in range(0, len(wanted), AT_ONCE):
        _shelve(session, wanted[start : start + AT_ONCE])


def _shelve(session: Session, ids: list[str]) -> None:
    query = select(AdapterRow, BaseRow.name, DatasetRow.name).outerjoin(BaseRow, BaseRow.id == AdapterRow.base_id)
    query = query.outerjoin(DatasetRow, DatasetRow.id == AdapterRow.dataset_id).where(AdapterRow.id.in_(ids))
    found = session.execute(query.order_by(AdapterRow.created_at, AdapterRow.id).execution_options(populate_existing=True)).all()
    if not found:
        return
    known = set(session.scalars(select(SHELF.c.adapter_id).where(SHELF.c.adapter_id.in_(ids))))
    entries = [_entry(row) for row, _, _ in found]
    if new := [entry for entry in entries if entry["adapter_id"] not in known]:
        session.execute(insert(SHELF), new)
        rate([entry["adapter_id"] for entry in new], session)
    for entry in entries:
        if entry["adapter_id"] in known:
            session.execute(update(SHELF).where(SHELF.c.adapter_id == entry["adapter_id"]).values(entry))
    placed = select(SHELF.c.adapter_id, SHELF.c.number).where(SHELF.c.adapter_id.in_(ids))
    numbers: dict[str, int] = dict(session.execute(placed).tuples().all())
    told = _told(session, [row.job_id for row, _, dataset in found if not dataset and row.job_id])
    texts = [(row, base or "", dataset or told.get(row.job_id, "")) for row, base, dataset in found]
    _write_words(session, [{"number": numbers[row.id], **_words(row, base, dataset)} for row, base, dataset in texts])


def count_vote(session: Session, compared: Sequence[dict[str, Any]], winner: int) -> None:
    """Count a vote for the adapters in it. One between replies of one voice alone says nothing about it.

    The adapters are locked, in one order, so that an entry that is written meanwhile counts it too.
    """
    if len({voice.get("sha256", "") for voice in compared}) < 2:
        return
    ids = sorted({voice.get("adapter_id", "") for voice in compared} - {""})
    session.execute(select(AdapterRow.id).where(AdapterRow.id.in_(ids)).order_by(AdapterRow.id).with_for_update())
    for adapter_id in ids:
        session.execute(text(COUNT), {"id": adapter_id, "won": int(compared[winner].get("adapter_id") == adapter_id)})
    rate(ids, session)


def rate(ids: Sequence[str], session: Session) -> None:
    """Let the entries of these adapters say what share of their votes they won."""
    share = select(cast(TallyRow.wins, Float) / TallyRow.votes).where(TallyRow.adapter_id == SHELF.c.adapter_id).scalar_subquery()
    counted = select(TallyRow.adapter_id).where(TallyRow.adapter_id.in_(ids))
    session.execute(update(SHELF).where(SHELF.c.adapter_id.in_(counted)).values(won=share))


def _told(session: Session, job_ids: list[str]) -> dict[str, str]:
    """Names of deleted datasets, as the jobs that learned from them remember them."""
    jobs = session.execute(select(JobRow.id, JobRow.config).where(JobRow.id.in_(job_ids))) if job_ids else ()
    return {job_id: str(config.get("dataset_name", "")) for job_id, config in jobs}


def _entry(row: AdapterRow) -> dict[str, Any]:
    loss, before = _measured(row, "eval_loss"), _measured(row, "eval_loss_before")
    return {
        "adapter_id": row.id,
        "state": state_of(row),
        "name": folded(row.name) or row.name,
        "loss": UNMEASURED if loss is None else loss,
        "gain": -UNMEASURED if loss is None or before is None else before - loss,
        "rank": row.rank,
        "size_bytes": row.size_bytes,
    }


def _measured(row: AdapterRow, metric: str) -> float | None:
    value = row.metrics.get(metric) if isinstance(row.metrics, dict) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _words(row: AdapterRow, base: str, dataset: str) -> dict[str, list[str]]:
    """What it is found by: text, and facts as words."""
    state = state_of(row)
    facts = [(BASE, row.base_id), (KIND, row.kind), (ORIGIN, row.origin), (OWNER, row.owner), (DATASET, dataset)]
    facts += [*((TAG, tag) for tag in row.tags), *((COLLECTION, name) for name in row.collections)]
    facets = [facet(state, ""), *(facet(state, kind, value) for kind, value in facts if value)]
    facets += [facet(state, FAVOURITE)] if row.favourite else []
    facets += [made_of(str(parent.get("id", ""))) for parent in row.parents]
    told = "\n".join([row.name, *row.tags, *row.collections, row.source, base, dataset, row.card])
    return {"words": words_of(told), "facets": list(dict.fromkeys(facets))}


def _write_words(session: Session, entries: Sequence[dict[str, Any]]) -> None:
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    remove, add = map(text, SQLITE if is_sqlite else POSTGRES)
    values = [
        {"number": e["number"], "words": " ".join([*e["facets"], *e["words"]])}
        if is_sqlite
        else {"number": e["number"], "words": [*e["facets"], *e["words"]], "facets": e["facets"]}
        for e in entries
    ]
    session.execute(remove, [{"number": e["number"]} for e in entries])
    session.execute(add, values)


def missing(session: Session, most: int) -> list[str]:
    """Some adapters that the index lacks, the oldest first: they were written by another program, or before there was one."""
    lacks = ~select(SHELF.c.number).where(SHELF.c.adapter_id == AdapterRow.id).exists()
    return list(session.scalars(select(AdapterRow.id).where(lacks).order_by(AdapterRow.created_at, AdapterRow.id).limit(most)))
