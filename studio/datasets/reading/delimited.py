"""CSV and TSV with whatever delimiter: each row with the line on which it starts, quoted line ends counted."""

import contextlib
import csv
import io
from collections.abc import Iterator
from itertools import islice

from studio.datasets.reading.columns import named_columns
from studio.datasets.reading.documents import Rows
from studio.datasets.reading.limits import MIB, megabytes
from studio.datasets.reading.places import excerpt
from studio.datasets.reading.text import Text
from studio.datasets.rows import RowError, SourceRow

DELIMITERS = ",;\t|"
SAMPLE_CHARACTERS = 1 << 16
SAMPLE_ROWS = 50
HEADER_CHARACTERS = MIB
CELLS_FIX = "put quotes around cells that hold the delimiter, and fill in what is missing"


class _TooLong(Exception):
    """A row goes on for longer than a row may."""


class _Lines:
    """The lines of a text, one at a time; refuses when those of one row grow beyond a limit (in characters)."""

    def __init__(self, lines: Iterator[str], limit: int) -> None:
        self._lines, self.limit = lines, limit
        self.number, self._characters, self.first = 0, 0, ""

    def start_row(self) -> None:
        self._characters, self.first = 0, ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self.first = self.first or line
        self._characters += len(line)
        if self._characters > self.limit:
            raise _TooLong
        return line


def read_delimited(text: Text) -> Rows:
    """The rows under the header, as objects of texts.

    Raises:
        InvalidInput: a line is too long, the header has too many columns or names one twice.
    """
    text.check_lines()
    document = text.document
    # The module's only limit is for the whole process; it is raised and never lowered, the lines have their own.
    csv.field_size_limit(max(csv.field_size_limit(), document.limits.row_bytes))
    delimiter, first = _find_delimiter(text)
    with text.open_text() as stream:
        lines = _Lines(iter(lambda: stream.readline(document.limits.row_bytes + 1), ""), HEADER_CHARACTERS)
        for _ in range(first):
            next(lines)
        records = _records(lines, delimiter, document.file)
        header = next(records, None)
        if isinstance(header, RowError):
            raise document.refuse(f"has a header on line {header.line} that cannot be read: {header.problem}; {header.fix}.")
        if header is None:
            return
        columns = named_columns(document, header[1], header[0])
        lines.limit = document.limits.row_bytes
        for record in records:
            yield record if isinstance(record, RowError) else _row(columns, record, document.file)


def _records(lines: _Lines, delimiter: str, file: str) -> Iterator[tuple[int, list[str]] | RowError]:
    """The records that are not blank, each with its first line."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = lines.number + 1
        lines.start_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _TooLong:
            problem = f"the CSV is broken from here on (this row does not end within {megabytes(lines.limit)})"
            yield _broken(lines, start, problem, file, ends=True)
            return
        except csv.Error as error:
            # A row over several lines may have swallowed the beginning of others.
            ends = lines.number > start or "end of data" in str(error)
            why = str(error).replace("\t", "\\t")  # it names the delimiter
            problem = f"the CSV is broken {'from here on' if ends else 'in this row'} ({why})"
            yield _broken(lines, start, problem, file, ends)
            if ends:
                return
        else:
            if len(cells) > 1 or any(cell.strip() for cell in cells):
                yield start, cells


def _broken(lines: _Lines, start: int, problem: str, file: str, ends: bool) -> RowError:
    shown = excerpt(lines.first.rstrip("\r\n"))
    return RowError(start, "", problem, "check the quotes of this row", kind="broken CSV", excerpt=shown, file=file, ends=ends)


def _row(columns: list[str], record: tuple[int, list[str]], file: str) -> SourceRow | RowError:
    line, cells = record
    if len(cells) == len(columns):
        return SourceRow(line, dict(zip(columns, cells, strict=True)), file)
    problem = f"this row has {len(cells)} cells and the header has {len(columns)}"
    return RowError(line, "", problem, CELLS_FIX, kind="cells", excerpt=excerpt(" | ".join(cells[:20])), file=file)


def _find_delimiter(text: Text) -> tuple[str, int]:
    """The delimiter, and how many lines lie before the header (one where a spreadsheet wrote `sep=;`)."""
    with text.open_text() as stream:
        sample = stream.read(SAMPLE_CHARACTERS)
        whole = not stream.read(1)
    first = sample.split("\n", 1)[0].strip()
    if first.lower().startswith("sep=") and len(first) == 5:
        return first[4], 1
    tabs = text.document.suffix == ".tsv"  # which settles it between two that explain the rows as well

    def fitness(delimiter: str) -> tuple[float, bool, int]:
        share, cells = _fitness(sample, delimiter, whole)
        return share, tabs and delimiter == "\t" and cells > 1, cells

    return max(DELIMITERS, key=fitness), 0


def _fitness(sample: str, delimiter: str, whole: bool) -> tuple[float, int]:
    """How well a delimiter explains the first rows: the share that has as many cells as the header, then how many."""
    rows: list[int] = []
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)
    with contextlib.suppress(csv.Error):  # what was read before the fault still counts
        rows.extend(len(row) for row in islice(reader, SAMPLE_ROWS) if any(cell.strip() for cell in row))
    if not whole and 1 < len(rows) < SAMPLE_ROWS:
        rows.pop()  # cut in the middle
    if not rows or rows[0] < 2:
        return -1.0, 0
    return sum(cells == rows[0] for cells in rows) / len(rows), rows[0]
