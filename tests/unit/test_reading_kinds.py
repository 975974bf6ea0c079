"""Every kind of file: its rows, their lines, what is told about them, and files that come back as they were written."""

import csv
import datetime
import gzip
import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.datasets.reading import Limits, read_files
from studio.datasets.reading import json_scanner as scanner_module
from studio.datasets.reading.passages import PASSAGE_CHARACTERS
from studio.datasets.rows import RowError, SourceRow
from studio.errors import InvalidInput
from tests.workbooks import write_ods, write_xlsx

BIG = Limits(1 << 30)


def read(path: Path, limits: Limits = BIG) -> tuple[list[SourceRow | RowError], list[str]]:
    notices: list[str] = []
    return list(read_files([path], limits, notices)), notices


def values(path: Path) -> list[tuple[int, Any]]:
    rows, _ = read(path)
    assert not [row for row in rows if isinstance(row, RowError)]
    return [(row.line, row.value) for row in rows if isinstance(row, SourceRow)]


def refusal(path: Path, limits: Limits = BIG) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(path, limits)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


# JSON


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"version": 1,\n "data": [{"a": 1},\n\n {"a": 2}], "n": {"x": [1, {"y": 2}]}}', [(2, {"a": 1}), (4, {"a": 2})]),
        ('{"messages": [{"role": "user", "content": "x"}]}', [(1, {"messages": [{"role": "user", "content": "x"}]})]),
        ('{"a": 1}\n\n{"a": 2}', [(1, {"a": 1}), (3, {"a": 2})]),
        ('{\n"a": 1}\n{"a":\n2} {"a": 3}', [(1, {"a": 1}), (3, {"a": 2}), (4, {"a": 3})]),
        ('[{"a": 1, "a": 2}, "x", null, 1.5, [1]]', [(1, {"a": 2}), (1, "x"), (1, None), (1, 1.5), (1, [1])]),
        ('[{"a": "]},{[\\"\\\\"}\n]', [(1, {"a": ']},{["\\'})]),
        ("[]", []),
    ],
)
def test_json_of_any_shape(tmp_path: Path, text: str, expected: list[tuple[int, Any]]) -> None:
    assert values(write(tmp_path, "a.json", text)) == expected


def test_an_item_that_is_wrong_inside_does_not_end_the_array(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "a.json", '[{"a": 1},\n {"ä": 1, "b":\n  oops}, {"a": 3}]'))
    assert [(row.line, isinstance(row, RowError)) for row in rows] == [(1, False), (3, True), (3, False)]
    error = rows[1]
    assert isinstance(error, RowError) and (error.column, error.excerpt, error.ends) == (3, "  oops}", False)


def test_the_column_counts_characters_from_the_start_of_the_line(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "a.json", '[\n  "äöü", {"a": nope}]'))
    assert isinstance(rows[1], RowError) and (rows[1].line, rows[1].column) == (2, 16)


@pytest.mark.parametrize(
    ("text", "lines", "last"),
    [
        ('[{"a": "x},\n{"a": "y"}]', [1], "a quote is missing"),
        ('[{"a": [1}, {"a": 2}]', [1], "not valid JSON"),
        ('{"data": [{"a": 1},\n{"a": 2', [1, 2], "not valid JSON"),
        ('{"data": [{"a": 1}]\n"b": 2}', [1, 2], "a comma is missing"),
        ('{"data": [{"a": 1}]}\nmore', [1, 2], "text after the closing bracket"),
        ('{"a": 1}\nmore and more', [1, 2], "not valid JSON"),
    ],
)
def test_what_cannot_be_followed_ends_the_file_on_the_right_line(tmp_path: Path, text: str, lines: list[int], last: str) -> None:
    rows, _ = read(write(tmp_path, "a.json", text))
    assert [row.line for row in rows] == lines
    assert isinstance(rows[-1], RowError) and last in str(rows[-1]) and rows[-1].kind == "not JSON"
    assert rows[-1].ends or text.startswith('{"a"')


def test_a_broken_line_of_json_lines_in_a_json_file_is_one_error(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "a.json", '{"a": \n{"a": 2}\n'))
    assert [(row.line, isinstance(row, RowError)) for row in rows] == [(1, True), (2, False)]


