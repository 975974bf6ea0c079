"""Broken uploads of every kind: each gives a set or a sentence, and no row is lost, invented or changed untold.

What `ingest` writes is held to a plain loop over its parts, and its parts to the bytes of the file: a row whose lines nobody
touched is what it was, JSON is what Python's own parser makes of it, and no text of a row is missing from what is stored.

STUDIO_SOAK=1 tries a million files: `make soak`. STUDIO_FUZZ_CASES=n tries n, and STUDIO_FUZZ_SEED draws others.
"""

import csv
import io
import json
import math
import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from studio.datasets.errors import COLUMNS, FORMULA, BadRows, ErrorLog
from studio.datasets.forms import KINDS, RowReader, choose_form
from studio.datasets.ingest import LOOKED_AT, Options, ingest
from studio.datasets.reading import Limits, read_files
from studio.datasets.rows import RowError, SourceRow
from studio.datasets.store import RowWriter, StoredRow
from studio.errors import InvalidInput
from tests.fuzzing import FORMS, INNER, PROSE, SHARES, SLOW, Source, Upload, as_text, write
from tests.workbooks import write_xlsx

SOAK = bool(os.environ.get("STUDIO_SOAK"))
CASES = int(os.environ.get("STUDIO_FUZZ_CASES", "1000000" if SOAK else "3000"))
SLOW_CASES = max(CASES // 2_000, 1)  # of each kind that is read in a process of its own
SEED = os.environ.get("STUDIO_FUZZ_SEED", "1")
SYSTEM = "Be kind."
LIMITS = Limits(1 << 20, expanded_bytes=1 << 22, row_bytes=1 << 16, columns=60, files=20)
READING = {"not JSON", "broken CSV", "cells", "not YAML"}
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
# What may be left out of a row or written otherwise, by the notice that tells it.
TOLD = ("Keys of turns", "nothing answers", "JSON in a cell", "in parts of text", "Human: and", "written in digits", "yes or no")
RECODED = "is not UTF-8"


@dataclass
class Expected:
    """What a plain loop over the parts of the pipeline makes of a file."""

    rows: list[SourceRow | RowError] = field(default_factory=list)
    pairs: list[tuple[SourceRow, StoredRow]] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)
    forms: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def expect(path: Path, options: Options) -> Expected:
    found = Expected()
    found.rows = list(read_files([path], LIMITS, found.notices))
    for file, group in groupby(found.rows, key=lambda row: row.file):
        rows = list(group)
        found.errors += [row for row in rows if isinstance(row, RowError)]
        right = [row for row in rows if isinstance(row, SourceRow)]
        if not right:
            continue
        fit = choose_form([row.value for row in right[:LOOKED_AT]], options.form, options.mapping)
        reader = RowReader(fit, options.system)
        found.forms[file] = fit.form
        for row in right:
            try:
                found.pairs.append((row, StoredRow(*reader(row), row.line, row.file)))
            except RowError as error:
                found.errors.append(error)
        found.notices += reader.notices
    return found


def stored(path: Path) -> list[StoredRow]:
    """The rows of a file as a `RowStore` gives them, without what it takes to open one."""
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as stream:
        rows = stream.read_all().to_pylist()
    return [StoredRow(r["messages"], orjson.loads(r["extra"]) if r["extra"] else {}, r["line"], r["file"]) for r in rows]


def check(path: Path, upload: Upload, options: Options) -> str:
    """Upload one file, hold what comes of it to what should, and say in a word what that was."""
    target = path.with_name("rows.arrow")
    try:
        expected: Expected | InvalidInput = expect(path, options)
    except InvalidInput as refusal:
        expected = refusal
    try:
        made = ingest([path], options, LIMITS, target)
    except BadRows as bad:
        assert isinstance(expected, Expected) and not (options.drop and expected.pairs)
        check_errors(bad.errors, expected.errors)
        assert bad.good == len(expected.pairs) and bad.good + bad.errors.total == len(expected.rows)
        check_sentence(str(bad), path)
        check_file(upload, expected)
        return "wrong rows"
    except InvalidInput as refusal:
        assert isinstance(expected, InvalidInput) or not (expected.pairs or expected.errors)
        check_sentence(str(refusal), path)
        return "refused"
    assert isinstance(expected, Expected)
    check_errors(made.errors, expected.errors)
    assert not expected.errors or options.drop
    assert made.rows == len(expected.pairs) and made.rows + made.errors.total == len(expected.rows)
    rows = stored(target)
    assert rows == [json_able(row) for _, row in expected.pairs]
    assert made.turns == sum(len(row.conversation) for row in rows) and made.notices == expected.notices
    check_file(upload, expected)
    return "left out" if made.errors.total else "whole"


