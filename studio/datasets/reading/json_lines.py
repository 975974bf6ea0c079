"""JSON Lines: one value on each line, straight from bytes."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from studio.datasets.reading.documents import Rows
from studio.datasets.reading.places import excerpt
from studio.datasets.reading.text import Text, count_lines
from studio.datasets.rows import RowError, SourceRow

KIND = "not JSON"
FIRST_BLOCK, BLOCK = 1 << 18, 1 << 21


@dataclass(frozen=True)
class LineBlock:
    """Some whole lines of a JSON Lines text as UTF-8, not parsed yet. Lines count from 1."""

    first_line: int
    data: bytes
    file: str

    def rows(self) -> Rows:
        """Each line that is not blank; a line that is not JSON is an error of its own."""
        file, loads = self.file, orjson.loads
        for number, line in enumerate(io.BytesIO(self.data), self.first_line):
            try:
                value = loads(line)
            except orjson.JSONDecodeError:
                if line.strip():
                    yield _wrong_line(line.rstrip(), number, file)
            else:
                yield SourceRow(number, value, file)


Items = Iterator[SourceRow | RowError | LineBlock]


def read_json_lines(text: Text) -> Iterator[LineBlock]:
    """The lines, in blocks of `BLOCK` bytes and the rest of a line. The first is small: what looks at a file's head parses it.

    Raises:
        InvalidInput: a line is longer than a row may be.
    """
    text.check_lines()
    number, size = 1, FIRST_BLOCK
    with text.open_bytes() as stream:
        while data := stream.read(size):
            if not data.endswith(b"\n"):
                data += stream.readline()
            yield LineBlock(number, data, text.document.file)
            number, size = number + count_lines(data), BLOCK


def _wrong_line(line: bytes, number: int, file: str) -> RowError:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as error:  # again, without the line's end, which would put the fault on the next line
        return describe(error, line, number, 1, file, "write one JSON object on each line")
    return RowError(number, "", "this line ends in something that is not JSON", "delete it", kind=KIND, file=file)


def describe(error: orjson.JSONDecodeError, value: bytes, line: int, column: int, file: str, fix: str, ends: bool = False) -> RowError:
    """What orjson found wrong in a value that starts at a line and column of a file."""
    at_line = line + error.lineno - 1
    at_column = error.colno + (column - 1 if error.lineno == 1 else 0)
    shown = value.decode("utf-8", "replace").split("\n")[error.lineno - 1 : error.lineno]
    problem = f"this is not valid JSON ({error.msg}, column {at_column})"
    if error.doc[error.pos : error.pos + 1] == "\n" and "control" in error.msg:
        problem = f"this is not valid JSON (a quote is missing, or a line ends inside a text, column {at_column})"
    if "surrogate" in error.msg:
        problem, fix = "this holds half of a character (a lone surrogate)", "write the whole character"
    if "depth" in error.msg or "recursion" in error.msg:
        problem = "this is not valid JSON (nested too deeply)"
    around = excerpt(shown[0] if shown else "", error.colno)
    return RowError(at_line, "", problem, fix, kind=KIND, column=at_column, excerpt=around, file=file, ends=ends)