def test_several_lists_are_told_apart_by_their_names_or_refused(tmp_path: Path) -> None:
    rows, notices = read(write(tmp_path, "a.json", '{"test": [{"a": 1}], "train": [{"a": 2}]}'))
    assert [row.value for row in rows if isinstance(row, SourceRow)] == [{"a": 2}] and "'train' were read and 'test' left out" in notices[0]
    assert "several lists ('x', 'y')" in refusal(write(tmp_path, "b.json", '{"x": [{"a": 1}], "y": [{"a": 2}]}'))


def test_an_array_that_calls_itself_json_lines_is_read_and_told(tmp_path: Path) -> None:
    for text in ('[\n{"a": 1},\n{"a": 2}]', '[{"a": 1},\n\n{"a": 2}]'):
        rows, notices = read(write(tmp_path, "a.jsonl", text))
        assert [row.line for row in rows] == [text[: text.index('{"a": 1}')].count("\n") + 1, 3] and "not JSON Lines" in notices[0]


def test_items_lie_across_the_pieces_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"text": 'ä\\"]}{[' * (n % 5), "n": [{"x": [[n]]}, n]} for n in range(60)]
    text = (
        '{"k": "'
        + "z" * 99
        + '", "data": [\n'
        + ",\n".join(json.dumps(item, ensure_ascii=n % 2 == 0) for n, item in enumerate(items))
        + "\n]}"
    )
    path = write(tmp_path, "a.json", text)
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr(scanner_module, "CHUNK", size)
        assert values(path) == [(number, item) for number, item in enumerate(items, 2)]


def test_a_row_without_an_end_is_told_where_it_starts(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "a.json", '[1,\n["' + "x" * 3_000_000 + '"]]'), Limits(1 << 30, row_bytes=1 << 20))
    assert isinstance(rows[1], RowError) and rows[1].line == 2 and rows[1].ends and "longer than a row may be" in str(rows[1])


# CSV


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a;b\n1,5;2\n2,5;3\n", [(2, {"a": "1,5", "b": "2"}), (3, {"a": "2,5", "b": "3"})]),
        ("a|b\nx, y, z|2\n", [(2, {"a": "x, y, z", "b": "2"})]),
        ("What, when, why;b\nx;2\ny, z;3\n", [(2, {"What, when, why": "x", "b": "2"}), (3, {"What, when, why": "y, z", "b": "3"})]),
        ('"a,b";c\n"x;y";z\n', [(2, {"a,b": "x;y", "c": "z"})]),
        ("sep=|\na|b\n1|2\n", [(3, {"a": "1", "b": "2"})]),
        ('\n\n a , b \n"x\n\ny",z\n\n  \n1,2', [(4, {"a": "x\n\ny", "b": "z"}), (9, {"a": "1", "b": "2"})]),
        ("a,b\r1,2\r3,4\r", [(2, {"a": "1", "b": "2"}), (3, {"a": "3", "b": "4"})]),
        ("text\nno delimiter\nat all", [(2, {"text": "no delimiter"}), (3, {"text": "at all"})]),
    ],
)
def test_csv_as_people_have_it(tmp_path: Path, text: str, expected: list[tuple[int, Any]]) -> None:
    assert values(write(tmp_path, "a.csv", text)) == expected


def test_tabs_are_tried_first_in_a_tsv(tmp_path: Path) -> None:
    assert values(write(tmp_path, "a.tsv", "a,x\tb,x\n1,1\t2,2\n")) == [(2, {"a,x": "1,1", "b,x": "2,2"})]


def test_a_stray_quote_costs_its_row_and_one_without_end_the_rest(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "a.csv", 'a,b\n"x"y,1\nok,2\n1\n"open,3\n4,5\n'))
    assert [(row.line, getattr(row, "kind", ""), getattr(row, "ends", False)) for row in rows] == [
        (2, "broken CSV", False),
        (3, "", False),
        (4, "cells", False),
        (5, "broken CSV", True),
    ]
    assert isinstance(rows[0], RowError) and rows[0].excerpt == '"x"y,1'


