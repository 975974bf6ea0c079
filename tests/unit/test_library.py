"""The library of datasets: what goes in is what is there, versions, export and upload again, and what is refused."""

import csv
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import Database
from storage.repositories import Datasets
from studio.datasets.errors import FORMULA, BadRows
from studio.datasets.forms import choose_form
from studio.datasets.ingest import Options
from studio.datasets.library import DatasetLibrary
from studio.datasets.reading import Limits
from studio.datasets.store import BATCH_ROWS, ROWS_FILE, RowStore, StoredRow
from studio.errors import InvalidInput, NameTaken, NotFound, OutOfSpace
from tests.uploads import jsonl, pair


@pytest.fixture
def library(tmp_path: Path) -> Iterator[DatasetLibrary]:
    database = Database(f"sqlite:///{tmp_path / 'studio.db'}")
    yield DatasetLibrary(Datasets(database), tmp_path / "datasets", tmp_path / "exports", Limits(2**30))
    database.close()


def folders(library: DatasetLibrary) -> list[str]:
    return sorted(path.name for path in library.folder.iterdir())


def test_rows_are_there_with_their_fields_and_their_place(library: DatasetLibrary, tmp_path: Path) -> None:
    rows = [{**pair(1), "source": "web", "score": 0.5}, {**pair(2), "source": None}]
    record = library.add([jsonl(tmp_path / "a.jsonl", rows)], " Two  rows ")
    assert (record.name, record.form, record.rows, record.turns, record.version) == ("Two rows", "prompt-completion", 2, 4, 1)
    assert library.store(record).page(0, 9) == [
        StoredRow(
            [{"role": "user", "content": "Question 1"}, {"role": "assistant", "content": "Answer 1"}],
            {"score": 0.5, "source": "web"},
            1,
            "a.jsonl",
        ),
        StoredRow(
            [{"role": "user", "content": "Question 2"}, {"role": "assistant", "content": "Answer 2"}], {"source": None}, 2, "a.jsonl"
        ),
    ]
    assert library.all() == [record] == [library.get("Two rows")] == [library.get(record.id)] == [library.get("Two rows@1")]


def test_any_page_is_read_across_the_batches_of_the_file(library: DatasetLibrary, tmp_path: Path) -> None:
    count = 2 * BATCH_ROWS + 300
    record = library.add([jsonl(tmp_path / "many.jsonl", map(pair, range(count)))], "many")
    store = library.store(record)
    for offset in (0, BATCH_ROWS - 2, count - 3):
        assert [row.conversation[0]["content"] for row in store.page(offset, 4)] == [
            f"Question {n}" for n in range(offset, min(offset + 4, count))
        ]
    assert store.page(count, 5) == [] and len(store) == count == len(list(store)) == len(list(store.conversations()))
    assert store.fetch(BATCH_ROWS - 1, 2) == [row.conversation for row in store.page(BATCH_ROWS - 1, 2)]


def test_the_longest_rows_are_found_across_the_batches_of_the_file(library: DatasetLibrary, tmp_path: Path) -> None:
    texts = ["x" * n for n in range(1, BATCH_ROWS + 300)]
    texts[700], texts[-1] = texts[-1], texts[700]
    texts[BATCH_ROWS + 7] = "ö" * BATCH_ROWS  # the longest in bytes alone
    record = library.add([jsonl(tmp_path / "long.jsonl", [{"prompt": "p", "completion": text} for text in texts])], "long")
    found = [row[1]["content"] for row in library.store(record).longest(2)]
    assert found == ["ö" * BATCH_ROWS, texts[700]] and len(texts[700]) == BATCH_ROWS + 299
    assert len(library.store(record).longest(5000)) == len(texts)


def test_several_files_of_several_kinds_become_one_set_each_with_its_own_form(library: DatasetLibrary, tmp_path: Path) -> None:
    table = tmp_path / "b.csv"
    table.write_text("question,answer\nWho?,Me.\n", encoding="utf-8")
    notes = tmp_path / "c.md"
    notes.write_text("# A title\n\nA passage of text.\n", encoding="utf-8")
    packed = tmp_path / "d.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(pair(4)).encode()))
    record = library.add([jsonl(tmp_path / "a.jsonl", [pair(1)]), table, notes, packed], "mixed")
    assert record.form == "prompt-completion + question-answer + text" and record.rows == 4
    roles = [[turn["role"] for turn in row] for row in library.store(record).conversations()]
    assert roles == [["user", "assistant"], ["user", "assistant"], ["text"], ["user", "assistant"]]


