"""Chats read in blocks of lines: what comes out is what comes out row by row, errors and hash included."""

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import PropertyMock, patch

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from studio.datasets import blocks
from studio.datasets.blocks import PlainBlock, parse_block, plain_blocks
from studio.datasets.errors import BadRows
from studio.datasets.forms import Fit, RowReader
from studio.datasets.ingest import Options, ingest
from studio.datasets.reading import Limits, LineBlock, json_lines, read_blocks
from studio.datasets.reading.text import ENOUGH, _goes_on_as_utf8
from studio.datasets.rows import RowError, SourceRow
from studio.datasets.store import RowStore, RowWriter

READER = RowReader(Fit("messages", {"messages": "messages"}, 1.0))
TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
PLAIN = json.dumps({"messages": TURNS}).encode()
TOKENS = [
    *(b'{|}|[|]|"|,|:|null|true|1|-0.5|NaN|{}|[]|""|" "|}{|} null {|}\n{|}\r\n{|\n|\r|\r\n|\n\n| |\t|\x0b|\x1f|\x7f'.split(b"|")),
    *(rb"\n|\u0000|\u0020|\u00a0|\u3000|\ud800|\udc00|\ud83d\ude00|\x|\/|\\|\"|\u12".split(b"|")),
    *(b'"role"|"content"|"role":"user"|"content":"b"|"messages"|"messages":[]|"id":1|system|user|assistant'.split(b"|")),
    *(character.encode() for character in "ü\u2028\xa0😀\ufeff"),
    *(b'"role": "system"', b'{"role": "user", "content": "x"}', b', "name": null', b', "weight": 0', b"/* */", PLAIN, PLAIN + b"\n"),
]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: text + "x") | st.sampled_from(
    [" a ", "\xa0b\u3000", "c\x1c", "ü😀"]
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Some plain lines, as several programs write JSON."""
    written = []
    for _ in range(draw(st.integers(1, 4))):
        system = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
        pairs = [{"role": role, "content": draw(TEXTS)} for _ in range(draw(st.integers(1, 3))) for role in ("user", "assistant")]
        spaces = draw(st.sampled_from([None, (",", ":"), (" , ", " : ")]))
        text = json.dumps({"messages": system + pairs}, ensure_ascii=draw(st.booleans()), separators=spaces, sort_keys=draw(st.booleans()))
        written.append(text.encode())
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))
    return end.join(written) + draw(st.sampled_from([b"", end]))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Plain lines in which one to three places were changed; still UTF-8 without NUL, as `examine` sees to."""
    data = draw(lines())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.sampled_from([0, 0, 1, 1, 2, 7, 40]))
        data = data[:at] + draw(st.sampled_from([b"", *TOKENS])) + data[at + gone :]
    return data.decode("utf-8", "replace").encode()


def row_by_row(data: bytes) -> list[list[dict[str, str]]] | None:
    """The conversations, None where one line is blank or anything on it is wrong, adapted or beside the conversation."""
    rows = list(LineBlock(1, data, "a.jsonl").rows())
    reader = RowReader(Fit("messages", {"messages": "messages"}, 1.0))
    found = []
    for row in rows:
        if isinstance(row, RowError):
            return None
        try:
            conversation, extra = reader(row)
        except RowError:
            return None
        if extra:
            return None
        found.append(conversation)
    return None if reader.notices or [row.line for row in rows] != list(range(1, len(rows) + 1)) else found


@settings(max_examples=150, deadline=None)
@given(lines())
def test_plain_lines_go_the_quick_way_and_give_the_same(data: bytes) -> None:
    messages = parse_block(data, "messages")
    assert messages is not None and messages.to_pylist() == row_by_row(data)
    messages.validate(full=True)


def check_mutated(data: bytes) -> None:
    """The quick way refuses, or gives what the other gives."""
    messages = parse_block(data, "messages")
    if messages is not None:
        messages.validate(full=True)
        assert messages.to_pylist() == row_by_row(data)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_changed_lines_give_the_same_or_are_left_to_the_rows(data: bytes) -> None:
    check_mutated(data)


