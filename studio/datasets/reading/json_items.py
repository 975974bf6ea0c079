"""JSON files: an array, an object that holds one, or values one after another; each row with the line it starts on."""

from collections.abc import Iterator

import orjson

from studio.datasets.reading.choice import choose_list
from studio.datasets.reading.documents import Rows
from studio.datasets.reading.json_lines import KIND, Items, describe, read_json_lines
from studio.datasets.reading.json_scanner import BETWEEN, BrokenJson, Scanner
from studio.datasets.reading.places import excerpt
from studio.datasets.reading.text import Text
from studio.datasets.rows import RowError, SourceRow

FIX = "check commas, quotes and brackets here"
LISTS = 1_000  # of an object that are looked at for the rows
TURNS = ({"role", "content"}, {"from", "value"})


def read_json(text: Text) -> Items:
    """The rows of a JSON file, whatever it holds; those of JSON Lines in blocks.

    Raises:
        InvalidInput: several lists of an object could be meant, or a line of JSON Lines is too long.
    """
    with text.open_bytes() as stream:
        scanner = Scanner(stream, text.document.limits.row_bytes)
        first = scanner.peek()
        if first == b"[":
            scanner.take()
            yield from _items(scanner, text.document.file)
            if not scanner.broken:
                yield from _after(scanner, text.document.file)
            return
    if first == b"{":
        yield from _read_object(text)
    else:
        yield from read_json_lines(text)


def is_array(text: Text) -> bool:
    """Whether a file that should have a value on each line is one array or one object over many lines instead."""
    with text.open_bytes() as stream:
        for line in iter(lambda: stream.readline(1 << 16), b""):
            start = line.strip()
            if start:
                return start in (b"[", b"{") or (start[:1] == b"[" and start[1:].lstrip()[:1] == b"{")
    return False


def _items(scanner: Scanner, file: str) -> Rows:
    """The items of an array behind its opening bracket, up to and with the closing one."""
    expects_item = False
    while True:
        byte = scanner.peek()
        if byte == b"]" and not expects_item:
            scanner.take()
            return
        if byte == b"]":
            yield _broken(scanner, file, "this is not valid JSON (a comma stands before the closing bracket)", "delete the comma")
            return
        row = _item(scanner, file)
        yield row
        if isinstance(row, RowError) and row.ends:
            scanner.broken = True
            return
        byte = scanner.peek()
        expects_item = byte == b","
        if expects_item:
            scanner.take()
        elif byte != b"]":
            yield _broken(scanner, file, "a comma or the closing bracket is missing after this row", "add it")
            return


def _item(scanner: Scanner, file: str) -> SourceRow | RowError:
    line, column = scanner.line, scanner.column
    try:
        value = scanner.value()
    except BrokenJson as error:
        return _explain(error, line, column, file)
    try:
        return SourceRow(line, orjson.loads(value), file)
    except orjson.JSONDecodeError as error:
        if not value:
            shown = excerpt(scanner.rest()[:400].decode("utf-8", "replace"))
            problem = f"this is not valid JSON (a row should stand here, column {column})"
            return RowError(line, "", problem, FIX, kind=KIND, column=column, excerpt=shown, file=file, ends=True)
        return describe(error, value, line, column, file, FIX, ends=not _is_balanced(value))


def _explain(broken: BrokenJson, line: int, column: int, file: str) -> RowError:
    """A value without an end: orjson says where it went wrong first, where it can."""
    if broken.problem.startswith(("nested", "longer")):
        shown = excerpt(broken.value[:400].decode("utf-8", "replace"))
        return RowError(
            line, "", f"this is not valid JSON ({broken.problem})", FIX, kind=KIND, column=column, excerpt=shown, file=file, ends=True
        )
    try:
        orjson.loads(broken.value)
    except orjson.JSONDecodeError as error:
        return describe(error, broken.value, line, column, file, FIX, ends=True)
    return RowError(line, "", f"this is not valid JSON ({broken.problem})", FIX, kind=KIND, column=column, file=file, ends=True)


def _is_balanced(value: bytes) -> bool:
    """Whether each bracket is closed by its own kind, so that the next item begins where it seems to."""
    closing, stack, at = {b"{": b"}", b"[": b"]"}, [], 0
    while True:
        match = BETWEEN.match(value, at)
        at = match.end() + 1 if match else len(value) + 1
        byte = value[at - 1 : at]
        if byte in closing:
            stack.append(closing[byte])
        elif not byte:
            return not stack
        elif not stack or stack.pop() != byte:
            return False