def test_a_column_without_a_name_gets_its_number(tmp_path: Path) -> None:
    rows, notices = read(write(tmp_path, "a.csv", ",text\n0,x\n"))
    assert (
        isinstance(rows[0], SourceRow) and rows[0].value == {"column 1": "0", "text": "x"} and "without a name for column 1" in notices[0]
    )


# Text and Markdown


def test_paragraphs_are_joined_up_to_a_length_and_know_their_line(tmp_path: Path) -> None:
    short, long = "A line.\nAnother.", "word " * 300 + "end."
    found = values(write(tmp_path, "a.txt", f"\n{short}\n\n\n{short}\n\n{long}\n\n{short}\n"))
    assert found == [(2, {"text": f"{short}\n\n\n{short}\n\n{long}\n\n{short}"})]
    found = values(write(tmp_path, "a.txt", f"{long}\r\n \r\n{long}\r\n\r\n{short}"))
    assert found == [(1, {"text": long}), (3, {"text": f"{long}\n\n{short}"})]


def test_a_text_without_blank_lines_is_cut_at_lines_sentences_and_words(tmp_path: Path) -> None:
    lines = [f"Line {n} says something." for n in range(500)]
    found = values(write(tmp_path, "a.txt", "\n".join(lines)))
    assert "\n".join(row["text"] for _, row in found) == "\n".join(lines)
    assert all(row["text"].split("\n")[0] == lines[line - 1] for line, row in found)
    sentences = "This is a sentence. " * 500
    found = values(write(tmp_path, "a.txt", "First.\n" + sentences + "\n" + "x" * 5000))
    assert all(len(row["text"]) <= PASSAGE_CHARACTERS and row["text"][-1] in ".x" for _, row in found)
    assert [line for line, _ in found] == [1, *[2] * (len(found) - 4), 3, 3, 3]
    assert "".join("".join(row["text"].split()) for _, row in found) == "First." + "".join(sentences.split()) + "x" * 5000


def test_markdown_begins_anew_at_headings_but_not_in_code(tmp_path: Path) -> None:
    text = "# One\ntext\n\nmore\n\n## Two\n```\n# no heading\n\nx\n```\n#hashtag\n# Three\n"
    assert values(write(tmp_path, "a.md", text)) == [
        (1, {"text": "# One\ntext\n\nmore"}),
        (6, {"text": "## Two\n```\n# no heading\n\nx\n```\n#hashtag"}),
        (13, {"text": "# Three"}),
    ]


# YAML


def test_yaml_gives_rows_with_their_lines(tmp_path: Path) -> None:
    text = "categories:\n- talk\nconversations:\n- - Yes\n  - 'No'\n  - 2001-01-01\n- - What?\n  - >\n    two\n    lines\n"
    assert values(write(tmp_path, "a.yml", text)) == [
        (4, {"conversation": ["Yes", "No", "2001-01-01"]}),
        (7, {"conversation": ["What?", "two lines\n"]}),
    ]
    text = "- {prompt: yes, n: 1, x: 1.5, t: true, z: ~}\n- prompt: &a hi\n  again: *a\n  '1': '2'\n"
    assert values(write(tmp_path, "a.yaml", text)) == [
        (1, {"prompt": "yes", "n": 1, "x": 1.5, "t": True, "z": None}),
        (2, {"prompt": "hi", "again": "hi", "1": "2"}),
    ]
    assert values(write(tmp_path, "a.yaml", "a: 1\n---\na: 2\n")) == [(1, {"a": 1}), (3, {"a": 2})]


def test_broken_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "a.yaml", "- a: 1\n- b: [1\n- c: 'x\n"))
    assert len(rows) == 1 and isinstance(rows[0], RowError) and rows[0].ends and rows[0].kind == "not YAML"
    rows, _ = read(write(tmp_path, "a.yaml", "- a: 1\n- b: c: d\n"))
    assert isinstance(rows[0], RowError) and (rows[0].line, rows[0].excerpt) == (2, "- b: c: d")
    rows, _ = read(write(tmp_path, "a.yaml", "- a: 1\n- b: \x01\n"))
    assert isinstance(rows[0], RowError) and rows[0].line == 2


# Tables


