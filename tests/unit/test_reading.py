"""Files as people have them: each row with its line, each fault with its place and its mend."""

import json
from pathlib import Path

import pytest

from studio.datasets.ingest import Ingested, Options, ingest
from studio.datasets.reading import Limits, pasted_suffix, read_files
from studio.datasets.rows import RowError, SourceRow
from studio.errors import InvalidInput

BIG = 1 << 30
ROW = {"prompt": "p", "completion": "c"}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def found(path: Path, notices: list[str] | None = None) -> list[SourceRow | RowError]:
    return list(read_files([path], Limits(BIG), [] if notices is None else notices))


def rows(path: Path) -> list[SourceRow]:
    read = found(path)
    assert all(isinstance(row, SourceRow) and row.file == path.name for row in read), read
    return [row._replace(file="") for row in read if isinstance(row, SourceRow)]


def refusal(path: Path, limit: int = BIG) -> str:
    with pytest.raises(InvalidInput) as caught:
        list(read_files([path], Limits(limit), []))
    return str(caught.value)


def fault(path: Path) -> RowError:
    (error,) = [row for row in found(path) if isinstance(row, RowError)]
    assert error.file == path.name
    return error


def kept(path: Path) -> Ingested:
    return ingest([path], Options(), Limits(BIG), path.with_suffix(".arrow"))


def test_jsonl_counts_blank_lines_and_skips_them(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '\n{"a": 1}\n  \n{"a": 2}\n')
    assert rows(path) == [SourceRow(2, {"a": 1}), SourceRow(4, {"a": 2})]


def test_a_byte_order_mark_windows_line_ends_and_a_missing_last_newline_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}')
    assert [row.value for row in rows(path)] == [{"a": 1}, {"a": 2}]
    path = write(tmp_path, "a.json", b'\xef\xbb\xbf[{"a": 1},\r\n{"a": 2}]')
    assert rows(path) == [SourceRow(1, {"a": 1}), SourceRow(2, {"a": 2})]
    path = write(tmp_path, "a.csv", b"\xef\xbb\xbfprompt,completion\r\np,c\r\n")
    assert rows(path) == [SourceRow(2, ROW)]


def test_the_line_separator_of_unicode_ends_no_row(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", json.dumps({"a": "x\u2028y"}, ensure_ascii=False) + "\n")
    assert rows(path) == [SourceRow(1, {"a": "x\u2028y"})]


def test_a_broken_line_is_told_in_its_place_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"a": 1}\n{"ä": tru, "b\t": 1}  \r\n{"a": 3}\n')
    first, error, last = found(path)
    assert (first.line, last.line) == (1, 3) and isinstance(error, RowError)
    assert (error.line, error.column, error.kind, error.ends) == (2, 7, "not JSON", False)
    assert str(error).startswith("line 2: this is not valid JSON") and "write one JSON object on each line" in str(error)
    assert error.excerpt == '{"ä": tru, "b\N{REPLACEMENT CHARACTER}": 1}'


def test_an_array_gives_each_item_with_the_line_on_which_it_starts(tmp_path: Path) -> None:
    text = '[\n  {"a": 1},\n  {"a":\n   2}, {"a": 3},\n\n  {"a": 4}\n]\n'
    assert [(row.line, row.value["a"]) for row in rows(write(tmp_path, "a.json", text))] == [(2, 1), (3, 2), (4, 3), (6, 4)]


def test_json_lines_may_be_in_a_file_that_ends_in_json(tmp_path: Path) -> None:
    assert [row.line for row in rows(write(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n'))] == [1, 2]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[\n{"a": 1}\n{"a": 2}]', 3, "a comma or the closing bracket is missing"),
        ('[\n{"a": 1},\n{"a": }]', 3, "not valid JSON"),
        ('[{"a": 1},\n]', 2, "not valid JSON"),
        ('[{"a": 1}\n', 2, "a comma or the closing bracket is missing"),
        ('[{"a": 1}]\nand more', 2, "text after the closing bracket"),
        ("[\n" + "[" * 100_000, 2, "nested too deeply"),
        ('[\n{"a": ' + "9" * 5000 + "}]", 2, "not valid JSON"),
    ],
)
def test_a_broken_array_is_told_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    error = fault(write(tmp_path, "a.json", text))
    assert error.line == line and words in str(error)


