"""Finds where values of a JSON text begin and end, without holding more than one value in memory.

It knows brackets and strings only; whether a value is JSON is for orjson to say.
"""

import re
from typing import BinaryIO

CHUNK = 1 << 18
DEPTH = 1000
# A string of JSON never holds a line end as it is, so a missing quote is found on its own line.
STRING = re.compile(rb'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"')
FLAT = rb'[^"{}\[\]]*+(?:' + STRING.pattern + rb'[^"{}\[\]]*+)*+'
ONE_DEEP = FLAT + rb"(?:(?:\{" + FLAT + rb"\}|\[" + FLAT + rb"\])" + FLAT + rb")*+"
# All up to the next bracket that does not close again two levels deep: most of a row at once.
BETWEEN = re.compile(FLAT + rb"(?:(?:\{" + ONE_DEEP + rb"\}|\[" + ONE_DEEP + rb"\])" + FLAT + rb")*+")
BROKEN_STRING = re.compile(rb'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+\\?\n')
SCALAR = re.compile(rb"[^,:\[\]{}\s]*+")
SPACE = re.compile(rb"[ \t\r\n]*+")


class BrokenJson(Exception):
    """The text cannot be followed any further from a value on.

    Args:
        problem: what is wrong. value: the bytes of the value as far as they were read.
    """

    def __init__(self, problem: str, value: bytes = b"") -> None:
        super().__init__(problem)
        self.problem, self.value = problem, value


class Scanner:
    """A position in a stream of UTF-8 bytes.

    `line` and `column` (in characters) are those of the position, both from 1.
    """

    def __init__(self, stream: BinaryIO, row_bytes: int) -> None:
        self._stream, self._row_bytes = stream, row_bytes
        self._buffer, self._at, self._counted, self._ended = b"", 0, 0, False
        self._line, self._column = 1, 1
        self.broken = False  # set by whoever found that nothing behind the position can be trusted

    @property
    def line(self) -> int:
        """Of the position, from 1."""
        self._count()
        return self._line

    @property
    def column(self) -> int:
        """Of the position, in characters from 1."""
        self._count()
        return self._column

    def peek(self) -> bytes:
        """The next byte that is not white space, empty at the end of the text."""
        byte = self._buffer[self._at : self._at + 1]
        if byte not in b" \t\r\n":
            return byte
        while True:
            match = SPACE.match(self._buffer, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._buffer) or not self._read():
                break
        return self._buffer[self._at : self._at + 1]

    def take(self) -> None:
        """Step over the byte that `peek` saw."""
        self._at += 1

    def value(self) -> bytes:
        """The bytes of the value at the position, which moves behind it.

        Raises:
            BrokenJson: it has no end, or is longer than a row may be.
        """
        end = self._end(0, keep=True)
        value = self._buffer[self._at : end]
        self._at = end
        return value

    def skip(self, depth: int = 0) -> None:
        """Move behind the value at the position, or out of so many brackets, holding nothing.

        Raises:
            BrokenJson: there is no end.
        """
        self._at = self._end(depth, keep=False)

    def rest(self) -> bytes:
        """What of the text lies in the buffer from the position on: enough to show."""
        return self._buffer[self._at :]

    def _end(self, depth: int, keep: bool) -> int:
        first = self._buffer[self._at : self._at + 1]
        if not depth and first == b'"':
            return self._end_of(STRING)
        if not depth and first not in (b"{", b"["):
            return self._end_of(SCALAR)
        at = self._at
        if not depth:
            depth, at = 1, at + 1
        while True:
            match = BETWEEN.match(self._buffer, at)
            assert match is not None
            at = match.end()
            byte = self._buffer[at : at + 1]
            if byte in (b"", b'"'):
                at = self._more(at, keep, in_string=bool(byte))
                continue
            depth += 1 if byte in b"{[" else -1
            at += 1
            if depth == 0:
                return at
            if depth > DEPTH:
                raise BrokenJson("nested too deeply", self._buffer[self._at : at])

    def _end_of(self, pattern: re.Pattern[bytes]) -> int:
        while True:
            match = pattern.match(self._buffer, self._at)
            if match and (match.end() < len(self._buffer) or self._ended):
                return match.end()
            if match is None and BROKEN_STRING.match(self._buffer, self._at):
                raise BrokenJson("a quote is missing", self._buffer[self._at : self._at + self._row_bytes])
            if not self._read() and match is None:
                raise BrokenJson("unexpected end of the text", self._buffer[self._at :])
            self._check_size()

    def _more(self, at: int, keep: bool, in_string: bool) -> int:
        """Read on, in the middle of a value; returns where `at` is now."""
        if in_string and (match := BROKEN_STRING.match(self._buffer, at)):
            raise BrokenJson("a quote is missing", self._buffer[self._at : match.end()])
        if not keep:
            self._at = at
        behind = at - self._at
        if not self._read():
            raise BrokenJson("unexpected end of the text", self._buffer[self._at :])
        self._check_size()
        return self._at + behind

    def _check_size(self) -> None:
        if len(self._buffer) - self._at > self._row_bytes + 2 * CHUNK:
            raise BrokenJson("longer than a row may be", self._buffer[self._at :])

    def _read(self) -> bool:
        """Drop what lies before the position and read on; False at the end of the text."""
        if self._ended:
            return False
        self._count()
        left = self._buffer[self._at :]
        # Twice as much each time, so that a long value is looked through a few times only.
        chunk = self._stream.read(min(max(CHUNK, len(left)), max(self._row_bytes - len(left), 0) + CHUNK))
        self._ended = not chunk
        self._buffer, self._at, self._counted = left + chunk, 0, 0
        return not self._ended

    def _count(self) -> None:
        """Bring line and column to the position; each byte is looked at once."""
        newlines, start = self._buffer.count(b"\n", self._counted, self._at), self._counted
        if newlines:
            self._line += newlines
            self._column = 1
            start = self._buffer.rfind(b"\n", start, self._at) + 1
        self._column += len(self._buffer[start : self._at].decode("utf-8", "replace"))
        self._counted = self._at
