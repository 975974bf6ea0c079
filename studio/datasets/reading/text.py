"""Text of any usual encoding as a stream of UTF-8 bytes or of characters, in bounded memory.

UTF-8 is read as it is, UTF-16 by its byte order mark. What is neither is Windows-1252, the superset of Latin-1 that
people have; in a text that is UTF-8 but for some bytes only these are taken for Windows-1252. Both are told.
"""

import codecs
import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TextIO

from studio.datasets.reading.documents import Document
from studio.datasets.reading.limits import megabytes

CHUNK = 1 << 18  # small enough for a cache, since each piece is looked through several times
LF = 10
ENOUGH = 64  # bytes for which the quick check is worth its while
BYTE_BY_BYTE = "studio-windows-1252"
MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    # Bytes that Windows-1252 leaves undefined mean the control characters of Latin-1, as in browsers.
    decoded = (bytes((byte,)) for byte in error.object[error.start : error.end])
    return "".join(b.decode("latin-1") if b in b"\x81\x8d\x8f\x90\x9d" else b.decode("cp1252") for b in decoded), error.end


codecs.register_error(BYTE_BY_BYTE, _as_windows_1252)


class _Transcoded(io.RawIOBase):
    """Bytes of another encoding as UTF-8."""

    def __init__(self, raw: BinaryIO, encoding: str) -> None:
        self._raw, self._left = raw, b""
        self._decoder = codecs.getincrementaldecoder(encoding)(BYTE_BY_BYTE)

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            chunk = self._raw.read(1 << 16)
            self._left = self._decoder.decode(chunk, final=not chunk).encode()
            if not chunk:
                break
        count = min(len(target), len(self._left))
        target[:count], self._left = self._left[:count], self._left[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


@dataclass(frozen=True)
class Text:
    """A document that is text.

    Args:
        encoding: what it is decoded with. start: bytes of its byte order mark. long_line: the first line with more
        bytes than a row may have, 0 where there is none.
    """

    document: Document
    encoding: str
    start: int
    plain: bool
    long_line: int

    @contextlib.contextmanager
    def open_bytes(self) -> Iterator[BinaryIO]:
        """The text as UTF-8 without a byte order mark."""
        with self.document.path.open("rb", buffering=CHUNK) as raw:
            raw.seek(self.start)
            yield raw if self.plain else io.BufferedReader(_Transcoded(raw, self.encoding), CHUNK)

    @contextlib.contextmanager
    def open_text(self) -> Iterator[TextIO]:
        """The text as characters; lines end at LF, CR LF or CR and keep their ends."""
        with self.document.path.open("rb", buffering=CHUNK) as raw:
            raw.seek(self.start)
            yield io.TextIOWrapper(raw, self.encoding, errors="strict" if self.plain else BYTE_BY_BYTE, newline="")

    def check_lines(self) -> None:
        """Refuse a text of which one line is longer than a row may be.

        Raises:
            InvalidInput: with the line's number.
        """
        if self.long_line:
            limit = megabytes(self.document.limits.row_bytes)
            raise self.document.refuse(f"has more than {limit} on line {self.long_line}; break it into rows of a line each.")


def count_lines(piece: bytes) -> int:
    """How often a line ends here."""
    import numpy as np

    return int(np.count_nonzero(np.frombuffer(piece, np.uint8) == LF))  # three times as fast as bytes.count where lines are short


class _Lines:
    """Counts lines in a stream of pieces and finds the first that is too long."""

    def __init__(self, row_bytes: int) -> None:
        self.row_bytes, self.number, self.open, self.long = row_bytes, 1, 0, 0

    def feed(self, piece: bytes) -> None:
        first = piece.find(b"\n")
        self.open += len(piece) if first < 0 else first
        if self.open > self.row_bytes and not self.long:
            self.long = self.number
        if first >= 0:
            self.number += count_lines(piece)
            self.open = len(piece) - piece.rfind(b"\n") - 1

    def place(self, piece: bytes, at: int) -> tuple[int, int]:
        """Line and byte, both from 1, of an index into the piece that comes next."""
        newline = piece.rfind(b"\n", 0, at)
        return self.number + piece.count(b"\n", 0, at), at - newline if newline >= 0 else self.open + at + 1


def examine(document: Document) -> Text | None:
    """Find out the encoding by reading the whole file once; None where there is nothing but white space.

    Raises:
        InvalidInput: these bytes are not text.
    """
    with document.path.open("rb", buffering=0) as raw:
        head = raw.read(4)
        mark, encoding = next((pair for pair in MARKS if head.startswith(pair[0])), (b"", "utf-8"))
        raw.seek(len(mark))
        lines = _Lines(document.limits.row_bytes)
        something = False
        # A line that fits into a piece must not be longer than a row may be.
        size = min(CHUNK, max(document.limits.row_bytes // 4, 1))
        pieces = _utf16_pieces(document, raw, encoding, size) if encoding != "utf-8" else iter(lambda: raw.read(size), b"")
        decoder = codecs.getincrementaldecoder("utf-8")()
        wrong = ""
        for piece in pieces:
            if b"\0" in piece:
                line = lines.place(piece, piece.index(b"\0"))[0]
                raise document.refuse(f"is not text: line {line} holds a NUL byte; give a text file, or one with the right ending.")
            wrong = wrong or _not_utf8(decoder, piece, lines)
            something = something or not piece.isspace()
            lines.feed(piece)
        wrong = wrong or _not_utf8(decoder, b"", lines)
    if not something:
        return None
    if not wrong:
        return Text(document, encoding, len(mark), encoding == "utf-8", lines.long)
    return Text(document, _guess(document, len(mark), wrong), len(mark), False, lines.long)


def _utf16_pieces(document: Document, raw: io.FileIO, encoding: str, size: int) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while chunk := raw.read(size):
            yield decoder.decode(chunk).encode()
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise document.refuse("begins as UTF-16 and goes on as something else; save it again with the encoding UTF-8.") from None


def _not_utf8(decoder: codecs.IncrementalDecoder, piece: bytes, lines: _Lines) -> str:
    """Where the first byte is that is not UTF-8, for people; empty where there is none. An empty piece ends the text."""
    pending = decoder.getstate()[0]
    if (piece and not pending and piece.isascii()) or _goes_on_as_utf8(decoder, piece):
        return ""
    try:
        decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        line, byte = lines.place(piece, error.start - len(pending))
        return f"line {line} holds the byte 0x{error.object[error.start]:02x} at position {byte}"
    return ""


def _goes_on_as_utf8(decoder: codecs.IncrementalDecoder, piece: bytes) -> bool:
    """Whether a long piece surely is UTF-8. Arrow checks all but the characters that it cuts, without making a text of it."""
    import numpy as np
    import pyarrow as pa

    if len(piece) < ENOUGH:
        return False
    state = decoder.getstate()
    codes = np.frombuffer(piece, np.uint8)
    begins = [edge & 0xC0 != 0x80 for edge in (codes[:4], codes[:-5:-1])]  # where a character begins
    start, end = int(begins[0].argmax()), len(piece) - 1 - int(begins[1].argmax())
    with contextlib.suppress(UnicodeDecodeError, pa.ArrowInvalid):  # the decoder will say where
        decoder.decode(piece[:start])
        texts = pa.StringArray.from_buffers(1, pa.array([start, end], pa.int32()).buffers()[1], pa.py_buffer(piece))
        if not decoder.getstate()[0]:
            texts.validate(full=True)
            decoder.decode(piece[end:])
            return True
    decoder.setstate(state)
    return False


def _guess(document: Document, start: int, wrong: str) -> str:
    """UTF-8 where that explains more of the characters beyond ASCII, else Windows-1252; tells which."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    good = bad = 0
    with document.path.open("rb") as raw:
        raw.seek(start)
        while chunk := raw.read(CHUNK):
            high = [c for c in decoder.decode(chunk) if c > "\x7f"]
            broken = sum("\udc80" <= c <= "\udcff" for c in high)
            bad, good = bad + broken, good + len(high) - broken
    how = "such bytes were" if good > bad else "it was"
    document.tell(f"is not UTF-8: {wrong}; {how} read as Windows-1252. If letters look wrong, save it again with the encoding UTF-8.")
    return "utf-8" if good > bad else "cp1252"