def content(text: bytes) -> bytes:
    return PLAIN.replace(b'"Hello"', text)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n", b"null", b"null\n" + PLAIN, b"[]", b"{", b"{}", b"\n" + PLAIN, PLAIN + b"\n\n", PLAIN + b"\n ", PLAIN + b"\n\n" + PLAIN,
        PLAIN + PLAIN, PLAIN + PLAIN + b"\n\n", PLAIN + b" null", PLAIN + b" null " + PLAIN, PLAIN + b"\r" + PLAIN, PLAIN + b"x",
        PLAIN.replace(b": [", b":\n[") + b"\n" + PLAIN + PLAIN, PLAIN[:-1], PLAIN[:-1] + b', "id": 1}', PLAIN[:-1] + b', "messages": []}',
        content(b"1"), content(b"null"), content(b"true"), content(b'["a"]'), content(b'""'), content(b'" \xc2\xa0"'), content(b'"a\tb"'),
        content(rb'"\ud800"'), content(rb'"\udc00"'), content(rb'"\x"'), content(b'"a", "content": "b"'), content(b'"a", "name": null'),
        b'{"messages": null}', b'{"messages": []}', b'{"messages": [null]}', b'{"messages": [{}]}', b'{"messages": {}}',
        *(json.dumps({"messages": turns}).encode() for turns in (TURNS[:1], TURNS[1:], TURNS[::-1], [*TURNS, TURNS[0]], TURNS[:1] * 2)),
        *(PLAIN.replace(b'"user"', role) for role in (b'"User"', b'"system"', b'"developer"', b'"text"', b"null", b'""', b'"assistant"')),
        json.dumps({"messages": [TURNS[0], {"role": "system", "content": "x"}, TURNS[1]]}).encode(),
        json.dumps({"messages": [{"role": "system", "content": "x"}, TURNS[1]]}).encode(),
        json.dumps({"messages": [{"role": "text", "content": "x"}]}).encode(),
        PLAIN + b"\n" + json.dumps({"messages": TURNS + TURNS[1:]}).encode() + b"\n" + json.dumps({"messages": TURNS[:1] + TURNS}).encode(),
    ],
)  # fmt: skip
def test_what_is_out_of_the_ordinary_is_left_to_the_rows(data: bytes) -> None:
    assert parse_block(data, "messages") is None


def test_arrow_cuts_off_the_blanks_that_python_does() -> None:
    codes = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    kept = pc.utf8_trim_whitespace(pa.array(codes)).to_pylist()
    assert [code for code, rest in zip(codes, kept, strict=True) if not rest] == [code for code in codes if code.isspace()]


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.sampled_from("aé€😀"), min_size=30, max_size=200).map(str.encode),
    st.binary(max_size=3) | st.sampled_from([b"", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xf0\x9f"]),
    st.integers(0, 500),
    st.integers(64, 90),
)
def test_arrow_takes_for_utf8_what_python_does(text: bytes, odd: bytes, at: int, size: int) -> None:
    data = text[:at] + odd + text[at:]
    found = [codecs.getincrementaldecoder("utf-8")() for _ in range(2)]
    for piece in (data[i : i + size] for i in range(0, len(data), size)):
        try:
            found[1].decode(piece)
        except UnicodeDecodeError:
            state = found[0].getstate()
            assert not _goes_on_as_utf8(found[0], piece) and found[0].getstate() == state
            return
        if not _goes_on_as_utf8(found[0], piece):
            assert len(piece) < ENOUGH
            found[0].decode(piece)
        assert found[0].getstate() == found[1].getstate()


def written(path: Path, target: Path, options: Options, quick: bool) -> tuple[object, ...]:
    """Everything that ingest gives and stores; with and without the quick way."""
    column = "messages" if quick and not options.system else ""
    with patch.object(RowReader, "plain_column", PropertyMock(return_value=column)):
        try:
            found = ingest([path], options, Limits(2**30), target)
        except BadRows as error:
            return str(error), error.errors.table()
    parts = (found.form, found.rows, found.turns, found.content_hash, found.notices, found.errors.total, found.errors.table())
    return (*parts, list(RowStore(target)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(lines() | mutated(), min_size=1, max_size=8), st.integers(1, 400), st.booleans())
def test_ingest_gives_the_same_both_ways(tmp_path: Path, pieces: list[bytes], size: int, drop: bool) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([PLAIN, *pieces]))
    options = Options(form="messages", drop=drop)
    with patch.multiple(json_lines, BLOCK=size, FIRST_BLOCK=size), patch("studio.datasets.ingest.LOOKED_AT", 2):
        assert written(path, tmp_path / "quick.arrow", options, True) == written(path, tmp_path / "slow.arrow", options, False)


def test_one_wrong_line_sends_only_its_block_to_the_rows(tmp_path: Path) -> None:
    good = [json.dumps({"messages": [{"role": "user", "content": f" Number {n} "}, TURNS[1]]}) for n in range(900)]
    good[600] = '{"messages": "none"}'
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(good), encoding="utf-8")
    with patch.multiple(json_lines, BLOCK=10_000, FIRST_BLOCK=10_000):
        items = list(plain_blocks(read_blocks([path], Limits(2**20), []), "messages"))
        found = ingest([path], Options(drop=True), Limits(2**20), tmp_path / "rows.arrow")
    assert sum(isinstance(item, PlainBlock) for item in items) > 5 and any(isinstance(item, SourceRow) for item in items)
    assert [error.line for error in found.errors.kept] == [601] and found.rows == 899
    assert [row.line for row in RowStore(tmp_path / "rows.arrow")] == [n for n in range(1, 901) if n != 601]
    assert all(row.conversation[0]["content"] == f"Number {row.line - 1}" for row in RowStore(tmp_path / "rows.arrow"))


