"""YAML: a list of rows, or an object that holds one. Only plain data is made; tags of Python's own mean nothing here.

Words such as yes, no and on stay text, and so do dates: people who write conversations mean the words.
"""

import re
from collections.abc import Iterator
from typing import Any

from studio.datasets.reading.choice import choose_list
from studio.datasets.reading.documents import Rows
from studio.datasets.reading.limits import MIB, megabytes
from studio.datasets.reading.places import excerpt
from studio.datasets.reading.text import Text
from studio.datasets.rows import RowError, SourceRow

YAML_BYTES = 32 * MIB
NODES = 1_000_000  # the file is held as a whole, with some hundred bytes for each text, list and object in it
DEPTH = 100
ALIASED_BYTES = 4 * MIB  # what aliases may add to what is written
KIND = "not YAML"
NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][-+]?[0-9]{1,2})?")
WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None, "true": True, "True": True, "false": False, "False": False}


def read_yaml(text: Text) -> Rows:
    """The rows of all documents of a file; a row that is a list of texts becomes `{"conversation": [...]}`.

    Raises:
        InvalidInput: the file is too large, nested too deeply, or grows by its aliases; several lists could be meant.
    """
    import yaml

    document = text.document
    with text.open_bytes() as stream:
        content = stream.read(YAML_BYTES + 1)
    if len(content) > YAML_BYTES:
        raise document.refuse(f"is YAML of more than {megabytes(YAML_BYTES)}; write it as JSON Lines, which has no such limit.")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_shape(text, yaml.parse(content, loader))
        for node in yaml.compose_all(content, loader):
            _check_aliases(text, node)
            yield from _rows(text, node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        yield _not_yaml(text, content, error.problem or "", mark.line if mark else 0, mark.column if mark else 0)
    except yaml.reader.ReaderError as error:
        yield _not_yaml(text, content, error.reason, content.decode("utf-8")[: error.position].count("\n"), 0)
    except RecursionError:
        raise document.refuse("is nested too deeply; write rows as a list of objects.") from None


def _not_yaml(text: Text, content: bytes, why: str, line: int, column: int) -> RowError:
    lines = content.split(b"\n", line + 1)
    shown = excerpt(lines[line].decode("utf-8", "replace"), column + 1) if line < len(lines) else ""
    problem = f"this is not valid YAML ({why})"
    fix = "check indents, quotes and colons here"
    return RowError(line + 1, "", problem, fix, kind=KIND, column=column + 1, excerpt=shown, file=text.document.file, ends=True)


def _check_shape(text: Text, events: Iterator[Any]) -> None:
    """Walk through once without building anything: deep nesting and more values than can be held end here."""
    import yaml

    depth = nodes = 0
    for event in events:
        nodes += isinstance(event, yaml.NodeEvent)
        if nodes > NODES:
            raise text.document.refuse(f"is YAML of more than {NODES:,} values; write it as JSON Lines, which has no such limit.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH:
                raise text.document.refuse(f"is nested more than {DEPTH} levels deep; write rows as a list of objects.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_aliases(text: Text, root: Any) -> None:
    """Refuse a document that aliases blow up, counted without following any twice."""
    sizes: dict[int, int] = {}
    written = 0

    def size_of(node: Any) -> int:
        nonlocal written
        if id(node) in sizes:
            if sizes[id(node)] < 0:
                raise text.document.refuse("has an alias that holds itself; write the text out.")
            return sizes[id(node)]
        sizes[id(node)] = -1
        own = 8 + (len(node.value) if isinstance(node.value, str) else 0)
        written += own
        sizes[id(node)] = own + sum(size_of(child) for child in _children(node))
        return sizes[id(node)]

    if root is not None and size_of(root) > written + ALIASED_BYTES:
        raise text.document.refuse("repeats itself by aliases until it is far larger than it looks; write the rows out.")


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node.value, list):
        for child in node.value:
            if isinstance(child, tuple):
                yield from child
            else:
                yield child


def _rows(text: Text, node: Any) -> Rows:
    import yaml

    if isinstance(node, yaml.MappingNode):
        lists = [key.value for key, value in node.value if isinstance(key, yaml.ScalarNode) and _holds_rows(value)]
        if not lists:
            yield _row(text, node)
            return
        chosen = choose_list(text.document, lists)
        node = next(value for key, value in node.value if key.value == chosen and _holds_rows(value))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield _row(text, item)
    elif node is not None and node.value:
        yield _row(text, node)


def _holds_rows(node: Any) -> bool:
    import yaml

    if not isinstance(node, yaml.SequenceNode) or not node.value or isinstance(node.value[0], yaml.ScalarNode):
        return False
    first = node.value[0]
    keys = {key.value for key, _ in first.value if isinstance(key, yaml.ScalarNode)} if isinstance(first, yaml.MappingNode) else set()
    return not ({"role", "content"} <= keys or {"from", "value"} <= keys)


def _row(text: Text, node: Any) -> SourceRow | RowError:
    import yaml

    line, file = node.start_mark.line + 1, text.document.file
    if isinstance(node, yaml.SequenceNode) and node.value and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return SourceRow(line, {"conversation": [item.value for item in node.value]}, file)
    return SourceRow(line, _plain(node), file)


def _plain(node: Any) -> Any:
    """A node as plain data; only what is unquoted can be a number, true, false or null."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {key.value if isinstance(key, yaml.ScalarNode) else str(_plain(key)): _plain(value) for key, value in node.value}
    if node.style:  # quoted, or a block
        return node.value
    if node.value in WORDS:
        return WORDS[node.value]
    if NUMBER.fullmatch(node.value):
        return int(node.value) if re.fullmatch(r"[-+]?\d+", node.value) else float(node.value)
    return node.value
