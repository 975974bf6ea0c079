"""Changes to datasets. Each leaves its dataset as it is and makes a new version, or sets of their own.

Chosen rows keep their order, and everything that is drawn is drawn from a seed, so that the same change gives the same rows.
"""

import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from storage.records import DatasetRecord
from studio.datasets.duplicates import exact_groups, near_groups
from studio.datasets.forms import Conversation, RowReader, choose_form
from studio.datasets.library import DatasetLibrary
from studio.datasets.privacy import redact
from studio.datasets.rows import RowError, SourceRow
from studio.datasets.store import RowStore, StoredRow
from studio.errors import InvalidInput, NotFound
from studio.names import listed

MOST_DRAWN = 10_000_000  # rows of a mixture of smaller datasets
MOST_PARTS = 20  # datasets that a split by a column may make


@dataclass(frozen=True)
class Filter:
    """Which rows are kept: those for which everything that is set holds.

    Args:
        contains, lacks: text that some turn has, or none has; upper and lower case are the same. column, equals: a
            field beside the conversation, and its value as text. min_characters, max_characters: of all turns together;
            0 is no limit.
    """

    contains: str = ""
    lacks: str = ""
    column: str = ""
    equals: str = ""
    min_characters: int = 0
    max_characters: int = 0

    def keeps(self, row: StoredRow) -> bool:
        """Whether the row passes."""
        text = "\n".join(turn["content"] for turn in row.conversation)
        low = text.casefold()
        return (
            (not self.contains or self.contains.casefold() in low)
            and (not self.lacks or self.lacks.casefold() not in low)
            and (not self.column or as_text(row.extra.get(self.column)) == self.equals)
            and len(text) >= self.min_characters
            and (not self.max_characters or len(text) <= self.max_characters)
        )

    def __str__(self) -> str:
        said = [f"contains {self.contains!r}"] if self.contains else []
        said += [f"lacks {self.lacks!r}"] if self.lacks else []
        said += [f"{self.column} is {self.equals!r}"] if self.column else []
        said += [f"at least {self.min_characters:,} characters"] if self.min_characters else []
        said += [f"at most {self.max_characters:,} characters"] if self.max_characters else []
        return ", ".join(said)