def json_able(row: StoredRow) -> StoredRow:
    return row._replace(extra=orjson.loads(orjson.dumps(row.extra)))


def check_sentence(sentence: str, path: Path) -> None:
    """It is one for people: with an end, without the place on this machine, and with something to do."""
    assert sentence.endswith(".") and len(sentence) < 1_000 and str(path.parent) not in sentence, sentence
    assert re.search(r"[;:.] \w", sentence) and not UNSEEN.search(sentence), sentence


def check_errors(log: ErrorLog, expected: list[RowError]) -> None:
    def place(error: RowError) -> tuple[str, int, str, str, str]:
        return error.file, error.line, error.kind, error.field, error.problem

    assert log.total == len(expected) == len(log.kept) == sum(log.kinds.values())
    assert sorted(map(place, log.kept)) == sorted(map(place, expected))
    for error in log.kept:
        assert error.line >= 1 and error.file.startswith("case.") and error.problem and error.fix
        assert error.kind in KINDS or error.kind in READING, error.kind
        assert error.field or error.kind in READING or error.kind in ("not an object", "extra value"), error
        assert len(error.excerpt) <= RowError.EXCERPT and not UNSEEN.search(error.excerpt)
    if log.total:
        table = list(csv.reader(io.StringIO(log.as_csv().encode("utf-8-sig").decode("utf-8-sig"), newline="")))
        assert table[0] == list(COLUMNS) and len(table) == log.total + 1
        assert not [cell for row in table for cell in row if cell.startswith(FORMULA)]


# Nothing is lost, invented or changed untold


def check_file(upload: Upload, expected: Expected) -> None:
    kind = upload.kind
    untold = not any(told in notice for notice in expected.notices for told in TOLD)
    for source, row in expected.pairs:
        check_conversation(row.conversation)
        if untold:
            check_texts(source.value, without_added(row))
    recoded = any(RECODED in notice for notice in expected.notices)
    for file, text in upload.texts.items():
        rows = [row for row in expected.rows if row.file == file]
        check_untouched(rows, expected, file, upload, recoded)
        if kind in ("jsonl", "gz", "zip") and file.endswith((".jsonl", ".jsonl.gz")) and not recoded:
            check_lines(rows, text)
        if kind in ("array", "line", "object") and not recoded:
            check_array(rows, text)
    if kind in PROSE and not expected.errors and not recoded:
        check_prose(upload.data, expected)
    if not upload.texts and kind in ("gz", "zip"):
        for _, row in expected.pairs:
            assert key_of(without_added(row)) in valid_rows(), row


def check_conversation(conversation: list[dict[str, str]]) -> None:
    roles = [turn["role"] for turn in conversation]
    for turn in conversation:
        assert set(turn) == {"role", "content"} and turn["content"].encode() and turn["content"] == turn["content"].strip()
    if roles != ["text"]:
        rest = roles[1:] if roles[0] == "system" else roles
        assert rest and len(rest) % 2 == 0 and rest == ["user", "assistant"] * (len(rest) // 2)


def without_added(row: StoredRow) -> StoredRow:
    """Without the system turn that the options put before it."""
    first = row.conversation[0]
    return row._replace(conversation=row.conversation[1:]) if first == {"role": "system", "content": SYSTEM} else row


def texts_of(value: object, key: str = "") -> Iterator[str]:
    if isinstance(value, str):
        if key not in ("role", "from", "type"):
            yield value.strip()
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from texts_of(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)


def check_texts(value: Any, row: StoredRow) -> None:
    """Every text of the row is stored, and every word that is stored stands in the row."""
    there = list(texts_of(value))
    kept = "\n".join([turn["content"] for turn in row.conversation] + list(texts_of(row.extra)))
    assert all(text in kept for text in there), (value, row)
    whole = "\n".join(there)
    words = " ".join(turn["content"] for turn in row.conversation).split()
    assert all(word in whole or word == "Summarise:" for word in words), (value, row)
    if isinstance(value, dict):
        for name, item in row.extra.items():
            original = value[name] if name in value else value[name.rstrip("_")]
            assert orjson.dumps(original, default=str) == orjson.dumps(item), (name, value, row)


@cache
def valid_rows() -> frozenset[bytes]:
    """What the valid rows of all forms become, without their places."""
    made = set()
    for form, values in FORMS.items():
        for source in (values, cells_of(values)):
            reader = RowReader(choose_form(source, form))
            made |= {key_of(StoredRow(*reader(SourceRow(1, value)))) for value in source}
    return frozenset(made)


def cells_of(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    text = as_text("csv", values).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def key_of(row: StoredRow) -> bytes:
    return orjson.dumps([row.conversation, row.extra], option=orjson.OPT_SORT_KEYS)


@cache
def valid_blocks(kind: str, form: str) -> dict[bytes, tuple[str, StoredRow]]:
    """The lines of each row of a valid file, and what they become."""
    inner = INNER.get(kind, kind)
    text = as_text(inner, FORMS[form])
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), Upload(f"case.{'json' if inner in ('array', 'line', 'object') else inner}", text))
        expected = expect(path, Options())
    assert not expected.errors and len(expected.pairs) == len(FORMS[form])
    blocks = dict(zip(blocks_of(expected.rows, text, inner), (row for _, row in expected.pairs), strict=True))
    return {block: (expected.forms[path.name], row) for block, row in blocks.items()} if len(blocks) == len(expected.pairs) else {}