def _broken(scanner: Scanner, file: str, problem: str, fix: str) -> RowError:
    scanner.broken = True
    shown = excerpt(scanner.rest()[:400].decode("utf-8", "replace").split("\n")[0])
    return RowError(scanner.line, "", problem, fix, kind=KIND, column=scanner.column, excerpt=shown, file=file, ends=True)


def _after(scanner: Scanner, file: str) -> Rows:
    if scanner.peek():
        yield _broken(scanner, file, "there is text after the closing bracket", "delete it")


class _Outline:
    """The first object of a text: the keys that hold lists of objects, where it ends and what follows."""

    def __init__(self, text: Text) -> None:
        self._document = text.document
        self.lists: list[str] = []
        self.broken: BrokenJson | None = None
        self.next, self.lines = b"", 1
        with text.open_bytes() as stream:
            scanner = Scanner(stream, text.document.limits.row_bytes)
            scanner.peek()
            start = scanner.line
            try:
                for key in _keys(scanner):
                    self._note(scanner, key)
            except BrokenJson as error:
                self.broken = error
                return
            self.lines = scanner.line - start + 1
            self.next = scanner.peek()

    def _note(self, scanner: Scanner, key: str) -> None:
        if scanner.peek() != b"[":
            scanner.skip()
            return
        scanner.take()
        if scanner.peek() != b"{":
            scanner.skip(depth=1)
            return
        item = scanner.value()
        try:
            value = orjson.loads(item)
        except orjson.JSONDecodeError:
            value = {}
        if not any(turn <= set(value) for turn in TURNS):
            self.lists.append(key)
            if len(self.lists) > LISTS:
                raise self._document.refuse(f"holds more than {LISTS:,} lists; put the rows into one list, or under the name 'data'.")
        scanner.skip(depth=1)


def _keys(scanner: Scanner) -> Iterator[str]:
    """The keys of an object; whoever asks for the next one has moved behind the value.

    Raises:
        BrokenJson: this is no object.
    """
    scanner.take()
    if scanner.peek() == b"}":
        scanner.take()
        return
    while True:
        if scanner.peek() != b'"':
            raise BrokenJson("a key in quotes is missing", scanner.rest()[:80])
        key = scanner.value()
        if scanner.peek() != b":":
            raise BrokenJson("a colon is missing", scanner.rest()[:80])
        scanner.take()
        scanner.peek()
        try:
            yield orjson.loads(key)
        except orjson.JSONDecodeError:
            raise BrokenJson("a key is broken", key) from None
        byte = scanner.peek()
        scanner.take()
        if byte == b"}":
            return
        if byte != b",":
            raise BrokenJson("a comma is missing", scanner.rest()[:80])


def _read_object(text: Text) -> Items:
    outline = _Outline(text)
    if outline.lists and outline.next != b"{":
        key = choose_list(text.document, outline.lists)
        yield from _read_list(text, key)
    elif (outline.lines == 1 and outline.next == b"{") or (outline.broken and _looks_like_lines(text)):
        yield from read_json_lines(text)
    else:
        yield from _read_sequence(text)


def _looks_like_lines(text: Text) -> bool:
    """Whether the first two lines that are not blank begin an object each."""
    with text.open_bytes() as stream:
        starts = (line.lstrip()[:1] for line in iter(lambda: stream.readline(1 << 16), b"") if line.strip())
        return next(starts, b"") == b"{" and next(starts, b"{") == b"{"


def _read_list(text: Text, chosen: str) -> Rows:
    """The items of the list under a key of the only object."""
    file = text.document.file
    with text.open_bytes() as stream:
        scanner = Scanner(stream, text.document.limits.row_bytes)
        scanner.peek()
        try:
            for key in _keys(scanner):
                if key == chosen and scanner.peek() == b"[":
                    scanner.take()
                    yield from _items(scanner, file)
                    if scanner.broken:
                        return
                else:
                    scanner.skip()
        except BrokenJson as error:
            yield _broken(scanner, file, f"this is not valid JSON ({error.problem})", FIX)
            return
        yield from _after(scanner, file)


def _read_sequence(text: Text) -> Rows:
    """Values one after another, each over as many lines as it likes."""
    file = text.document.file
    with text.open_bytes() as stream:
        scanner = Scanner(stream, text.document.limits.row_bytes)
        while scanner.peek():
            row = _item(scanner, file)
            if isinstance(row, RowError):  # without commas nothing says where the next value begins
                row.ends = True
            yield row
            if isinstance(row, RowError):
                return
