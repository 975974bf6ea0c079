"""Rows of a dataset in Arrow: written in one pass, opened in a moment, read a page at a time.

Beside the conversation stands what else the row had (`extra`, as JSON), and the place that it came from. The content hash is
of the conversations and of what else there is; the place is no part of it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import orjson

from studio.datasets.blocks import PlainBlock
from studio.datasets.content_hash import ContentHash
from studio.datasets.forms import Conversation
from studio.datasets.forms.conversation import TEXT

ROWS_FILE = "rows.arrow"
BATCH_ROWS, BATCH_CHARACTERS = 1_000, 4 * 2**20


class StoredRow(NamedTuple):
    """One row: the conversation, its other fields, and the line and file that it came from (0 and "" where it is unknown)."""

    conversation: Conversation
    extra: Mapping[str, Any] = {}
    line: int = 0
    file: str = ""


class RowWriter:
    """Writes rows as an Arrow stream, a batch at a time.

    Args:
        path: of the new file.

    Attributes:
        rows, turns: how many there are so far.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._pa = pa
        self.rows = self.turns = 0
        self._hash = ContentHash()
        self._turn = pa.struct([("role", pa.string()), ("content", pa.string())])
        plain = [("extra", pa.string()), ("line", pa.int64()), ("file", pa.string())]
        self._schema = pa.schema([("messages", pa.list_(self._turn)), *plain])
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_stream(self._sink, self._schema)
        self._start()

    def _start(self) -> None:
        self._characters = 0
        self._ends, self._roles, self._contents = [0], list[str](), list[str]()
        self._extras, self._lines, self._files = list[str](), list[int](), list[str]()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.flush()
                self._writer.close()
        finally:
            self._sink.close()

    def add(self, conversation: Conversation, extra: Mapping[str, Any], line: int, file: str) -> None:
        """Append one row."""
        for turn in conversation:
            content = turn["content"]
            self._roles.append(turn["role"])
            self._contents.append(content)
            self._characters += len(content)
        more = orjson.dumps(extra, option=orjson.OPT_SORT_KEYS).decode() if extra else ""
        self._ends.append(len(self._roles))
        self._extras.append(more)
        self._lines.append(line)
        self._files.append(file)
        self._characters += len(more)
        if self._characters > BATCH_CHARACTERS or len(self._lines) >= BATCH_ROWS:
            self.flush()

    def add_block(self, block: PlainBlock) -> None:
        """Append the conversations of a block, which have nothing beside them."""
        import numpy as np

        self.flush()
        rows, text = len(block.messages), self._pa.string()
        extras, files = (self._pa.repeat(self._pa.scalar(value, text), rows) for value in ("", block.file))
        self._write(block.messages, extras, np.arange(block.first_line, block.first_line + rows), files)

    def flush(self) -> None:
        """Write what `add` has kept back, so that `rows` and `turns` are complete."""
        if not self._lines:
            return
        pa = self._pa
        turns = pa.StructArray.from_arrays([pa.array(self._roles, pa.string()), pa.array(self._contents, pa.string())], ["role", "content"])
        messages = pa.ListArray.from_arrays(pa.array(self._ends, pa.int32()), turns)
        self._write(messages, pa.array(self._extras, pa.string()), self._lines, pa.array(self._files, pa.string()))
        self._start()

    def _write(self, messages: Any, extras: Any, lines: Any, files: Any) -> None:
        columns = [messages, extras, self._pa.array(lines, self._pa.int64()), files]
        self._writer.write_batch(self._pa.record_batch(columns, schema=self._schema))
        self._hash.update(messages, extras)
        self.rows += len(messages)
        self.turns += len(messages.values)

    @property
    def content_hash(self) -> str:
        """The `ContentHash` of all rows; complete once the writer is closed."""
        return self._hash.hexdigest()


class RowStore:
    """The rows of one dataset, memory-mapped.

    Args:
        path: what a `RowWriter` wrote; of older files that hold conversations alone, the rest is empty.
    """

    def __init__(self, path: Path) -> None:
        from datasets import Dataset

        self._table = Dataset.from_file(str(path)).data.table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def page(self, offset: int, limit: int) -> list[StoredRow]:
        """Some rows, without reading the others."""
        return [_stored(row) for row in self._table.slice(max(offset, 0), max(limit, 0)).to_pylist()]

    def fetch(self, offset: int, limit: int) -> list[Conversation]:
        """The conversations of a page."""
        return [row["messages"] for row in self._table.select(["messages"]).slice(offset, limit).to_pylist()]

    def has_passages_alone(self) -> bool:
        """Whether no row is a conversation."""
        import pyarrow.compute as pc

        roles = (chunk.flatten().field("role") for chunk in self._table.column("messages").chunks)
        return all(pc.all(pc.equal(chunk, TEXT)).as_py() for chunk in roles)

    def __iter__(self) -> Iterator[StoredRow]:
        for batch in self._table.to_batches(max_chunksize=BATCH_ROWS):
            yield from map(_stored, batch.to_pylist())

    def conversations(self) -> Iterator[Conversation]:
        """All conversations in their order, a batch in memory at a time."""
        for batch in self._table.select(["messages"]).to_batches(max_chunksize=BATCH_ROWS):
            yield from (row["messages"] for row in batch.to_pylist())

    def longest(self, count: int) -> list[Conversation]:
        """The conversations with the most bytes of text, without reading the others into Python."""
        import numpy as np
        import pyarrow.compute as pc

        sizes = []
        for chunk in self._table.column("messages").chunks:  # lists of turns; offsets say where each begins
            ends = np.concatenate(([0], np.cumsum(pc.binary_length(chunk.flatten().field("content")).to_numpy())))
            offsets = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()
            sizes.append(ends[offsets[1:]] - ends[offsets[:-1]])
        order = np.argsort(np.concatenate(sizes))[::-1][:count]
        return [self.page(int(i), 1)[0].conversation for i in order]


def rows_hash(path: Path) -> str | None:
    """The `ContentHash` of the rows in a file, a batch in memory at a time; None where an older studio wrote it, which hashed otherwise.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    import pyarrow as pa

    found = ContentHash()
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
        if "extra" not in stream.schema.names:
            return None
        for batch in stream:
            found.update(batch.column("messages"), batch.column("extra"))
    return found.hexdigest()


def _stored(row: dict[str, Any]) -> StoredRow:
    extra = orjson.loads(row["extra"]) if row.get("extra") else {}
    return StoredRow(row["messages"], extra, row.get("line", 0), row.get("file", ""))