def test_wrong_rows_refuse_the_files_and_all_are_counted(library: DatasetLibrary, tmp_path: Path) -> None:
    lines = [
        json.dumps(pair(1)),
        "{broken",
        json.dumps({"prompt": "x", "completion": ""}),
        json.dumps({"prompt": 5, "completion": {}}),
        json.dumps(pair(2)),
    ]
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(
        BadRows, match=r"^bad\.jsonl, line 2: .*2 more row\(s\) are wrong, on line\(s\) 3, 4\. Nothing was added\..*the other 2\.$"
    ) as caught:
        library.add([path], "bad")
    errors = caught.value.errors
    assert (
        [error.line for error in errors.shown] == [2, 3, 4] and errors.total == 3 == sum(errors.kinds.values()) and caught.value.good == 2
    )
    assert library.all() == [] and folders(library) == []
    record = library.add([path], "bad", Options(drop=True))
    assert record.rows == 2 and any("3 wrong row(s) were left out" in note for note in record.notes)
    kept = library.errors_path(record)
    assert kept is not None
    table = list(csv.DictReader(kept.read_text(encoding="utf-8-sig").splitlines()))
    assert [(row["file"], row["line"], row["field"]) for row in table] == [
        ("bad.jsonl", "2", ""),
        ("bad.jsonl", "3", "completion"),
        ("bad.jsonl", "4", "prompt"),
    ]
    assert all(row["what"] and row["how to mend it"] for row in table)


def test_a_file_without_one_right_row_is_refused_even_where_wrong_ones_may_be_left_out(library: DatasetLibrary, tmp_path: Path) -> None:
    with pytest.raises(BadRows, match="No row is right"):
        library.add([jsonl(tmp_path / "bad.jsonl", [{"prompt": "", "completion": "x"}])], "bad", Options(drop=True))
    assert library.all() == [] and folders(library) == []


@pytest.mark.parametrize("cell", ["=1+1", "+cmd", "-2", "@SUM(A1)", "＝1+1", "\t=1", "\n=1"])
def test_a_spreadsheet_does_not_run_what_an_error_quotes(library: DatasetLibrary, tmp_path: Path, cell: str) -> None:
    with pytest.raises(BadRows) as caught:
        library.add(
            [
                jsonl(
                    tmp_path / "bad.jsonl",
                    [
                        pair(1),
                        {"messages": [{"role": cell, "content": cell}], "prompt": "x", "completion": cell, cell: {}},
                        {"prompt": [cell], "completion": "x"},
                    ],
                )
            ],
            "bad",
        )
    rows = list(csv.reader(caught.value.errors.as_csv().splitlines()))
    assert len(rows) > 1 and not [text for row in rows for text in row if text.startswith(FORMULA)]


def test_a_mapping_and_a_system_prompt_hold_for_all_rows(library: DatasetLibrary, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "odd.jsonl", [{"ask": "Who?", "say": "Me.", "note": "x"}])
    with pytest.raises(InvalidInput, match="ask, say, note"):
        library.add([path], "odd")
    record = library.add(
        [path], "odd", Options(form="prompt-completion", mapping={"prompt": "ask", "completion": "say"}, system="Be brief.")
    )
    [row] = library.store(record).page(0, 2)
    assert [turn["content"] for turn in row.conversation] == ["Be brief.", "Who?", "Me."] and row.extra == {"note": "x"}


def test_a_first_look_tells_forms_columns_and_what_rows_become(library: DatasetLibrary, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "look.jsonl", [pair(1), {"prompt": "", "completion": "x"}, *map(pair, range(2, 9))])
    found = library.inspect([path])
    assert found.columns == ["prompt", "completion"] and found.chosen is not None and found.chosen.form == "prompt-completion"
    assert found.chosen.share == pytest.approx(8 / 9)
    first, second, _ = found.samples
    assert first.conversation is not None and first.conversation[1]["content"] == "Answer 1" and first.raw == pair(1)
    assert second.conversation is None and second.error is not None and second.error.line == 2
    assert library.all() == []


