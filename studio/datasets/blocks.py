"""The quick way for chats in JSON Lines: whole blocks of lines become Arrow's columns without a Python object a row.

Only what needs no second look goes this way: each line is one object with nothing but a list of turns, and `RowReader` would
take each turn as it stands but for blanks at its ends. A block with anything else goes row by row, so what is read, refused
and told is the same on both ways.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from studio.datasets.reading import LineBlock
from studio.datasets.rows import RowError, SourceRow

THREADS, AHEAD = 2, 3  # blocks that are parsed at once, and that wait while one is written
ROLES = ("system", "user", "assistant")
LF, CR, OPEN, CLOSE = b"\n\r{}"


class PlainBlock(NamedTuple):
    """Conversations of consecutive lines. `messages` is Arrow's ListArray of structs with role and content."""

    messages: Any
    first_line: int
    file: str


def plain_blocks(items: Iterable[SourceRow | RowError | LineBlock], column: str) -> Iterator[SourceRow | RowError | PlainBlock]:
    """Take the blocks of lines that are plain as they are, and make rows of the others; the order stays.

    Args:
        column: that holds the turns; empty where every row must be read by itself.
    """
    waiting: deque[tuple[LineBlock, Future[Any]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            if not isinstance(item, LineBlock):
                yield item
            elif not column:
                yield from item.rows()
            else:
                waiting.append((item, pool.submit(parse_block, item.data, column)))
                if len(waiting) > AHEAD:
                    yield from _finish(*waiting.popleft())
        while waiting:
            yield from _finish(*waiting.popleft())


def _finish(block: LineBlock, parsed: "Future[Any]") -> Iterator[SourceRow | RowError | PlainBlock]:
    messages = parsed.result()
    if messages is None:
        yield from block.rows()
    else:
        yield PlainBlock(messages, block.first_line, block.file)


def parse_block(data: bytes, column: str) -> Any:
    """The conversations on some lines, as Arrow's ListArray, one a line; None where anything is out of the ordinary.

    Args:
        data: UTF-8, whole lines. column: the only key of each line's object.
    """
    import pyarrow as pa
    from pyarrow import json

    lines = _count_objects(data)
    if not lines:
        return None
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    options = json.ParseOptions(pa.schema([(column, pa.list_(turn))]), unexpected_field_behavior="error")
    whole = json.ReadOptions(use_threads=False, block_size=len(data) + 1)
    try:
        chunks = json.read_json(pa.BufferReader(data), whole, options).column(0).chunks
    except pa.ArrowException:  # orjson will say what is wrong, if anything is
        return None
    if len(chunks) != 1 or len(chunks[0]) != lines:
        return None
    return _normalise(chunks[0])


def _count_objects(data: bytes) -> int:
    """How many lines there are, if each begins with a brace and ends with one; else 0.

    In JSON a closing brace, a line's end and an opening brace follow each other only between two values, and Arrow allows no
    line's end in a text. So where Arrow finds as many values as there are lines, each line is one of them. (Arrow itself
    takes several values on a line, and a value over several lines. A block that begins with null ends its process.)
    """
    import numpy as np

    codes = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(codes == LF)
    if not len(codes) or codes[0] != OPEN:
        return 0
    before = codes[ends - 1]
    before = np.where(before == CR, codes[ends - 2], before)
    last = int(ends[-1]) + 1 if len(ends) else 0
    after = codes[ends[:-1] + 1] if last == len(codes) else codes[ends + 1]
    if (before == CLOSE).all() and (after == OPEN).all():
        return len(ends) + (last < len(codes))
    return 0


def _normalise(messages: Any) -> Any:
    """The conversations with the blanks at the ends of texts cut off; None where one needs a second look."""
    import pyarrow as pa
    import pyarrow.compute as pc

    turns = messages.values
    roles, contents = turns.field("role"), turns.field("content")
    if any(array.null_count for array in (messages, turns, roles, contents)):
        return None
    offsets = messages.offsets.to_numpy()
    if offsets[0] or offsets[-1] != len(turns) or not _take_turns(roles, offsets):
        return None
    contents = pc.utf8_trim_whitespace(contents)  # cuts off what str.strip does
    if not pc.min(pc.binary_length(contents)).as_py():
        return None
    return pa.ListArray.from_arrays(messages.offsets, pa.StructArray.from_arrays([roles, contents], ["role", "content"]))


def _take_turns(roles: Any, offsets: Any) -> bool:
    """Whether each row has a system turn or none, then user and assistant in alternation, ending with the assistant.

    Args:
        roles: of all turns, a StringArray. offsets: where each row begins among them, and the end, shape [rows + 1].
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    codes = pc.index_in(roles, pa.array(ROLES, pa.string()))
    sizes = np.diff(offsets)
    if codes.null_count or sizes.min() < 2:
        return False
    found = codes.to_numpy()
    starts = offsets[:-1] + (found[offsets[:-1]] == 0)  # of the user's first turns
    exchanged = offsets[1:] - starts
    if (exchanged % 2).any() or not exchanged.all():
        return False
    place = np.arange(len(found), dtype=np.int32) - np.repeat(starts, sizes)  # -1 for a system turn
    return bool((found == np.where(place < 0, 0, 1 + place % 2)).all())
