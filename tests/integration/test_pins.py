"""Adapters that are kept ready: the table on both databases, the slots, the limits, the command line."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage.database import Database
from storage.errors import RecordNotFound
from storage.repositories import Adapters
from storage.repositories import Pins as Records
from studio.chat.engine import Engine
from studio.chat.pins import Pins
from studio.errors import InvalidInput, NotFound
from studio.services import Studio
from tests.commands import Shell
from tests.conftest import tiny_settings
from tests.records import ADAPTER
from tests.serving import add_adapters

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def two(database: Database) -> Adapters:
    adapters = Adapters(database)
    for number in (1, 2):
        adapters.add(replace(ADAPTER, id=f"a{number}", name=f"bird {number}"))
    return adapters


def test_the_table_keeps_the_order_of_pins_and_forgets_deleted_adapters(database: Database, two: Adapters) -> None:
    pins = Records(database)
    assert pins.all() == []
    for adapter_id, now in (("a2", 1.0), ("a1", 2.0), ("a2", 3.0)):
        pins.add(adapter_id, now)
    assert [record.id for record in pins.all()] == ["a2", "a1"] and pins.all()[0] == two.get("a2")
    two.remove("a2")
    assert [record.id for record in pins.all()] == ["a1"]
    for _ in range(2):
        pins.remove("a1")
    assert pins.all() == []
    with pytest.raises(RecordNotFound):
        pins.add("nobody", 1.0)


def test_no_more_of_a_base_are_pinned_than_there_are_slots(database: Database, two: Adapters) -> None:
    told: list[int] = []
    other = two.add(replace(ADAPTER, id="a3", name="of another base", base_fingerprint="e" * 64))
    pins = Pins(Records(database), two, 1, lambda: told.append(1))
    assert pins.pin("bird 1").id == pins.pin("a1").id == "a1" and pins.pin(other.name) == other
    with pytest.raises(InvalidInput, match=r"than there are slots \(STUDIO_SLOTS is 1\); unpin another one first\.$"):
        pins.pin("bird 2")
    pins.unpin("bird 1")
    assert pins.pin("bird 2").id == "a2" and [record.id for record in pins.all()] == ["a3", "a2"]
    assert len(told) == 5


def started(home: Path) -> Studio:
    return Studio(tiny_settings(home, slots=2))


@pytest.fixture
def home(tmp_path: Path, tiny_base: Path) -> Iterator[Path]:
    """A home with three adapters."""
    studio = started(tmp_path / "home")
    studio.bases.fetch(str(tiny_base))
    add_adapters(studio)
    studio.close()
    return tmp_path / "home"


def resident(studio: Studio) -> set[str]:
    engine: Engine = studio.chat.make_resident(studio.default_base())
    names = {record.sha256: record.name for record in studio.adapters.all()}
    return {names.get(sha256, "deleted") for sha256 in engine.bank.resident}


def ask(studio: Studio, *names: str) -> None:
    for name in names:
        studio.reply(HELLO, name, max_tokens=2)


def test_what_is_pinned_has_its_slot_from_the_start_and_keeps_it(home: Path) -> None:
    studio = started(home)
    studio.pins.pin("wizard")  # no base is resident yet
    assert resident(studio) == {"wizard"}
    ask(studio, "pirate", "Bird of 2 words", "pirate")
    assert resident(studio) == {"wizard", "pirate"}
    studio.chat.unload()
    assert resident(studio) == {"wizard"}
    studio.close()
    studio, other = started(home), started(home)  # another program, as the command line is
    assert resident(studio) == {"wizard"}
    other.pins.unpin("wizard")
    other.pins.pin("pirate")
    ask(studio, "Bird of 2 words")
    assert "pirate" in resident(studio)
    ask(studio, "wizard", "Bird of 2 words")
    assert resident(studio) == {"pirate", "Bird of 2 words"}
    other.adapters.remove("pirate")  # its pin goes with it
    ask(studio, "wizard", "Bird of 2 words")
    assert resident(studio) == {"wizard", "Bird of 2 words"}
    other.close()
    studio.close()


def test_what_cannot_be_made_ready_hurts_nobody_else(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    studio = started(home)
    for name in ("wizard", "pirate"):
        studio.pins.pin(name)
    broken = studio.adapters.path(studio.adapters.get("wizard")) / "adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-4])
    assert resident(studio) == {"pirate"} and "The pinned adapter wizard is not ready: The files of adapter" in caplog.text
    ask(studio, "Bird of 2 words", "base")
    with pytest.raises(NotFound, match="cannot be used"):
        ask(studio, "wizard")
    studio.close()


def test_the_command_line_pins_and_unpins(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    shell = Shell(home, monkeypatch, capfd)
    assert shell.run("adapter", "pin", "wizard", "--json").json == {"pinned": "wizard"}
    listed = {adapter["name"]: adapter["pinned"] for adapter in shell.run("adapter", "list", "--json").json["adapters"]}
    assert listed == {"wizard": True, "pirate": False, "Bird of 2 words": False}
    assert "MB  pinned" in shell.run("adapter", "list").out
    assert "There is no adapter named 'nobody'" in shell.refuse("adapter", "pin", "nobody")
    assert shell.run("adapter", "unpin", "wizard", "--json").json == {"unpinned": "wizard"}
    assert "pinned" not in shell.run("adapter", "list").out