def blocks_of(rows: list[SourceRow | RowError], text: bytes, kind: str) -> list[bytes]:
    """The lines from that of each row up to that of the next; where several start on one line, these have none."""
    lines = re.split(rb"\r\n|\r|\n" if kind in ("csv", "tsv") else rb"\n", text)
    starts = [row.line for row in rows]
    blocks = []
    for start, end in zip(starts, [*starts[1:], len(lines) + 1], strict=True):
        block = lines[start - 1 : end - 1]
        while block and block[-1] in (b"", b"]", b"]}"):
            block.pop()
        whole = b"\n".join(block)
        blocks.append(whole.removesuffix(b",") if kind in ("array", "object") else whole)
    return blocks


def check_untouched(rows: list[SourceRow | RowError], expected: Expected, file: str, upload: Upload, recoded: bool) -> None:
    """A row whose lines are those of a valid file is what it is there, if the file's form, header and encoding are."""
    text, kind = upload.texts[file], upload.kind
    if kind == "line" or file not in expected.forms or file.endswith("b.csv"):
        return
    if kind in ("csv", "tsv") and text.partition(b"\n")[0] != as_text(kind, FORMS[upload.form]).partition(b"\n")[0]:
        return
    valid = valid_blocks(kind, upload.form)
    by_row = {id(source): row for source, row in expected.pairs}
    for block, row in zip(blocks_of(rows, text, INNER.get(kind, kind)), rows, strict=True):
        if block not in valid or (recoded and not block.isascii()):
            continue
        if isinstance(row, RowError) and kind in ("array", "object"):  # nobody knows what stands behind a broken bracket
            continue
        form, same = valid[block]
        if form == expected.forms[file]:
            assert id(row) in by_row and key_of(without_added(by_row[id(row)])) == key_of(same), (block, row, by_row.get(id(row)))


