"""What was wrong with the rows of an upload: counted by kind, the first ones kept, all of it as a table to download."""

import csv
import io
from collections import Counter
from dataclasses import dataclass, field

from studio.datasets.rows import RowError
from studio.errors import InvalidInput

SHOWN, KEPT = 100, 10_000
COLUMNS = ("file", "line", "column", "field", "kind", "what", "excerpt", "how to mend it")
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n")  # what a spreadsheet would run when it opens the table


@dataclass
class ErrorLog:
    """Errors, in the order of the rows once all were read. All are counted; the first `KEPT` are kept."""

    total: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    kept: list[RowError] = field(default_factory=list)

    def add(self, error: RowError) -> None:
        """Count one error."""
        self.total += 1
        self.kinds[error.kind] += 1
        if len(self.kept) < KEPT:
            self.kept.append(error)

    def put_in_order(self) -> None:
        """Order the errors by their place: the first rows of a file are read before their form is known."""
        files = {name: place for place, name in enumerate(dict.fromkeys(error.file for error in self.kept))}
        self.kept.sort(key=lambda error: (files[error.file], error.line))

    @property
    def shown(self) -> list[RowError]:
        """The first `SHOWN`."""
        return self.kept[:SHOWN]

    def table(self) -> list[tuple[str, ...]]:
        """One row an error, under `COLUMNS`."""
        return [(e.file, str(e.line), str(e.column or ""), e.field, e.kind, e.problem, e.excerpt, e.fix) for e in self.kept]

    def as_csv(self) -> str:
        """The table for a spreadsheet; cells that it would run as a formula begin with an apostrophe."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        for row in self.table():
            writer.writerow("'" + cell if cell.startswith(FORMULA) else cell for cell in row)
        return text.getvalue()

    def sentence(self) -> str:
        """The first error with its place, and how many more there are."""
        others = self.kept[1:]
        if not others:
            return f"{self._at(self.kept[0])}."
        lines = ", ".join(str(error.line) for error in others[:8]) + (", …" if self.total > 9 else "")
        return f"{self._at(self.kept[0])}. {self.total - 1:,} more row(s) are wrong, on line(s) {lines}."

    @staticmethod
    def _at(error: RowError) -> str:
        return f"{error.file}, {error}" if error.file else str(error)


class BadRows(InvalidInput):
    """Rows are wrong, and the user did not say that they may be left out.

    Attributes:
        errors: all of them. good: how many rows are right.
    """

    def __init__(self, errors: ErrorLog, good: int) -> None:
        advice = f" Mend them, or leave them out and keep the other {good:,}." if good else " No row is right."
        super().__init__(f"{errors.sentence()} Nothing was added.{advice}")
        self.errors, self.good = errors, good
