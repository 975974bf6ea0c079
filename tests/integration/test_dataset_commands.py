"""`python -m studio dataset …`: each command does its work and says so in one JSON object; each mistake is one sentence."""

import csv
import gzip
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from studio.datasets.hub import fetch_from_hub
from studio.services import Studio
from tests.commands import GOOD, Shell
from tests.conftest import tiny_settings
from tests.hub import COMMIT, running_hub


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A home with the tiny base and the samples."""
    home = tmp_path_factory.mktemp("furnished") / "home"
    studio = Studio(tiny_settings(home))
    studio.bases.fetch(str(tiny_base))
    studio.close()
    return home


@pytest.fixture
def shell(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(Path(shutil.copytree(furnished, tmp_path / "home")), monkeypatch, capfd)


def dataset(shell: Shell, *arguments: str | Path) -> dict[str, Any]:
    return shell.run("dataset", *arguments, "--json").json


def rows_of(shell: Shell, name: str) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = dataset(shell, "show", name, "--rows", "99")["rows_shown"]
    return shown


def answers(shell: Shell, name: str) -> list[str]:
    return [row["conversation"][-1]["content"] for row in rows_of(shell, name)]


def add(shell: Shell, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path = shell.write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return dataset(shell, "add", path, "--name", name)


def pairs(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"Question number {n}", "completion": f"Answer {n}", "half": "ab"[n % 2], **more} for n in range(count)]


# Files


def test_several_files_of_several_kinds_become_one_set(shell: Shell) -> None:
    paths = [
        shell.write("a.jsonl"),
        shell.write("b.csv", "question,answer\nWho?,Me.\n"),
        shell.write("c.jsonl.gz", gzip.compress(GOOD.encode())),
        shell.write("d.md", "# A title\n\nA passage.\n"),
    ]
    made = dataset(shell, "add", *paths, "--name", "all")
    assert (made["rows"], made["form"]) == (4, "prompt-completion + question-answer + text")
    assert [(row["file"], row["line"]) for row in rows_of(shell, "all")] == [("a.jsonl", 1), ("b.csv", 2), ("c.jsonl.gz", 1), ("d.md", 1)]


def test_columns_are_mapped_and_a_form_and_a_system_prompt_hold_for_all_rows(shell: Shell) -> None:
    path = shell.write("a.csv", "frage;antwort;text\nHallo;Guten Tag!;Ein Absatz.\n")
    mapped = ["--map", "prompt=frage", "--map", "completion=antwort", "--system", "Sei nett."]
    made = shell.run("dataset", "add", path, "--name", "german", *mapped, "--json")
    assert "The system prompt was put before 1 row(s)." in made.err and made.json["form"] == "prompt-completion"
    [row] = rows_of(shell, "german")
    assert [turn["content"] for turn in row["conversation"]] == ["Sei nett.", "Hallo", "Guten Tag!"] and row["extra"] == {
        "text": "Ein Absatz."
    }
    assert dataset(shell, "add", path, "--name", "passages", "--format", "text")["form"] == "text"
    assert answers(shell, "passages") == ["Ein Absatz."]


def test_wrong_rows_refuse_a_file_go_into_a_table_or_are_left_out(shell: Shell, tmp_path: Path) -> None:
    path = shell.write("a.jsonl", GOOD * 3 + '{"prompt": "=cmd()"}\n' + '{"prompt": \n' + GOOD)
    table = tmp_path / "wrong.csv"
    sentence = shell.refuse("dataset", "add", path, "--name", "mine", "--errors", table)
    assert "a.jsonl, line 4, field 'completion'" in sentence or "a.jsonl, line 5" in sentence
    assert "1 more row(s) are wrong" in sentence and "keep the other 4" in sentence
    with table.open(encoding="utf-8-sig", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert sorted((row["line"], row["field"], row["kind"]) for row in rows) == [("4", "completion", "missing"), ("5", "", "not JSON")]
    outcome = shell.run("dataset", "add", path, "--name", "mine", "--drop", "--json")
    assert outcome.json["rows"] == 4 and "2 wrong row(s) were left out: 1 " in outcome.err
    assert [row["line"] for row in rows_of(shell, "mine")] == [1, 2, 3, 6]
    assert outcome.json["notes"] == dataset(shell, "show", "mine")["notes"]


def test_what_was_adapted_is_told_and_kept_with_the_set(shell: Shell) -> None:
    outcome = shell.run("dataset", "add", shell.write("a.csv", "prompt,completion\nOù?,Là\n".encode("latin-1")), "--name", "x", "--json")
    [note] = outcome.json["notes"]
    assert note.startswith("The file 'a.csv' is not UTF-8: line 2 holds the byte 0xf9") and note in outcome.err
    assert answers(shell, "x") == ["Là"]


def test_rows_of_json_in_a_file_of_text_are_told(shell: Shell) -> None:
    outcome = shell.run("dataset", "add", shell.write("a.txt", GOOD * 2), "--name", "x", "--json")
    assert outcome.json["form"] == "text" and "'a.txt' looks like JSON Lines and was read as plain text; rename it to .jsonl" in outcome.err


def test_a_first_look_keeps_nothing(shell: Shell) -> None:
    before = shell.kept()
    path = shell.write("a.jsonl", GOOD + '{"prompt": "Hello", "note": "x"}\n{\n')
    looked = dataset(shell, "look", path)
    assert looked["columns"] == ["prompt", "completion", "note"] and looked["forms"][0]["form"] == "prompt-completion"
    assert looked["rows"][0]["conversation"][1] == {"role": "assistant", "content": "Good day!"}
    assert [(row["line"], bool(row["error"])) for row in looked["rows"]] == [(1, False), (2, True), (3, True)]
    assert shell.kept() == before
    assert "no file 'gone.csv'" in shell.refuse("dataset", "look", shell.home / "gone.csv")


# Versions and changes


def test_changes_make_versions_and_leave_the_others_as_they_are(shell: Shell) -> None:
    first = add(shell, "mine", pairs(6) + pairs(2) + [{"prompt": "Write to me@example.org", "completion": "Done."}])
    assert dataset(shell, "deduplicate", "mine")["rows"] == 7
    assert dataset(shell, "redact", "mine")["version"] == 3
    assert rows_of(shell, "mine")[-1]["conversation"][0]["content"] == "Write to [e-mail]"
    assert dataset(shell, "filter", "mine", "--contains", "question", "--lacks", "number 5", "--min-characters", "5")["rows"] == 5
    assert dataset(shell, "filter", "mine", "--where", "half=a", "--max-characters", "99")["rows"] == 3
    sampled = dataset(shell, "sample", "mine", "--rows", "2", "--seed", "3")
    assert (sampled["version"], sampled["rows"]) == (6, 2)
    versions = dataset(shell, "versions", "mine")["versions"]
    assert [(v["version"], v["rows"]) for v in versions] == [(6, 2), (5, 3), (4, 5), (3, 7), (2, 7), (1, 9)]
    assert dataset(shell, "show", "mine@1")["content_hash"] == first["content_hash"] and len(rows_of(shell, "mine@2")) == 7
    text = shell.run("dataset", "versions", "mine").out.splitlines()
    assert text[0].startswith("mine@6  2 rows  2 row(s) drawn with seed 3") and text[-1] == "mine@1  9 rows  added"
    assert dataset(shell, "rm", "mine@6")["removed"] == "mine"
    assert dataset(shell, "show", "mine")["version"] == 5
    dataset(shell, "rm", "mine")
    assert "no dataset named 'mine@1'" in shell.refuse("dataset", "show", "mine@1")


def test_near_duplicates_go_where_they_are_asked_to(shell: Shell) -> None:
    words = " ".join(f"word{n}" for n in range(60))
    add(shell, "near", [{"prompt": words, "completion": "Yes."}, {"prompt": f"{words} more", "completion": "Yes."}])
    assert "holds no duplicates; nothing was changed" in shell.refuse("dataset", "deduplicate", "near")
    assert dataset(shell, "deduplicate", "near", "--near")["rows"] == 1


def test_sets_are_split_and_mixed(shell: Shell) -> None:
    add(shell, "mine", pairs(8))
    parts = dataset(shell, "split", "mine", "--share", "0.25", "--seed", "1")["datasets"]
    assert [(part["name"], part["rows"]) for part in parts] == [("mine train", 6), ("mine held out", 2)]
    assert sorted(answers(shell, "mine train") + answers(shell, "mine held out")) == answers(shell, "mine")
    halves = dataset(shell, "split", "mine", "--column", "half")["datasets"]
    assert [(part["name"], part["rows"]) for part in halves] == [("mine a", 4), ("mine b", 4)]
    assert dataset(shell, "mix", "mine train", "mine held out", "--name", "joined")["rows"] == 8
    weighed = dataset(shell, "mix", "mine a:3", "mine b:1", "--name", "weighed", "--rows", "8", "--seed", "2")
    assert weighed["rows"] == 8 and weighed["made_by"] == "mixed mine a × 3, mine b × 1"
    assert sorted(row["extra"]["half"] for row in rows_of(shell, "weighed")) == ["a"] * 6 + ["b"] * 2


def test_an_export_uploaded_again_is_the_same_set(shell: Shell, tmp_path: Path) -> None:
    made = add(shell, "mine", pairs(4, tags=["x"], score=0.5))
    exported = dataset(shell, "export", "mine", "--out", tmp_path / "out")
    assert Path(exported["path"]).parent == tmp_path / "out" and exported["rows"] == 4
    again = dataset(shell, "add", exported["path"], "--name", "again")
    assert again["content_hash"] == made["content_hash"] and again["form"] == "messages"
    assert Path(dataset(shell, "export", "mine")["path"]).parent == shell.home / "exports"


def test_a_report_says_what_a_base_makes_of_a_set(shell: Shell) -> None:
    add(shell, "mine", pairs(6) + pairs(3) + [{"prompt": "Write to me@example.org", "completion": "Done."}])
    report = shell.run("dataset", "report", "mine", "--set", "max_length=64")
    assert report.status == 0 and "warning: There are only 10 rows." in report.out and "e-mail" in report.out
    found = dataset(shell, "report", "mine", "--base", "tiny", "--preset", "quick")
    assert "duplicates" in json.dumps(found)
    assert "no base named 'gpt'" in shell.refuse("dataset", "report", "mine", "--base", "gpt")
    assert "Range" in shell.refuse("dataset", "report", "mine", "--set", "max_length=0")


# The Hub


def test_a_set_of_the_hub_is_fetched_at_its_commit(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub("datasets", "me/set") as hub:
        monkeypatch.setattr("studio.services.fetch_from_hub", partial(fetch_from_hub, endpoint=hub.url))
        shell.monkeypatch.setenv("STUDIO_HUB_TIMEOUT_S", "5")
        hub.files = {"README.md": b"# A set", "train.jsonl": GOOD.encode() * 2, "test.jsonl": GOOD.encode()}
        made = dataset(shell, "fetch", "me/set", "--name", "fetched")
        assert made["rows"] == 2 and made["made_by"] == f"fetched from me/set at {COMMIT}"
        assert "these were not: test.jsonl" in made["notes"][0]
        hub.error = (404, "RepoNotFound")
        assert "is not on the Hub, or it is private" in shell.refuse("dataset", "fetch", "me/gone", "--name", "x")


def test_without_the_hub_a_fetch_is_refused_in_one_sentence(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "write it as owner/name" in shell.refuse("dataset", "fetch", "a/b/c", "--name", "x")
    monkeypatch.setattr("studio.services.fetch_from_hub", partial(fetch_from_hub, endpoint="http://127.0.0.1:9"))
    assert "The Hub gave no dataset 'me/set'" in shell.refuse("dataset", "fetch", "me/set", "--name", "x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "switched off here (HF_HUB_OFFLINE); switch it on, or upload" in shell.refuse("dataset", "fetch", "me/set", "--name", "x")


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "FILE", "--name", " "], ["has no name"]),
        (["add", "FILE", "--name", "x", "--format", "alpaca"], ["no format 'alpaca'", "instruction"]),
        (["add", "FILE", "--name", "x", "--format", "summary"], ["it needs document and summary", "ROLE=COLUMN"]),
        (["add", "FILE", "--name", "x", "--map", "prompt"], ["'prompt' is not ROLE=COLUMN"]),
        (["add", "FILE", "--name", "x", "--map", "prompt=colour"], ["names no column of the file", "prompt, completion"]),
        (
            ["add", "FILE", "--name", "x", "--map", "prompt=prompt", "--map", "prompt=completion"],
            ["mapped to 'prompt' and to 'completion'"],
        ),
        (["add", "FILE", "--name", "x", "--map", "prompt=prompt", "--map", "completion=prompt"], ["give each role a column of its own"]),
        (["look", "FILE", "--format", "alpaca"], ["no format 'alpaca'"]),
        (["versions", "Gulls"], ["no dataset named 'Gulls'"]),
        (["show", "Angry bird@7"], ["no dataset named 'Angry bird@7'"]),
        (["report", "Gulls"], ["no dataset named 'Gulls'"]),
        (["deduplicate", "Summarisation"], ["holds no duplicates", "nothing was changed"]),
        (["filter", "Angry bird"], ["The filter is empty"]),
        (["filter", "Angry bird", "--contains", "zebra crossing"], ["No row of 'Angry bird' would be left"]),
        (["filter", "Angry bird", "--where", "half=a"], ["No row of 'Angry bird' would be left"]),
        (["sample", "Angry bird", "--rows", "0"], ["rows is 0", "give a number from 1 to 95"]),
        (["sample", "Angry bird", "--rows", "1000"], ["rows is 1,000"]),
        (["redact", "Angry bird"], ["No personal data was found"]),
        (["split", "Angry bird", "--share", "1"], ["share is 1", "between 0 and 1"]),
        (["split", "Angry bird", "--share", "nan"], ["share is nan", "between 0 and 1"]),
        (["split", "Angry bird", "--column", "half"], ["have no field 'half'"]),
        (["mix", "Angry bird", "Gulls", "--name", "x"], ["no dataset named 'Gulls'"]),
        (["mix", "Angry bird:1", "Boy wizard", "--name", "x"], ["Some parts have a weight and some have none"]),
        (["mix", "Angry bird:0", "Boy wizard:0", "--name", "x"], ["not 0 for all"]),
        (["mix", "Angry bird:nan", "Boy wizard:1", "--name", "x"], ["The weights do not fit"]),
        (["mix", "Angry bird:inf", "Boy wizard:1", "--name", "x"], ["The weights do not fit"]),
        (["mix", "Angry bird:1", "Boy wizard:1", "--name", "x", "--rows", str(10**15)], ["has at most 10,000,000"]),
        (["mix", "Angry bird", "Boy wizard", "--name", "Boy wizard"], ["already a dataset named 'Boy wizard'"]),
        (["export", "Gulls"], ["no dataset named 'Gulls'"]),
        (["export", "Angry bird", "--out", "FILE"], ["could not be exported", "Free some space"]),
        (["rm", "Angry bird@7"], ["no dataset named 'Angry bird@7'"]),
        (["fetch", "nowhere!", "--name", "x"], ["is not the id of a dataset"]),
    ],
)
def test_a_mistake_is_told_in_one_sentence_and_changes_nothing(shell: Shell, arguments: list[str], words: list[str]) -> None:
    path = str(shell.write("a.jsonl"))
    sentence = shell.refuse("dataset", *(path if argument == "FILE" else argument for argument in arguments))
    assert all(word in sentence for word in words), sentence