def python_json(text: bytes) -> Any:
    """What Python's parser makes of it; raises ValueError for what JSON does not have."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    def finite(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(digits) or value

    def whole(digits: str) -> float:
        return int(digits) if -(2**63) <= int(digits) < 2**64 else finite(digits)

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        orjson.dumps(pairs)  # no half characters, also not in what a later key of the same name takes the place of
        return dict(pairs)

    value = json.loads(text.decode(), parse_constant=refuse, parse_float=finite, parse_int=whole, object_pairs_hook=checked)
    orjson.dumps(value)
    return value


def check_lines(rows: list[SourceRow | RowError], text: bytes) -> None:
    by_line = {row.line: row for row in rows}
    if len(by_line) != len(rows) or (rows and isinstance(rows[-1], RowError) and rows[-1].ends):
        return
    for number, line in enumerate(text.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            value = python_json(line)
        except (ValueError, RecursionError, TypeError):
            continue
        row = by_line.get(number)
        if row is None:  # JSON over several lines
            return
        assert isinstance(row, SourceRow) and row.value == value, (line, row)


def check_array(rows: list[SourceRow | RowError], text: bytes) -> None:
    try:
        value = python_json(text.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError, TypeError):
        return
    found = [row.value for row in rows if isinstance(row, SourceRow)]
    if isinstance(value, list):
        assert found == value
    elif isinstance(value, dict) and isinstance(value.get("data"), list) and value["data"] and isinstance(value["data"][0], dict):
        assert found == value["data"] or "role" in value["data"][0]


def check_prose(data: bytes, expected: Expected) -> None:
    text = data.decode("utf-8-sig", "replace")
    if "\ufffd" not in text:
        assert "".join("".join(row.conversation[0]["content"].split()) for _, row in expected.pairs) == "".join(text.split())


# The cases


def run_case(folder: Path, kind: str, number: int) -> str:
    draw = random.Random(f"{SEED}:{kind}:{number}")
    upload = Source(draw).broken(kind)
    options = Options(drop=draw.random() < 0.7, system=SYSTEM if draw.random() < 0.05 else "")
    path = write(folder, upload)
    try:
        outcome = check(path, upload, options)
    except Exception as error:
        raise AssertionError(f"case {kind} {number} of seed {SEED}: {upload.data[:1000]!r}") from error
    path.unlink()
    return outcome


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: a case is a few hundred bytes."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        yield Path(name)


@pytest.mark.parametrize("kind", SHARES)
def test_a_broken_upload_gives_a_set_or_a_sentence_and_changes_no_row(folder: Path, kind: str) -> None:
    cases = CASES * SHARES[kind] // sum(SHARES.values())
    outcomes = Counter(run_case(folder, kind, number) for number in range(cases))
    print(json.dumps({"kind": kind, "cases": cases, **outcomes}))
    assert sum(outcomes.values()) == cases and len(outcomes) >= (1 if kind in PROSE else 3)


@pytest.mark.parametrize("kind", SLOW)
def test_a_broken_table_gives_a_set_or_a_sentence(folder: Path, kind: str) -> None:
    """A process of its own reads these, so they are few. What has a checksum cannot change unseen."""
    whole = table(folder, kind)
    assert check(write(folder, whole), whole, Options()) == "whole"
    outcomes = Counter[str]()
    for number in range(SLOW_CASES):
        draw = random.Random(f"{SEED}:{kind}:{number}")
        broken = Upload(whole.name, Source(draw).bytes_of(whole.data), kind=kind)
        try:
            outcomes[check(write(folder, broken), broken, Options(drop=draw.random() < 0.7))] += 1
        except Exception as error:
            raise AssertionError(f"case {kind} {number} of seed {SEED}") from error
    print(json.dumps({"kind": kind, "cases": SLOW_CASES, **outcomes}))
    assert sum(outcomes.values()) == SLOW_CASES


def test_a_changed_byte_in_a_table_is_found_by_its_checksum(folder: Path) -> None:
    whole = table(folder, "parquet")
    at = whole.data.index(b"Hello 1")
    changed = Upload(whole.name, whole.data[:at] + b"J" + whole.data[at + 1 :], kind="parquet")
    assert check(write(folder, changed), changed, Options()) == "refused"


def table(folder: Path, kind: str) -> Upload:
    rows = FORMS["question-answer"]
    path = folder / f"case.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(FORMS["conversations"]), path, write_page_checksum=True, compression="none")
    else:
        write_xlsx(path, dict(enumerate([list(rows[0]), *(list(row.values()) for row in rows)], 1)))
    return Upload(path.name, path.read_bytes(), kind=kind)


@pytest.mark.parametrize("kind", ["jsonl", "array", "csv", "zip"])
@pytest.mark.parametrize("fault", ["lost", "changed", "invented", "moved", "uncounted"])
def test_these_checks_find_a_pipeline_that_is_wrong(folder: Path, kind: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fuzz is for: of each fault that it should find, some case tells."""
    spoil(monkeypatch, fault)
    with pytest.raises(AssertionError, match=f"case {kind}"):
        for number in range(300):
            run_case(folder, kind, number)


def spoil(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    add = RowWriter.add

    def wrong_add(self: RowWriter, conversation: list[dict[str, str]], extra: dict[str, Any], line: int, file: str) -> None:
        if fault == "lost" and line == 3:
            return
        if fault == "changed":
            conversation = [{**turn, "content": turn["content"].replace("ü", "u")} for turn in conversation]
            extra = {}
        add(self, conversation, extra, line + (fault == "moved"), file)
        if fault == "invented" and line == 2:
            add(self, conversation, extra, line, file)

    monkeypatch.setattr(RowWriter, "add", wrong_add)
    if fault == "uncounted":
        monkeypatch.setattr(ErrorLog, "add", lambda log, error: None)