def test_a_workbook_gives_text_numbers_booleans_and_dates(tmp_path: Path) -> None:
    rows = {3: ["a", "n", "t", "d"], 5: ["x", 1, True, 43831 + 0j], 6: ["2.50", 2.5, False, None], 9: [None, 3, None, None]}
    found = values(write_xlsx(tmp_path / "a.xlsx", rows))
    assert [line for line, _ in found] == [5, 6, 9]
    assert found[0][1] == {"a": "x", "n": 1, "t": True, "d": "2020-01-01"} and found[1][1] == {"a": "2.50", "n": 2.5, "t": False, "d": None}


def test_a_text_far_down_in_a_column_of_numbers_is_not_lost(tmp_path: Path) -> None:
    rows: dict[int, list[object]] = {1: ["a"]} | {n: [n] for n in range(2, 1502)} | {1502: ["late"]}
    found = values(write_xlsx(tmp_path / "a.xlsx", rows))
    assert found[-1] == (1502, {"a": "late"}) and len(found) == 1501


def test_other_sheets_are_told(tmp_path: Path) -> None:
    rows, notices = read(write_xlsx(tmp_path / "a.xlsx", {1: ["a"], 2: ["x"]}, ("First", "Second")))
    assert len(rows) == 1 and "has 2 sheets; 'First' was read and 'Second' left out" in notices[0]


def test_an_opendocument_table_is_read(tmp_path: Path) -> None:
    assert values(write_ods(tmp_path / "a.ods", [["a", "b"], ["x", "y"]])) == [(2, {"a": "x", "b": "y"})]


def test_headers_of_tables_are_checked_too(tmp_path: Path) -> None:
    assert "names the column 'a' twice in its header, line 2" in refusal(write_xlsx(tmp_path / "a.xlsx", {2: ["a", "a"], 3: [1, 2]}))
    assert "3 columns and the limit is 2" in refusal(write_xlsx(tmp_path / "a.xlsx", {2: ["a", "b", "c"]}), Limits(1 << 30, columns=2))
    pq.write_table(pa.table({"a": [1], "b": [2], "c": [3]}), tmp_path / "a.parquet")
    assert "3 columns and the limit is 2" in refusal(tmp_path / "a.parquet", Limits(1 << 30, columns=2))


def test_parquet_gives_nested_rows_and_leaves_out_bytes_that_are_no_text(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "ä"}
    moment = datetime.datetime(2020, 1, 2, 3, 4, 5)
    table = pa.table({"m": [[turn], []], "b": [b"\xff\xd8", "ü".encode()], "t": [moment, None], "n": [1.5, float("nan")]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    rows, notices = read(tmp_path / "a.parquet")
    assert rows == [
        SourceRow(1, {"m": [turn], "b": None, "t": "2020-01-02T03:04:05", "n": 1.5}, "a.parquet"),
        SourceRow(2, {"m": [], "b": "ü", "t": None, "n": None}, "a.parquet"),
    ]
    assert len(notices) == 1 and "bytes that are no text" in notices[0]


def test_tables_that_are_none_are_refused(tmp_path: Path) -> None:
    for suffix in ("parquet", "xlsx", "xls", "ods"):
        assert f"'a.{suffix}' cannot be" in refusal(write(tmp_path, f"a.{suffix}", "nothing of the kind"))
        assert "is empty" in refusal(write(tmp_path, f"b.{suffix}", ""))


# Archives and several files


def test_an_archive_is_read_member_by_member(tmp_path: Path) -> None:
    path = tmp_path / "pack.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dir/a.csv", "a\n1\n")
        archive.writestr("__MACOSX/dir/._a.csv", "\0")
        archive.writestr(".DS_Store", "\0")
        archive.writestr("photo.png", "\0")
        archive.writestr("empty.jsonl", "\n")
        archive.writestr("b.jsonl.gz", gzip.compress(b'{"a": "2"}\n{"a"\n{"a": "3"}'))
    rows, notices = read(path)
    assert [(row.file, row.line) for row in rows] == [
        ("pack.zip/dir/a.csv", 2),
        *[("pack.zip/b.jsonl.gz", line) for line in (1, 2, 3)],
    ]
    assert isinstance(rows[2], RowError) and len(notices) == 2
    assert "'pack.zip/empty.jsonl' is empty" in notices[0] and "'photo.png'" in notices[1] and "MACOSX" not in str(notices)


def test_gzip_holds_any_kind(tmp_path: Path) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"a": ["x"]}), table)
    for name, content in (("a.csv.gz", b"a\nx\n"), ("a.parquet.gz", table.getvalue()), ("A.JSON.GZ", b'[{"a": "x"}]')):
        (tmp_path / name).write_bytes(gzip.compress(content))
        assert [value for _, value in values(tmp_path / name)] == [{"a": "x"}]
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"x"))
    assert "holds .tar inside gzip" in refusal(tmp_path / "a.tar.gz")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"x"))
    assert "without an ending inside gzip" in refusal(tmp_path / "a.gz")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"a\nx\n")[:-9])
    assert "damaged and cannot be unpacked" in refusal(tmp_path / "b.csv.gz")


