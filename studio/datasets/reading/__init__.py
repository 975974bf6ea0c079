"""Read rows out of any file that people have, each with the line on which it starts, in bounded memory.

Uploads never go through a dataset library's own reader: those lose the line of a broken row or accept what is
not a row at all. `read_files` finds the reader by a file's ending:

| ending | module |
|---|---|
| .jsonl .ndjson | `json_lines` |
| .json | `json_items` |
| .csv .tsv | `delimited` |
| .txt .md | `passages` |
| .yaml .yml | `yaml_rows` |
| .parquet .xlsx .xls .ods | `tables` |
| .zip .gz | `archives`, then one of these |
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from studio.datasets.reading.archives import Budget, unpack
from studio.datasets.reading.delimited import read_delimited
from studio.datasets.reading.documents import Document
from studio.datasets.reading.json_items import is_array, read_json
from studio.datasets.reading.json_lines import Items, LineBlock, read_json_lines
from studio.datasets.reading.limits import Limits, megabytes
from studio.datasets.reading.passages import read_passages
from studio.datasets.reading.tables import read_table
from studio.datasets.reading.text import Text, examine
from studio.datasets.reading.yaml_rows import read_yaml
from studio.datasets.rows import RowError, SourceRow
from studio.errors import InvalidInput

__all__ = ["SUFFIXES", "Limits", "LineBlock", "pasted_suffix", "read_blocks", "read_files"]


def _read_lines_or_array(text: Text) -> Items:
    if is_array(text):
        text.document.tell("is not JSON Lines but JSON over several lines; it was read as that.")
        return read_json(text)
    return read_json_lines(text)


TEXTS: dict[str, Callable[[Text], Items]] = {
    ".jsonl": _read_lines_or_array,
    ".ndjson": _read_lines_or_array,
    ".json": read_json,
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".txt": read_passages,
    ".md": read_passages,
    ".yaml": read_yaml,
    ".yml": read_yaml,
}
TABLES = (".parquet", ".xlsx", ".xls", ".ods")
PLAIN = (*TEXTS, *TABLES)
SUFFIXES: tuple[str, ...] = (*PLAIN, ".zip", ".gz")


def read_files(paths: Sequence[Path], limits: Limits, notices: list[str]) -> Iterator[SourceRow | RowError]:
    """Yield the rows of files in turn, and what is wrong with rows as `RowError`s in their place.

    An error with `ends` is the last of its file. Sentences about what was adapted or left out go to `notices` as it happens.

    Raises:
        InvalidInput: a file as a whole is refused. OutOfSpace: an archive could not be unpacked.
    """
    for item in read_blocks(paths, limits, notices):
        if isinstance(item, LineBlock):
            yield from item.rows()
        else:
            yield item


def read_blocks(paths: Sequence[Path], limits: Limits, notices: list[str]) -> Items:
    """As `read_files`, but JSON Lines come in blocks of lines that are not parsed yet.

    Raises:
        InvalidInput, OutOfSpace: as `read_files`.
    """
    if not paths:
        raise InvalidInput("There is no file to read; give at least one.")
    documents = [_checked(path, limits, notices) for path in paths]
    budget = Budget(limits.expanded_bytes)
    found = empty = 0
    for document in documents:
        for inner in unpack(document, PLAIN, budget):
            rows = _read(inner)
            if rows is not None:
                found += 1
                yield from rows
            elif len(documents) == 1 and document.suffix != ".zip":
                raise document.refuse("is empty; give a file with at least one row.")
            else:
                empty += 1
                inner.tell("is empty and was left out.")
    if not found:
        names = ", ".join(repr(document.file) for document in documents[:8])
        what = "only empty files" if empty else f"no file that can be read ({', '.join(PLAIN)})"
        raise InvalidInput(f"There is {what} in {names}; give a file with at least one row.")


def _checked(path: Path, limits: Limits, notices: list[str]) -> Document:
    if not path.is_file():
        raise InvalidInput(f"There is no file {path.name!r}; check the name and upload it again.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidInput(f"The file {path.name!r} ends in {suffix or 'nothing'}; give a {', '.join(SUFFIXES)} file.")
    size = path.stat().st_size
    if size > limits.upload_bytes:
        limit = megabytes(limits.upload_bytes)
        raise InvalidInput(f"The file {path.name!r} has {megabytes(size)} and the limit is {limit}; split it into parts.")
    return Document(path, path.name, suffix, limits, notices)


def _read(document: Document) -> Items | None:
    """The rows of a file that is no archive; None where it is empty."""
    if document.suffix in TABLES:
        return read_table(document) if document.path.stat().st_size else None
    text = examine(document)
    return TEXTS[document.suffix](text) if text else None


def pasted_suffix(text: str) -> str:
    """The ending of a file for a text that somebody pasted: .jsonl, .json, .csv, .tsv or .txt."""
    lines = [line for line in text.lstrip("\ufeff").splitlines() if line.strip()][:20]
    first = lines[0].strip() if lines else ""
    if first[:1] == "{":
        # A whole object on the first line is JSON Lines, an object that goes on is JSON.
        return ".jsonl" if first.endswith("}") and all(line.strip().startswith("{") for line in lines) else ".json"
    if first[:1] == "[" and (first == "[" or first[1:].lstrip()[:1] in ("{", "]")):
        return ".json"
    for delimiter, suffix in (("\t", ".tsv"), (",", ".csv"), (";", ".csv"), ("|", ".csv")):
        if _looks_like_table(lines, delimiter):
            return suffix
    return ".txt"


def _looks_like_table(lines: list[str], delimiter: str) -> bool:
    """Whether the first line could be a header of short names and the others have as many cells."""
    import csv

    names = [name.strip() for name in lines[0].split(delimiter)] if lines else []
    if len(lines) < 2 or len(names) < 2 or len(set(names)) < len(names) or any(not name or len(name) > 40 for name in names):
        return False
    try:
        rows = list(csv.reader(lines, delimiter=delimiter))
    except csv.Error:
        return False
    return len(rows[1]) == len(names) or '"' in lines[1]