class Changes:
    """What can be done with the datasets of a library.

    Each method raises InvalidInput where nothing would be left or an option is wrong, NameTaken, and OutOfSpace.
    """

    def __init__(self, library: DatasetLibrary) -> None:
        self.library = library

    def deduplicate(self, record: DatasetRecord, near: bool = False) -> DatasetRecord:
        """Keep the first of rows that are equal, or nearly so."""
        store = self.library.store(record)
        groups = (near_groups if near else exact_groups)(len(store), store.fetch)
        repeated = {index for group in groups for index in group[1:]}
        if not repeated:
            raise InvalidInput(f"{record.name!r} holds no {'near ' if near else ''}duplicates; nothing was changed.")
        return self.library.keep(_without(store, repeated), record, f"{len(repeated):,} {'near ' if near else ''}duplicate row(s) removed")

    def remove_rows(self, record: DatasetRecord, rows: Collection[int]) -> DatasetRecord:
        """Leave rows out, by their numbers from 0."""
        store = self.library.store(record)
        for row in rows:
            _check_row(record, row)
        return self.library.keep(_without(store, set(rows)), record, f"{len(set(rows)):,} row(s) removed")

    def filter(self, record: DatasetRecord, wanted: Filter) -> DatasetRecord:
        """Keep the rows that pass."""
        if not str(wanted):
            raise InvalidInput("The filter is empty; say what the rows that are kept contain, lack, or have in a column.")
        return self.library.keep(filter(wanted.keeps, self.library.store(record)), record, f"kept rows where {wanted}")

    def sample(self, record: DatasetRecord, rows: int, seed: int = 0) -> DatasetRecord:
        """Keep some rows, drawn by chance."""
        if not 0 < rows < record.rows:
            raise InvalidInput(
                f"The option rows is {rows:,} and {record.name!r} has {record.rows:,}; give a number from 1 to {record.rows - 1:,}."
            )
        chosen = set(random.Random(seed).sample(range(record.rows), rows))
        store = self.library.store(record)
        return self.library.keep(_only(store, chosen), record, f"{rows:,} row(s) drawn with seed {seed}")

    def redact(self, record: DatasetRecord) -> DatasetRecord:
        """Put a word such as [e-mail] in the place of personal data."""

        def redacted() -> Iterator[StoredRow]:
            for row in self.library.store(record):
                yield row._replace(conversation=[{**turn, "content": redact(turn["content"])} for turn in row.conversation])

        made = self.library.keep(redacted(), record, "personal data redacted")
        if made.content_hash == record.content_hash:
            self.library.remove(made.id)
            raise InvalidInput(f"No personal data was found in {record.name!r}; nothing was changed.")
        return made

    def edit_row(self, record: DatasetRecord, row: int, conversation: Conversation) -> DatasetRecord:
        """Put another conversation in the place of a row, which is named by its number from 0.

        Raises:
            InvalidInput: it is no conversation that can be trained.
        """
        _check_row(record, row)
        source = SourceRow(row + 1, {"messages": conversation}, record.name)
        try:
            checked, _ = RowReader(choose_form([source.value]))(source)
        except RowError as error:
            raise InvalidInput(f"Row {row + 1:,} cannot become this: {error.problem}; {error.fix}.") from None
        store = self.library.store(record)
        edited = (old._replace(conversation=checked) if number == row else old for number, old in enumerate(store))
        return self.library.keep(edited, record, f"row {row + 1:,} edited")

    def split(self, record: DatasetRecord, share: float, seed: int = 0) -> list[DatasetRecord]:
        """Two datasets of their own, the second with about this share of the rows, drawn by chance."""
        second = round(record.rows * share) if math.isfinite(share) else 0
        if not 0 < second < record.rows:
            raise InvalidInput(
                f"The option share is {share:g}, which leaves one part of {record.name!r} empty; give a share between 0 and 1."
            )
        drawn = set(random.Random(seed).sample(range(record.rows), second))
        store = self.library.store(record)
        return self._parts(
            record,
            {
                "train": _without(store, drawn),
                "held out": _only(store, drawn),
            },
            f"split with a share of {share:g} and seed {seed}",
        )

    def split_by_column(self, record: DatasetRecord, column: str) -> list[DatasetRecord]:
        """One dataset of its own for each value of a field beside the conversation."""
        store = self.library.store(record)
        values = sorted({as_text(row.extra.get(column)) for row in store})
        if values == [""]:
            there = listed(list(dict.fromkeys(name for row in store for name in row.extra)))
            raise InvalidInput(f"The rows of {record.name!r} have no field {column!r}; those beside the conversation are {there}.")
        if not 1 < len(values) <= MOST_PARTS:
            raise InvalidInput(f"The field {column!r} has {len(values):,} value(s); a split needs 2 to {MOST_PARTS}.")
        parts = {value or f"no {column}": _where(store, column, value) for value in values}
        return self._parts(record, parts, f"split by {column}")

    def _parts(self, record: DatasetRecord, parts: Mapping[str, Iterable[StoredRow]], made_by: str) -> list[DatasetRecord]:
        """All parts or none."""
        made: list[DatasetRecord] = []
        try:
            for label, rows in parts.items():
                made.append(self.library.keep(rows, record, made_by, f"{record.name} {label}"))
        except Exception:
            for part in made:
                self.library.remove(part.id)
            raise
        return made

    def mix(self, records: Sequence[DatasetRecord], weights: Sequence[float], name: str, rows: int = 0, seed: int = 0) -> DatasetRecord:
        """A dataset of its own from several, each with a weight.

        Args:
            weights: the parts' shares of the mixture; a dataset that has too few rows for its share repeats them. Where
                there are none, all rows of all datasets are taken once, one dataset behind the other. rows: of the
                mixture; 0 for as many as all have together.
        """
        if not records:
            raise InvalidInput("There is nothing to mix; name at least one dataset.")
        stores = [self.library.store(record) for record in records]
        form = " + ".join(sorted({one for record in records for one in record.form.split(" + ")}))
        if not weights:
            said = "joined " + ", ".join(record.name for record in records)
            return self.library.keep((row for store in stores for row in store), records[0], said, name, form)
        if len(weights) != len(records) or not all(0 <= weight < math.inf for weight in weights) or not sum(weights):
            raise InvalidInput("The weights do not fit the datasets; give one number from 0 for each, and not 0 for all.")
        together = sum(len(store) for store in stores)
        if rows > max(together, MOST_DRAWN):
            raise InvalidInput(f"The option rows is {rows:,}; a mixture has at most {max(together, MOST_DRAWN):,}.")
        wanted = rows or together
        drawn = _drawn([len(store) for store in stores], weights, wanted, random.Random(seed))
        said = "mixed " + ", ".join(f"{record.name} × {weight:g}" for record, weight in zip(records, weights, strict=True))
        return self.library.keep((stores[which].page(row, 1)[0] for which, row in drawn), records[0], said, name, form)


def as_text(value: object) -> str:
    """A field's value as people write it into a filter."""
    return "" if value is None else value if isinstance(value, str) else str(value)


def _without(store: RowStore, rows: Collection[int]) -> Iterator[StoredRow]:
    return (row for number, row in enumerate(store) if number not in rows)


def _only(store: RowStore, rows: Collection[int]) -> Iterator[StoredRow]:
    return (row for number, row in enumerate(store) if number in rows)


def _where(store: RowStore, column: str, value: str) -> Iterator[StoredRow]:
    return (row for row in store if as_text(row.extra.get(column)) == value)


def _check_row(record: DatasetRecord, row: int) -> None:
    if not 0 <= row < record.rows:
        raise NotFound(f"{record.name!r} has no row {row + 1:,}; it has {record.rows:,}.")


def _drawn(sizes: Sequence[int], weights: Sequence[float], rows: int, chance: random.Random) -> list[tuple[int, int]]:
    """(dataset, row) for each row of a mixture, in an order by chance. A dataset is used up before one of its rows repeats."""
    whole = sum(weights)
    drawn = []
    for which, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        count = round(rows * weight / whole)
        passes = [chance.sample(range(size), min(size, count - done)) for done in range(0, count, size)]
        drawn += [(which, row) for once in passes for row in once]
    chance.shuffle(drawn)
    return drawn


def parse_parts(parts: Sequence[str]) -> tuple[list[str], list[float]]:
    """`NAME[:WEIGHT]` each; weights are empty where none has one.

    Raises:
        InvalidInput: some have a weight and some have none.
    """
    names, weights = list[str](), list[float]()
    for part in parts:
        name, _, weight = part.rpartition(":")
        try:
            number = float(weight)
        except ValueError:  # a colon may be part of a name
            name = ""
        if name:
            weights.append(number)
        names.append(name or part)
    if weights and len(weights) != len(names):
        raise InvalidInput("Some parts have a weight and some have none; write NAME:WEIGHT for each, or for none.")
    return names, weights
