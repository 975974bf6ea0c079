"""Adapters as people look for them: by words, by what is known of them, in an order, a page at a time.

Words and facts are one index (`storage.words`), so that any mixture of them is one question to it, however many adapters there are.
Only ranges of numbers are looked at row by row. Pages go on by key; nothing counts or skips what came before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import literal_column, select, text
from sqlalchemy.orm import Session

from storage.database import Database
from storage.records import AdapterRecord
from storage.repositories import to_record
from storage.shelf import (
    AT_ONCE,
    BASE,
    COLLECTION,
    DATASET,
    FAVOURITE,
    KIND,
    LISTED,
    ORIGIN,
    OWNER,
    TAG,
    UNMEASURED,
    made_of,
    missing,
    shelve,
)
from storage.tables import IS_LISTED, AdapterRow
from storage.words import MOST_ASKED, SIGN, facet, postgres_query, sqlite_query, value_of, words_of

Key = tuple[float | int | str, int]  # (what it is sorted by, number) of the last adapter of a page
FEW = 2000  # so many are sorted faster than an order is walked
MOST_COUNTED = 10_000
FACETS_SHOWN = 100  # of each kind
FACETS = {"tag": TAG, "base": BASE, "dataset": DATASET, "kind": KIND, "origin": ORIGIN, "owner": OWNER, "collection": COLLECTION}
# What each order sorts by, and whether the largest comes first.
SORTS = {
    "newest": ("number", True),
    "name": ("name", False),
    "loss": ("loss", False),
    "rank": ("rank", True),
    "size": ("size_bytes", False),
    "won": ("won", True),
    "gain": ("gain", True),
}


@dataclass(frozen=True)
class Search:
    """What is looked for; what is empty does not matter.

    Attributes:
        text: words that begin so, anywhere in name, tags, card, source, or names of base and dataset. base: an id.
        dataset: a name, of any version. ranks, losses: lowest and highest. state: of `storage.shelf`.
        parent: id of an adapter of which others were made. sort: of `SORTS`.
    """

    text: str = ""
    tags: tuple[str, ...] = ()
    base: str = ""
    dataset: str = ""
    kind: str = ""
    origin: str = ""
    owner: str = ""
    collection: str = ""
    favourite: bool = False
    ranks: tuple[float | None, float | None] = (None, None)
    losses: tuple[float | None, float | None] = (None, None)
    state: str = LISTED
    parent: str = ""
    sort: str = "newest"

    @property
    def facets(self) -> list[str]:
        """The facts that are asked for, as words of the index."""
        if self.parent:
            return [made_of(self.parent)]
        facts = [(TAG, tag) for tag in self.tags]
        facts += [(KIND, self.kind), (BASE, self.base), (DATASET, self.dataset), (ORIGIN, self.origin), (OWNER, self.owner)]
        facts += [(COLLECTION, self.collection)]
        found = [facet(self.state, kind, value) for kind, value in facts if value]
        return found + ([facet(self.state, FAVOURITE)] if self.favourite else [])

    @property
    def words(self) -> list[str]:
        """The words that are asked for; signs alone ask for nothing."""
        return words_of(self.text, MOST_ASKED)

    @property
    def is_plain(self) -> bool:
        """Whether it asks for everything there is."""
        return not self.facets and not self.words


@dataclass(frozen=True)
class Found:
    """A page of adapters, and where the next one begins; None where there is no next one."""

    records: list[AdapterRecord]
    next: Key | None = None


class Catalog:
    """Questions to the index of the adapters."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._is_sqlite = database.engine.dialect.name == "sqlite"

    def page(self, search: Search, limit: int, after: Key | None = None) -> Found:
        """Some adapters in the order that is asked for.

        Args:
            after: where the page before ended.
        """
        with self.database.read() as session:
            statement, values = self._statement(session, search, after)
            rows = session.execute(text(f"{statement} LIMIT :most"), {**values, "most": limit + 1}).all()
            records = _in_order(session, [row.adapter_id for row in rows[:limit]])
        last = rows[limit - 1] if len(rows) > limit else None
        return Found(records, (last.sorted_by, last.number) if last is not None else None)

    def count(self, search: Search, most: int = MOST_COUNTED) -> int:
        """How many there are; `most` where there are more."""
        with self.database.read() as session:
            return self._count(session, search, most)

    def facets(self, state: str = LISTED) -> dict[str, list[tuple[str, int]]]:
        """How many adapters have each tag, base, dataset, kind, … : (value, adapters) by the names of `FACETS`, the most frequent first."""
        with self.database.read() as session:
            if self._is_sqlite:
                query = "SELECT term, doc FROM adapter_words_vocab WHERE term >= :first AND term < :behind"
                values = {"first": f"{SIGN}{state}", "behind": f"{SIGN}{chr(ord(state) + 1)}"}
            else:
                query = (
                    "SELECT facet, count(*) FROM shelf s JOIN adapter_words w ON w.number = s.number, unnest(w.facets) facet "
                    "WHERE s.state = :state AND facet NOT LIKE :parents GROUP BY facet"
                )
                values = {"state": state, "parents": f"{SIGN}p%"}
            found = session.execute(text(query), values).all()
        counts: dict[str, list[tuple[str, int]]] = {name: [] for name in FACETS}
        names = {kind: name for name, kind in FACETS.items()}
        for word, adapters in sorted(found, key=lambda row: (-row[1], row[0])):
            kind, value = value_of(word)
            if kind in names and len(counts[names[kind]]) < FACETS_SHOWN:
                counts[names[kind]].append((value, int(adapters)))
        return counts

    def with_base(self, fingerprint: str, most: int | None = None) -> list[AdapterRecord]:
        """Listed adapters of one base, favourites first, then the newest."""
        query = select(AdapterRow).where(AdapterRow.base_fingerprint == fingerprint, literal_column(IS_LISTED))
        query = query.order_by(AdapterRow.favourite.desc(), AdapterRow.created_at.desc(), AdapterRow.id.desc()).limit(most)
        with self.database.read() as session:
            return [to_record(AdapterRecord, row) for row in session.scalars(query)]

    def catch_up(self) -> int:
        """Index what another program wrote, or what was there before the index; returns how many those were."""
        done = 0
        while True:
            with self.database.read() as session:  # the usual case needs no writer
                if not (lacking := missing(session, AT_ONCE)):
                    return done
            with self.database.write() as session:
                shelve(session, lacking)
            done += len(lacking)

    # Statements

    def _count(self, session: Session, search: Search, most: int) -> int:
        ranges, values = _ranges(search)
        if ranges or search.is_plain:
            where, values = self._where(search, None, "adapter_words")
            source = self._source(search, "adapter_words")
        else:  # the words' index knows it alone
            condition, asked = self._match(search)
            where, values, source = [condition], {"asked": asked}, "adapter_words" if self._is_sqlite else "adapter_words w"
        inner = f"SELECT 1 FROM {source} WHERE {' AND '.join(where)} LIMIT :most"
        return int(session.scalar(text(f"SELECT count(*) FROM ({inner}) found"), {**values, "most": most}) or 0)

    def _match(self, search: Search) -> tuple[str, str]:
        """The condition on words and facts, and what it compares with."""
        facets = search.facets or [facet(search.state, "")]
        if self._is_sqlite:
            return "adapter_words MATCH :asked", sqlite_query(facets, search.words)
        return "w.words @@ CAST(:asked AS tsquery)", postgres_query(facets, search.words)

    def _statement(self, session: Session, search: Search, after: Key | None) -> tuple[str, dict[str, Any]]:
        """The question but for its limit."""
        column, falls = SORTS.get(search.sort, SORTS["newest"])
        driver = self._driver(session, search, column) if self._is_sqlite else ""
        where, values = self._where(search, after, driver)
        way = "DESC" if falls else "ASC"
        order = f"s.number {way}" if column == "number" else f"s.{column} {way}, s.number {way}"
        if driver == "adapter_words" and column == "number":
            order = f"adapter_words.rowid {way}"  # the order of the full-text index itself
        columns = f"s.adapter_id, s.number, s.{column} AS sorted_by"
        return f"SELECT {columns} FROM {self._source(search, driver)} WHERE {' AND '.join(where)} ORDER BY {order}", values

    def _driver(self, session: Session, search: Search, column: str) -> str:
        """What SQLite, which keeps no statistics, shall read first: the full-text index, or the named index of the shelf."""
        if search.parent:
            return "adapter_words"
        if not search.is_plain and (column == "number" or self._count(session, _without_ranges(search), FEW + 1) <= FEW):
            return "adapter_words"
        for ranged in ("loss", "rank"):
            if getattr(search, "losses" if ranged == "loss" else "ranks") != (None, None) and self._within(session, search, ranged) <= FEW:
                return f"shelf_by_{ranged}"
        return "shelf_by_" + {"number": "newest", "size_bytes": "size"}.get(column, column)

    def _within(self, session: Session, search: Search, ranged: str) -> int:
        """How many are in a range, up to a few."""
        where, values = _ranges(Search(losses=search.losses) if ranged == "loss" else Search(ranks=search.ranks))
        inner = f"SELECT 1 FROM shelf s INDEXED BY shelf_by_{ranged} WHERE s.state = :state AND {' AND '.join(where)} LIMIT {FEW + 1}"
        return int(session.scalar(text(f"SELECT count(*) FROM ({inner})"), {**values, "state": search.state}) or 0)

    def _source(self, search: Search, driver: str) -> str:
        if not self._is_sqlite:
            return "shelf s" if search.is_plain else "shelf s JOIN adapter_words w ON w.number = s.number"
        if search.is_plain:
            return f"shelf s INDEXED BY {driver}" if driver.startswith("shelf_by") else "shelf s"
        # CROSS JOIN is how SQLite is told to read the left one first.
        if driver == "adapter_words":
            return "adapter_words CROSS JOIN shelf s ON s.number = adapter_words.rowid"
        return f"shelf s INDEXED BY {driver}"

    def _where(self, search: Search, after: Key | None, driver: str) -> tuple[list[str], dict[str, Any]]:
        where, values = _ranges(search)
        if not search.parent:
            where, values = ["s.state = :state", *where], {**values, "state": search.state}
        if not search.is_plain:
            condition, values["asked"] = self._match(search)
            if driver.startswith("shelf_by"):  # made once, then looked into while the order is walked
                condition = f"+s.number IN (SELECT rowid FROM adapter_words WHERE {condition})"
            where.append(condition)
        if after is not None:
            column, falls = SORTS.get(search.sort, SORTS["newest"])
            sign = "<" if falls else ">"
            plain, key = f"s.number {sign} :number", f"(s.{column}, s.number) {sign} (:sorted_by, :number)"
            where.append(plain if column == "number" else key)
            values |= {"number": after[1]} | ({} if column == "number" else {"sorted_by": after[0]})
            if column == "number" and driver == "adapter_words" and not search.is_plain:
                where.append(f"adapter_words.rowid {sign} :number")
        return where, values


def _ranges(search: Search) -> tuple[list[str], dict[str, Any]]:
    """Conditions on numbers. A loss that was not measured is in no range."""
    where: list[str] = []
    values: dict[str, Any] = {}
    for column, (low, high) in (("loss", search.losses), ("rank", search.ranks)):
        if column == "loss" and (low, high) != (None, None):
            high = min(UNMEASURED / 10, high if high is not None else UNMEASURED)
        for sign, bound in ((">=", low), ("<=", high)):
            if bound is not None:
                name = f"{column}_{'low' if sign == '>=' else 'high'}"
                where.append(f"s.{column} {sign} :{name}")
                values[name] = bound
    return where, values


def _without_ranges(search: Search) -> Search:
    return replace(search, ranks=(None, None), losses=(None, None))


def _in_order(session: Session, ids: Sequence[str]) -> list[AdapterRecord]:
    rows = {row.id: row for row in session.scalars(select(AdapterRow).where(AdapterRow.id.in_(ids)))}
    return [to_record(AdapterRecord, rows[adapter_id]) for adapter_id in ids if adapter_id in rows]