def test_half_a_surrogate_pair_is_refused_with_its_line(tmp_path: Path) -> None:
    """It is valid JSON, yet it is no character and no file could hold it."""
    good, bad = json.dumps(ROW), '{"prompt": "p", "completion": "\\ud83d"}'
    for name, text in (("a.json", f"[{good},\n{bad}]"), ("a.jsonl", f"{good}\n{bad}\n")):
        with pytest.raises(InvalidInput, match=r"line 2\b"):
            kept(write(tmp_path, name, text))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_with_any_usual_delimiter(tmp_path: Path, delimiter: str) -> None:
    text = f"prompt{delimiter}completion\n" + f'"one\n{delimiter}two"{delimiter}c\n' + f'p{delimiter}"say ""hi"""\n'
    expected = [
        SourceRow(2, {"prompt": f"one\n{delimiter}two", "completion": "c"}),
        SourceRow(4, {"prompt": "p", "completion": 'say "hi"'}),
    ]
    assert rows(write(tmp_path, "a.csv", text)) == expected


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("prompt,completion\np,c\n\na,b,c\n", 4, "this row has 3 cells and the header has 2"),
        ("prompt,completion\np\n", 2, "this row has 1 cells and the header has 2"),
        ('prompt,completion\np,c\n"open,c\n', 3, "the CSV is broken from here on"),
    ],
)
def test_a_broken_csv_is_told_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    error = fault(write(tmp_path, "a.csv", text))
    assert error.line == line and words in str(error)
    assert error.kind == ("cells" if "cells" in words else "broken CSV") and error.ends == ("from here" in words)


def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    assert "names the column 'prompt' twice in its header, line 2" in refusal(write(tmp_path, "a.csv", "\nprompt,prompt\np,c\n"))