def test_a_first_look_leaves_the_form_to_the_user_where_none_fits(library: DatasetLibrary, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "odd.jsonl", [{"question": {"a": 1}, "reply": [[n]]} for n in range(5)])
    found = library.inspect([path])
    assert found.chosen is None and found.samples[0].raw == {"question": {"a": 1}, "reply": [[0]]}
    assert not found.fits or "no row can be read" in found.notices[-1]
    with pytest.raises(InvalidInput):
        library.inspect([path], Options(mapping={"prompt": "nothing"}))


def test_few_rows_are_held_at_once_where_they_are_long(library: DatasetLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{"prompt": f"{n}", "completion": "x" * 4000} for n in range(200)]), encoding="utf-8")
    seen = []
    monkeypatch.setattr("studio.datasets.ingest.LOOKED_BYTES", 10_000)
    monkeypatch.setattr("studio.datasets.ingest.choose_form", lambda values, *more: seen.append(len(values)) or choose_form(values, *more))
    assert library.add([path], "long").rows == 200 and seen == [3]


def test_what_is_exported_and_uploaded_again_has_the_same_hash(library: DatasetLibrary, tmp_path: Path) -> None:
    rows = [{**pair(1), "z": {"b": 1, "a": [1, None]}, "a": "é"}, pair(2), {**pair(3), "messages": "x"}]
    notes = tmp_path / "c.txt"
    notes.write_text("One passage.\n\n" + "long " * 600 + "\n\nAnother.", encoding="utf-8")
    record = library.add([jsonl(tmp_path / "a.jsonl", rows), notes], "a")
    path = library.export(record)
    assert path.parent == library.exports and re.fullmatch(r"a-[0-9a-f]{6}\.jsonl", path.name)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == record.rows and lines[0]["messages"][1]["content"] == "Answer 1" and lines[0]["a"] == "é"
    assert library.add([path], "b").content_hash == record.content_hash


def test_passages_are_exported_as_text(library: DatasetLibrary, tmp_path: Path) -> None:
    notes = tmp_path / "c.txt"
    notes.write_text("One passage.", encoding="utf-8")
    record = library.add([notes], "a")
    assert json.loads(library.export(record).read_text()) == {"text": "One passage."}
    assert library.add([library.export(record)], "b").content_hash == record.content_hash


def test_names_versions_and_removal(library: DatasetLibrary, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", map(pair, range(5)))
    first = library.add([path], "a")
    with pytest.raises(NameTaken, match="'a'"):
        library.add([path], "a")
    second = library.keep(library.store(first).page(0, 3), first, "cut to 3 rows")
    assert (second.version, second.parent_id, second.made_by, second.rows, second.name) == (2, first.id, "cut to 3 rows", 3, "a")
    assert (
        library.get("a") == second
        and library.get("a@1") == first
        and library.all() == [second]
        and library.versions("a") == [second, first]
    )
    assert [row.line for row in library.store(second)] == [1, 2, 3]
    with pytest.raises(InvalidInput, match="No row of 'a' would be left"):
        library.keep([], second, "nothing")
    with pytest.raises(NotFound, match=r"'a@7'.*'a'"):
        library.get("a@7")
    assert library.remove("a@2") == second and library.get("a") == first and folders(library) == [first.id]
    library.keep(library.store(first).page(0, 3), first, "again")
    library.remove("a")
    assert library.all() == [] and folders(library) == []


def test_a_full_disk_leaves_nothing(library: DatasetLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", map(pair, range(5)))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.files._sync", full)
    with pytest.raises(OutOfSpace, match="No space left on device"):
        library.add([path], "a")
    assert library.all() == [] and folders(library) == []


def test_rows_of_an_older_release_are_read(tmp_path: Path) -> None:
    import pyarrow as pa

    rows = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]]
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    with pa.OSFile(str(tmp_path / "old.arrow"), "wb") as sink, pa.ipc.new_stream(sink, pa.schema([("messages", kind)])) as writer:
        writer.write_batch(pa.record_batch([pa.array(rows, kind)], names=["messages"]))
    assert RowStore(tmp_path / "old.arrow").page(0, 5) == [StoredRow(rows[0])]


@pytest.mark.parametrize("content", [None, b"", b"no arrow"])
def test_rows_that_are_gone_or_damaged_are_told(library: DatasetLibrary, tmp_path: Path, content: bytes | None) -> None:
    record = library.add([jsonl(tmp_path / "a.jsonl", [pair(1)])], "a")
    path = library.folder / record.id / ROWS_FILE
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NotFound, match="rows of the dataset 'a' are gone; delete it and add its files again"):
        library.store(record)
    library.remove("a")
    assert library.all() == []