def test_a_system_prompt_for_all_rows_is_put_before_each(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes((PLAIN + b"\n") * 3000)
    with patch.object(blocks, "parse_block", side_effect=AssertionError):
        ingest([path], Options(system="Be kind."), Limits(2**30), tmp_path / "rows.arrow")
    assert {row.conversation[0]["content"] for row in RowStore(tmp_path / "rows.arrow")} == {"Be kind."}


Rows = list[tuple[list[dict[str, str]], dict[str, object]]]
CONVERSATIONS = st.lists(TEXTS, min_size=1, max_size=3).map(
    lambda texts: [{"role": role, "content": text} for text in texts for role in ("user", "assistant")]
)


def hashed(path: Path, parts: Sequence[Rows], in_blocks: bool) -> str:
    with RowWriter(path) as writer:
        for part in parts:
            if in_blocks and part and not any(extra for _, extra in part):
                data = b"".join(json.dumps({"messages": conversation}).encode() + b"\n" for conversation, _ in part)
                writer.add_block(PlainBlock(parse_block(data, "messages"), 7, "b.jsonl"))
                continue
            for conversation, extra in part:
                writer.add(conversation, extra, 1, "a.jsonl")
            if in_blocks:
                writer.flush()
    return writer.content_hash


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.tuples(CONVERSATIONS, st.sampled_from([{}, {}, {"id": 1}, {"id": "ü"}])), max_size=4), max_size=4))
@example([])
def test_the_hash_does_not_tell_how_rows_were_cut_into_batches(tmp_path: Path, parts: list[Rows]) -> None:
    stripped = [[([{**turn, "content": turn["content"].strip()} for turn in rows], extra) for rows, extra in part] for part in parts]
    together = [[row for part in stripped for row in part]]
    assert hashed(tmp_path / "a.arrow", stripped, True) == hashed(tmp_path / "b.arrow", together, False)


def test_the_hash_tells_rows_apart(tmp_path: Path) -> None:
    user, answer = TURNS
    sets: list[Rows] = [
        [(TURNS, {})],
        [(TURNS, {}), (TURNS, {})],
        [(TURNS * 2, {})],
        [([{**user, "content": "HelloG"}, {**answer, "content": "ood day"}], {})],
        [([{**user, "role": "text"}, answer], {})],
        [(TURNS, {"a": 1})],
        [(TURNS, {"a": 1}), (TURNS, {})],
        [(TURNS, {}), (TURNS, {"a": 1})],
        [],
    ]
    assert len({hashed(tmp_path / "a.arrow", [rows], False) for rows in sets}) == len(sets)
