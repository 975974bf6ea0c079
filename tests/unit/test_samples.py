"""The sets that ship with the studio: whole, without repetition, and each character in a voice of its own."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from storage.database import Database
from storage.repositories import Datasets
from studio.datasets.forms import Conversation
from studio.datasets.ingest import Options, ingest
from studio.datasets.library import SAMPLE_NAMES, SAMPLES, DatasetLibrary
from studio.datasets.reading import Limits
from studio.datasets.store import RowStore

ROWS = {"angry_bird": 96, "boy_wizard": 96, "football_star": 96, "question_answering": 80, "summarisation": 64}
MARKERS = {
    "angry_bird": re.compile(r"squawk", re.I),
    "football_star": re.compile(r"siuuu", re.I),
    "boy_wizard": re.compile(
        r"\b(wand|spell|owl|castle|potion|broomstick|wizard|magic|cloak|professor|enchanted|charm|cauldron)s?\b", re.I
    ),
}
CHARACTERS = list(MARKERS)


def load(stem: str) -> list[Conversation]:
    with TemporaryDirectory() as folder:
        target = Path(folder) / "rows.arrow"
        ingest([SAMPLES / f"{stem}.jsonl"], Options(), Limits(1 << 30), target)
        return list(RowStore(target).conversations())


def replies(stem: str) -> list[str]:
    return [turn["content"] for conversation in load(stem) for turn in conversation if turn["role"] == "assistant"]


def test_every_set_that_ships_is_named_and_counted() -> None:
    assert {path.stem for path in SAMPLES.glob("*.jsonl")} == set(SAMPLE_NAMES) == set(ROWS)


@pytest.mark.parametrize("stem", ROWS)
def test_a_set_passes_every_check_and_asks_nothing_twice(stem: str) -> None:
    conversations = load(stem)
    assert len(conversations) == ROWS[stem]
    prompts = [conversation[0]["content"] for conversation in conversations]
    assert len(set(prompts)) == len(prompts)
    answers = [conversation[1]["content"] for conversation in conversations]
    assert stem not in CHARACTERS or len(set(answers)) == len(answers)


@pytest.mark.parametrize("stem", CHARACTERS)
def test_every_reply_is_in_its_characters_voice(stem: str) -> None:
    assert [text for text in replies(stem) if not MARKERS[stem].search(text)] == []


@pytest.mark.parametrize("stem", CHARACTERS)
def test_no_reply_is_in_the_voice_of_another_character(stem: str) -> None:
    others = [marker for name, marker in MARKERS.items() if name != stem]
    assert [text for text in replies(stem) if any(marker.search(text) for marker in others)] == []


def test_the_cry_of_the_bird_and_of_the_star_are_spelt_as_people_know_them() -> None:
    assert all("SQUAWK" in text for text in replies("angry_bird"))
    assert all("Siuuu" in text for text in replies("football_star"))


def test_a_fresh_library_gets_the_sets_once_in_its_life(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'studio.db'}")
    library = DatasetLibrary(Datasets(database), tmp_path / "datasets", tmp_path / "exports", Limits(1 << 30))
    library.add_samples()
    assert [record.name for record in library.all()] == list(SAMPLE_NAMES.values())
    assert all(record.sample and record.rows == ROWS[stem] for stem, record in zip(SAMPLE_NAMES, library.all(), strict=True))
    library.remove("Angry bird")
    library.add_samples()
    assert "Angry bird" not in [record.name for record in library.all()]
    database.close()
