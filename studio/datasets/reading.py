"""Read rows out of JSONL, JSON and CSV, each with the line of the file on which it starts.

Uploads never go through a dataset library's own reader: those lose the line of a broken row or accept what is
not a row at all.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import orjson

from studio.datasets.rows import RowError, SourceRow
from studio.errors import InvalidInput

SUFFIXES = (".jsonl", ".json", ".csv")
# A cell may hold a whole conversation; Python's own limit of 128 KiB is too small for that.
MAX_CELL = 16 * 1024 * 1024


def read_rows(path: Path, max_bytes: int) -> Iterator[SourceRow]:
    """Yield the rows of a file. The format is its ending: .jsonl, .json (an array, or JSONL) or .csv.

    Raises:
        InvalidInput: the file as a whole is refused (missing, empty, too large, not UTF-8, unknown ending).
        RowError: the text is broken on a line; rows before it have been yielded.
    """
    if not path.is_file():
        raise InvalidInput(f"There is no file {path.name!r}; check the name and upload it again.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidInput(f"The file {path.name!r} ends in {suffix or 'nothing'}; give a {', '.join(SUFFIXES)} file.")
    size = path.stat().st_size
    if size > max_bytes:
        limit, got = max_bytes / 2**20, size / 2**20
        raise InvalidInput(f"The file {path.name!r} has {got:,.1f} MB and the limit is {limit:,.1f} MB; split it into parts.")
    if not _check_encoding(path):
        raise InvalidInput(f"The file {path.name!r} is empty; give a file with at least one row.")
    if suffix == ".csv":
        yield from _read_csv(path)
    elif suffix == ".json" and _starts_with_bracket(path):
        yield from _read_array(path)
    else:
        yield from _read_lines(path)


def _check_encoding(path: Path) -> bool:
    """Whether there is any text; the whole file is checked before the first row is used."""
    something = False
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InvalidInput(
                    f"The file {path.name!r} is not UTF-8: line {number} holds the byte 0x{line[error.start]:02x} "
                    f"at position {error.start + 1}; save it again with the encoding UTF-8."
                ) from None
            something = something or bool(line.strip(b"\xef\xbb\xbf \t\r\n"))
    return something


def _starts_with_bracket(path: Path) -> bool:
    with path.open(encoding="utf-8-sig") as handle:
        return any(line.lstrip()[:1] == "[" for line in _first_text(handle))


def _first_text(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.strip():
            yield line
            return


def _read_lines(path: Path) -> Iterator[SourceRow]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            try:
                yield SourceRow(number, orjson.loads(text))
            except orjson.JSONDecodeError as error:
                raise RowError(
                    number, "", f"this is not valid JSON ({error.msg}, column {error.colno})", "write one JSON object on each line"
                ) from None


def _read_array(path: Path) -> Iterator[SourceRow]:
    """Decode the items of one array in turn, so that each is known by its line."""
    text = path.read_text(encoding="utf-8-sig")
    decoder = json.JSONDecoder()
    position, line, counted = text.index("[") + 1, 1, 0
    expects_item = False
    while True:
        position = _skip_space(text, position)
        line += text.count("\n", counted, position)
        counted = position
        if text[position : position + 1] == "]" and not expects_item:
            break
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise RowError(error.lineno, "", f"this is not valid JSON ({error.msg})", "check commas, quotes and brackets here") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets without end
            why = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
            raise RowError(line, "", f"this is not valid JSON ({why})", "check commas, quotes and brackets here") from None
        yield SourceRow(line, value)
        position = _skip_space(text, end)
        expects_item = text[position : position + 1] == ","
        if expects_item:
            position += 1
        elif text[position : position + 1] != "]":
            at = line + text.count("\n", counted, position)
            raise RowError(at, "", "a comma or the closing bracket is missing after this row", "add it")
    if text[position + 1 :].strip():
        raise RowError(line, "", "there is text after the closing bracket", "delete it")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _read_csv(path: Path) -> Iterator[SourceRow]:
    csv.field_size_limit(MAX_CELL)
    with path.open(encoding="utf-8-sig", newline="") as handle:
        header = next(_first_text(handle), "")
        delimiter = max(",;\t", key=header.count)
        handle.seek(0)
        reader = csv.reader(handle, delimiter=delimiter, strict=True)
        columns: list[str] = []
        start = 1
        try:
            for cells in reader:
                if not columns:
                    columns = _columns(cells, start)
                elif cells:
                    yield SourceRow(start, _row(columns, cells, start))
                start = reader.line_num + 1
        except csv.Error as error:
            raise RowError(start, "", f"the CSV is broken from here on ({error})", "check the quotes of this row") from None


def _columns(cells: list[str], line: int) -> list[str]:
    columns = [cell.strip() for cell in cells]
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise RowError(line, repeated[0], "the header names this column twice", "rename one of the two")
    return columns


def _row(columns: list[str], cells: list[str], line: int) -> dict[str, str]:
    if len(cells) != len(columns):
        raise RowError(
            line,
            "",
            f"this row has {len(cells)} cells and the header has {len(columns)}",
            "put quotes around cells that hold the delimiter, and fill in what is missing",
        )
    return dict(zip(columns, cells, strict=True))