def test_a_cell_may_hold_a_long_conversation(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    assert len(long) > 131_072  # the csv module's own limit
    assert rows(write(tmp_path, "a.csv", f"prompt,completion\n{long},c\n"))[0].value["prompt"] == long


def test_a_file_as_a_whole_is_refused_with_its_name_and_what_to_do(tmp_path: Path) -> None:
    assert "no file 'gone.csv'" in refusal(tmp_path / "gone.csv")
    assert "no file" in refusal(tmp_path)
    assert "ends in .pdf; give a .jsonl, .ndjson, .json, .csv, .tsv, .txt" in refusal(write(tmp_path, "a.pdf", "x"))
    assert "ends in nothing" in refusal(write(tmp_path, "rows", "x"))
    for name in ("a.csv", "a.json", "a.jsonl"):
        for nothing in (b"", b"\n  \n", b"\xef\xbb\xbf\n"):
            assert f"{name!r} is empty" in refusal(write(tmp_path, name, nothing))


def test_a_file_over_the_limit_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", "x" * (3 << 20))
    assert "has 3.0 MB and the limit is 2.0 MB; split it" in refusal(path, 2 << 20)
    assert rows(write(tmp_path, "b.jsonl", "1"))  # one is of exactly the limit's size


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl"])
def test_windows_1252_is_read_and_told_with_line_byte_and_place(tmp_path: Path, name: str) -> None:
    text = "prompt\n“café”\n" if name == "a.csv" else '{"prompt":\n "“café”"}'.replace("\n" if name == "a.jsonl" else "", "")
    notices: list[str] = []
    path = write(tmp_path, name, text.encode("cp1252"))
    assert [row.value for row in found(path, notices) if isinstance(row, SourceRow)] == [{"prompt": "“café”"}]
    line, byte = {"a.csv": (2, 1), "a.json": (2, 3), "a.jsonl": (1, 13)}[name]
    assert len(notices) == 1 and "Windows-1252" in notices[0] and "save it again with the encoding UTF-8" in notices[0]
    assert f"{name!r} is not UTF-8: line {line} holds the byte 0x93 at position {byte};" in notices[0]


def test_single_foreign_bytes_in_utf_8_leave_the_rest_alone(tmp_path: Path) -> None:
    notices: list[str] = []
    path = write(tmp_path, "a.jsonl", '{"a": "äöü"}\n'.encode() + b'{"a": "\xe9\x81"}\n')
    assert [row.value["a"] for row in found(path, notices) if isinstance(row, SourceRow)] == ["äöü", "é\x81"]
    assert "line 2 holds the byte 0xe9 at position 8; such bytes were read" in notices[0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_the_byte_order_mark_names_the_encoding(tmp_path: Path, encoding: str) -> None:
    mark = "" if encoding in ("utf-16", "utf-8-sig") else "\ufeff"
    notices: list[str] = []
    for name, text in (("a.jsonl", '{"a": "ä😀"}\n\n{"a": "b"}'), ("a.csv", 'a\n"ä😀"\nb\n'), ("a.json", '[{"a": "ä😀"}\n,{"a":\n"b"}]')):
        values = [row.value for row in found(write(tmp_path, name, (mark + text).encode(encoding)), notices) if isinstance(row, SourceRow)]
        assert values == [{"a": "ä😀"}, {"a": "b"}] and not notices


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    assert "line 2 holds a NUL byte" in refusal(write(tmp_path, "a.csv", b"a,b\n1,\x00\n"))
    assert "NUL" in refusal(write(tmp_path, "a.jsonl", "{}".encode("utf-16-le")))
    assert "begins as UTF-16" in refusal(write(tmp_path, "a.jsonl", b"\xff\xfe\x00\xd8{"))


def test_an_encoding_is_followed_across_the_pieces_of_a_file(tmp_path: Path) -> None:
    limits, notices = Limits(BIG, row_bytes=64), []
    path = write(tmp_path, "a.jsonl", "".join(json.dumps({"a": "ä€😀" * 3}, ensure_ascii=False) + "\n" for _ in range(50)))
    assert len(list(read_files([path], limits, notices))) == 50 and not notices
    path.write_bytes(path.read_bytes() + b"\n\n12345\xff")
    assert len(list(read_files([path], limits, notices))) == 51
    assert "line 53 holds the byte 0xff at position 6" in notices[0]


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ('{"a": 1}\n{"a": 2}', ".jsonl"),
        ('{"a": 1}', ".jsonl"),
        ('{\n"data": [{"a": 1}]}', ".json"),
        ('\n[{"a": 1},\n{"a": 2}]', ".json"),
        ("[Verse 1]\nLa la", ".txt"),
        ("a,b\n1,2", ".csv"),
        ('a;b\n"x;y";2', ".csv"),
        ("a\tb\nx y\tz", ".tsv"),
        ("Well, this is\nplain text.", ".txt"),
        ("", ".txt"),
    ],
)
def test_a_pasted_text_is_told_by_its_looks(text: str, suffix: str) -> None:
    assert pasted_suffix(text) == suffix


def test_each_wrong_row_is_counted_and_the_first_is_told_in_full(tmp_path: Path) -> None:
    text = "".join(json.dumps({"prompt": "p", "completion": "" if n % 2 else "c"}) + "\n" for n in range(8))
    with pytest.raises(InvalidInput) as caught:
        kept(write(tmp_path, "a.jsonl", text))
    message = str(caught.value)
    assert message.startswith("a.jsonl, line 2, field 'completion': this is empty; write the text or delete the row.")
    assert "3 more row(s) are wrong, on line(s) 4, 6, 8. Nothing was added." in message


def test_all_wrong_rows_are_counted_and_the_first_lines_named(tmp_path: Path) -> None:
    text = (json.dumps({"prompt": "p", "completion": ""}) + "\n") * 500
    with pytest.raises(InvalidInput, match=r"499 more row\(s\) are wrong, on line\(s\) 2, 3, 4, 5, 6, 7, 8, 9, …\. Nothing was added"):
        kept(write(tmp_path, "a.jsonl", text))


def test_a_header_without_rows_and_an_empty_array_have_nothing_to_train_on(tmp_path: Path) -> None:
    for name, text in (("a.csv", "prompt,completion\n"), ("a.json", "[]")):
        with pytest.raises(InvalidInput, match=r"no rows in a.(csv|json); add at least one example"):
            kept(write(tmp_path, name, text))
