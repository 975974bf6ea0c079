"""From uploaded files to stored rows, in one pass and bounded memory.

Each file has the form that its own first rows tell, unless one was chosen for all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any

from studio.datasets.blocks import PlainBlock, plain_blocks
from studio.datasets.errors import BadRows, ErrorLog
from studio.datasets.forms import Conversation, Fit, RowReader, choose_form, find_forms
from studio.datasets.reading import Limits, LineBlock, read_blocks, read_files
from studio.datasets.rows import RowError, SourceRow
from studio.datasets.store import RowWriter
from studio.errors import InvalidInput

LOOKED_AT = 256  # rows from which the form is told
TOLD_EVERY = 5_000  # rows between two words on the progress
Counted = Callable[[int], None]  # rows so far
Item = SourceRow | RowError | LineBlock


def uncounted(_rows: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class Options:
    """How files are read.

    Args:
        form: a name in `FORMS`, or auto. mapping: {role: column} where columns are named otherwise. system: a system
            prompt for rows that have none. drop: leave wrong rows out instead of refusing the files.
    """

    form: str = "auto"
    mapping: Mapping[str, str] = field(default_factory=dict)
    system: str = ""
    drop: bool = False


@dataclass(frozen=True)
class Ingested:
    """What was written. `form` names the forms of the files; `errors` are those of rows that were left out."""

    form: str
    rows: int
    turns: int
    content_hash: str
    notices: list[str]
    errors: ErrorLog


@dataclass(frozen=True)
class Sample:
    """One of the first rows: as it stands in the file, and what it becomes, or why it cannot."""

    line: int
    raw: Any
    conversation: Conversation | None
    error: RowError | None


@dataclass(frozen=True)
class Inspection:
    """A first look at files, before anything is kept. `fits` are the forms that are possible, the best first."""

    columns: list[str]
    fits: list[Fit]
    chosen: Fit | None
    samples: list[Sample]
    notices: list[str]


def ingest(paths: Sequence[Path], options: Options, limits: Limits, target: Path, progress: Counted = uncounted) -> Ingested:
    """Read, check and write all rows.

    Args:
        target: of the new Arrow file.

    Raises:
        BadRows: rows are wrong and may not be left out; all were read and counted. InvalidInput: a file is refused as a
            whole, has no form, or no row is left. OSError: the rows could not be written.
    """
    notices: list[str] = []
    errors, forms, adapted = ErrorLog(), set[str](), list[str]()
    with RowWriter(target) as writer:
        for _, items in groupby(read_blocks(paths, limits, notices), key=attrgetter("file")):
            found = _ingest_file(items, options, writer, errors, progress)
            if found:
                forms.add(found[0])
                adapted += found[1]
    if errors.total and not (options.drop and writer.rows):
        raise BadRows(errors, writer.rows)
    if not writer.rows:
        raise InvalidInput(f"There are no rows in {', '.join(path.name for path in paths)}; add at least one example.")
    return Ingested(" + ".join(sorted(forms)), writer.rows, writer.turns, writer.content_hash, notices + adapted, errors)


def _ingest_file(
    items: Iterator[Item], options: Options, writer: RowWriter, errors: ErrorLog, progress: Counted
) -> tuple[str, list[str]] | None:
    """Write the rows of one file; its form and what was adapted, None where no row could be read."""
    head, rest = _take_head(items, errors)
    if not head:
        return None
    fit = choose_form([row.value for row in head], options.form, options.mapping)
    reader = RowReader(fit, options.system)
    _write(chain(head, rest, plain_blocks(items, reader.plain_column)), reader, writer, errors, progress)
    return fit.form, reader.notices


def _take_head(items: Iterator[Item], errors: ErrorLog) -> tuple[list[SourceRow], Iterator[SourceRow]]:
    """The first rows that could be read, at most `LOOKED_AT`, and the rest of the block in which they end."""
    head: list[SourceRow] = []
    rest: Iterator[SourceRow] = iter(())
    for item in items:
        rest = _right(item.rows() if isinstance(item, LineBlock) else (item,), errors)
        head += islice(rest, LOOKED_AT - len(head))
        if len(head) == LOOKED_AT:
            break
    return head, rest


def _right(rows: Iterable[SourceRow | RowError], errors: ErrorLog) -> Iterator[SourceRow]:
    """The rows that could be read; what is wrong with the others is counted."""
    for row in rows:
        if isinstance(row, RowError):
            errors.add(row)
        else:
            yield row


def _write(
    items: Iterable[SourceRow | RowError | PlainBlock], reader: RowReader, writer: RowWriter, errors: ErrorLog, progress: Counted
) -> None:
    for number, item in enumerate(items):
        if isinstance(item, PlainBlock):
            writer.add_block(item)
            progress(writer.rows)
            continue
        if isinstance(item, RowError):
            errors.add(item)
            continue
        try:
            conversation, extra = reader(item)
        except RowError as error:
            errors.add(error)
        else:
            writer.add(conversation, extra, item.line, item.file)
        if number % TOLD_EVERY == 0:
            progress(writer.rows)


def inspect(paths: Sequence[Path], options: Options, limits: Limits, samples: int = 3) -> Inspection:
    """Look at the first rows of the first file: which forms are possible, and what the rows become.

    Raises:
        InvalidInput: the file is refused, or the chosen form is not possible.
    """
    notices: list[str] = []
    head = list(islice(read_files(paths[:1], limits, notices), LOOKED_AT))
    rows = [row for row in head if isinstance(row, SourceRow)]
    values = [row.value for row in rows]
    columns = list(dict.fromkeys(key for value in values if isinstance(value, dict) for key in value))
    fits = find_forms(values)
    possible = bool(fits) or options.form != "auto"
    chosen = choose_form(values, options.form, options.mapping) if possible and values else None
    looked = [_look(RowReader(chosen, options.system), row) for row in rows[:samples]] if chosen else []
    broken = [Sample(row.line, None, None, row) for row in head if isinstance(row, RowError)][:samples]
    return Inspection(columns, fits, chosen, looked + broken, notices)


def _look(reader: RowReader, row: SourceRow) -> Sample:
    try:
        return Sample(row.line, row.value, reader(row)[0], None)
    except RowError as error:
        return Sample(row.line, row.value, None, error)