def test_several_files_are_read_in_turn_and_an_end_ends_one_of_them(tmp_path: Path) -> None:
    paths = [write(tmp_path, "a.json", '[{"a": 1}\n'), write(tmp_path, "b.jsonl", '{"a": 2}'), write(tmp_path, "c.csv", " \n")]
    notices: list[str] = []
    rows = list(read_files(paths, BIG, notices))
    assert [(row.file, row.line, isinstance(row, RowError)) for row in rows] == [
        ("a.json", 1, False),
        ("a.json", 2, True),
        ("b.jsonl", 1, False),
    ]
    assert notices == ["The file 'c.csv' is empty and was left out."]
    with pytest.raises(InvalidInput, match=r"only empty files in 'c.csv', 'c.csv'"):
        list(read_files([paths[2], paths[2]], BIG, []))
    with pytest.raises(InvalidInput, match="no file to read"):
        list(read_files([], BIG, []))


# What is written comes back


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> list[int]:
    path.write_bytes(b"\n\n".join(orjson.dumps(row) for row in rows))
    return [1 + 2 * n for n in range(len(rows))]


def write_json(path: Path, rows: list[dict[str, str]]) -> list[int]:
    texts = [orjson.dumps(row, option=orjson.OPT_INDENT_2) for row in rows]
    path.write_bytes(b"[" + b",\n".join(texts) + b"]")
    lines = [1]
    for text in texts[:-1]:
        lines.append(lines[-1] + text.count(b"\n") + 1)
    return lines


def write_csv(path: Path, rows: list[dict[str, str]]) -> list[int]:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    lines, at = [], 2
    for row in rows:
        lines.append(at)
        text = "".join(row.values())
        at += 1 + text.count("\n") + text.count("\r") - sum(value.count("\r\n") for value in row.values())
    return lines


def write_parquet(path: Path, rows: list[dict[str, str]]) -> list[int]:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return list(range(1, len(rows) + 1))


def write_sheet(path: Path, rows: list[dict[str, str]]) -> list[int]:
    write_xlsx(path, {1: list(rows[0])} | {n: list(row.values()) for n, row in enumerate(rows, 2)})
    return list(range(2, len(rows) + 2))


ANY = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
PRINTED = st.characters(exclude_categories=["Cs", "Cc", "Cn"], exclude_characters="_\ufffe\uffff")
ROUNDS = {
    "a.jsonl": (write_jsonl, ANY, 0, 100),
    "a.json": (write_json, ANY, 0, 100),
    "a.csv": (write_csv, ANY, 0, 100),
    "a.parquet": (write_parquet, ANY, 0, 12),
    "a.xlsx": (write_sheet, PRINTED, 1, 12),
}


@pytest.mark.parametrize("name", ROUNDS)
def test_any_rows_of_texts_come_back_with_their_lines(name: str) -> None:
    writer, characters, least, examples = ROUNDS[name]
    text = st.text(characters, min_size=least, max_size=30)

    @settings(max_examples=examples, deadline=None)
    @given(st.lists(st.tuples(text, text, st.text(PRINTED, min_size=1, max_size=5)), min_size=1, max_size=6))
    def comes_back(cells: list[tuple[str, str, str]]) -> None:
        rows = [{"prompt": a, "answer": b, "note": c.replace(" ", "x")} for a, b, c in cells]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            lines = writer(path, rows)
            assert values(path) == list(zip(lines, rows, strict=True))

    comes_back()
