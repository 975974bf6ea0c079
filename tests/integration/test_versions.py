"""Adapters that come as the next version of a name: trained, imported and made; what the page's events of exports do."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from studio.adapters.exporting import Wish
from studio.adapters.making import Recipe
from studio.errors import Interrupted, InvalidInput, NameTaken, NotFound
from studio.services import Studio
from studio.ui import exporting
from studio.ui.adapters import pushing
from tests.conftest import tiny_settings
from tests.hostile_adapters import config, put, weights
from tests.integration.test_export_commands import TOKEN, Hub, hub

__all__ = ["hub"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Studio]:
    studio = Studio(tiny_settings(tmp_path_factory.mktemp("versions") / "home"))
    studio.bases.fetch(str(tiny_base))
    studio.import_adapter(put(tmp_path_factory.mktemp("made") / "a"), "wizard")
    yield studio
    studio.close()


def test_an_import_and_a_sum_become_versions_and_the_current_one(studio: Studio, tmp_path: Path) -> None:
    first = studio.adapters.get("wizard")
    second = studio.import_adapter(put(tmp_path / "b", config(lora_alpha=2), weights()), "", as_version_of="wizard").record
    made = studio.make_adapter(f"{first.id}:0.5", "does not matter", Recipe(), as_version_of="wizard").record
    assert [(r.name, r.version, r.current) for r in (second, made)] == [("wizard", 2, True), ("wizard", 3, True)]
    assert studio.adapters.get("wizard").id == made.id and [r.version for r in studio.adapters.records.versions("wizard")] == [3, 2, 1]
    with pytest.raises(NameTaken):
        studio.make_adapter(first.id, "wizard")
    with pytest.raises(NotFound, match="no adapter named 'nobody'"):
        studio.import_adapter(put(tmp_path / "c"), "", as_version_of="nobody")
    twice = studio.import_adapter(put(tmp_path / "d"), "another")
    assert any("Its content is that of the adapter 'wizard'" in notice for notice in twice.notices)
    studio.adapters.remove("another")


def test_a_making_that_is_stopped_leaves_nothing(studio: Studio) -> None:
    before = sorted(studio.adapters.folder.iterdir())

    def stop(_share: float, _what: str) -> None:
        raise Interrupted("Stopped.")

    with pytest.raises(Interrupted):
        studio.make_adapter("wizard", "smaller", Recipe(rank=2), tell=stop)
    assert sorted(studio.adapters.folder.iterdir()) == before
    record = studio.adapters.get("wizard")
    assert studio.maker.expected(f"{record.id}:2", Recipe(rank=2)).startswith("It will have rank 2 (the nearest of that rank) and about ")
    with pytest.raises(InvalidInput, match="no method"):
        studio.maker.expected(record.id, Recipe("magic"))


def test_a_training_is_queued_as_a_version(studio: Studio) -> None:
    head = studio.adapters.get("wizard")
    job = studio.train("Angry bird", "", as_version_of="wizard")
    again = studio.train("Angry bird", "", as_version_of="wizard", current=False)  # two at once are two versions
    assert (job.adapter_name, job.config["version_of"], job.config["version_current"]) == ("wizard", head.id, True)
    assert again.config["version_current"] is False
    studio.queue.cancel(job.id)
    assert studio.queue.retry(job.id).adapter_name == "wizard"
    with pytest.raises(NameTaken):
        studio.train("Angry bird", "wizard")
    other = studio.bases.records.add(replace(studio.bases.get("tiny"), id="other", name="other", fingerprint="0" * 64))
    with pytest.raises(InvalidInput, match="versions of a name share their base"):
        studio.train("Angry bird", "", other.id, as_version_of="wizard")
    studio.bases.records.remove("other")


class Asked:
    """What a browser sends along."""

    def __init__(self, session: str) -> None:
        self.session_hash = session


def asked(session: str) -> Any:
    return Asked(session)


def test_an_export_goes_on_when_the_browser_is_gone(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    events, chosen, go = exporting.Events(studio), studio.adapters.get("wizard").id, threading.Event()
    write = studio.exporter.write

    def slow(name: str, wish: Wish | None, out: Path | None, tell: Any) -> Path:
        tell(0.5, "half")
        go.wait(30)
        tell(0.6, "more")
        return write(name, wish, out, tell)

    monkeypatch.setattr(studio.exporter, "write", slow)
    first = events.export(chosen, "peft", asked("one"))
    assert "as-bar" in next(first)[0]
    first.close()
    elsewhere = events.again("another", asked("two"))
    assert next(elsewhere)[0] == "" and list(elsewhere) == []
    opened = events.again(chosen, asked("three"))
    assert next(opened)[0] == "" and "as-bar" in next(opened)[0]
    go.set()
    told, file, download, stop = list(opened)[-1]
    assert "was made; PEFT loads" in told and file.endswith(".zip")
    assert download.interactive is True and stop.visible is False
    assert "was made" in list(events.again(chosen, asked("four")))[-1][0]  # as often as the page is opened
    go.clear()
    second = events.export(chosen, "gguf", asked("one"))
    next(second)
    list(events.again("another", asked("one")))  # this browser looks at another adapter: nothing is told there of this one
    assert list(second) == []
    events.stop(chosen)
    go.set()
    assert "Stopped; nothing was kept." in list(events.again(chosen, asked("five")))[-1][0]
    assert [step[0] for step in events.again(chosen, asked("five"))] == [""]  # it was told once


def test_an_export_ends_with_the_studio(tmp_path: Path, tiny_base: Path) -> None:
    studio = Studio(tiny_settings(tmp_path / "home"))
    studio.bases.fetch(str(tiny_base))
    studio.import_adapter(put(tmp_path / "a"), "wizard")
    studio.close()
    with pytest.raises(Interrupted, match="The studio was stopped"):
        studio.export_adapter("wizard", Wish("merged"))
    assert [path for path in (tmp_path / "home" / "exports").iterdir() if not path.name.startswith(".partial")] == []


def test_the_page_pushes_with_a_token_that_is_typed(
    studio: Studio, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_URL_HOSTS", constants.HF_URL_HOSTS | {"127.0.0.1"})
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(studio.pusher, "endpoint", hub.url)
    caplog.set_level("DEBUG")
    events, chosen = pushing.Events(studio), studio.adapters.get("wizard").id
    card = events.card(chosen, "peft")
    assert "library_name: peft" in card and "The card that is sent" in card
    steps = list(events.push(chosen, " me/bird ", "peft", "private", f" {TOKEN} "))
    assert steps[0][1] == "" and 'href="https://huggingface.co/me/bird/commit/0123"' in steps[-1][0]  # the box is emptied at once
    assert hub.tokens == {f"Bearer {TOKEN}"} and hub.made[0]["visibility"] == "private" and "README.md" in hub.files
    list(events.push(chosen, "me/bird", "peft", "public", TOKEN))
    assert hub.made[-1]["visibility"] == "public"
    for repository, token, words in (("bird", TOKEN, "is no Hub id"), ("me/bird", "", "There is no token for the Hub")):
        assert words in list(events.push(chosen, repository, "peft", "private", token))[-1][0]
    hub.status = 403
    refused = list(events.push(chosen, "me/bird", "peft", "private", TOKEN))[-1][0]
    assert "It was not pushed" in refused and "check that the token is valid" in refused
    assert TOKEN not in caplog.text + "".join(str(step) for step in steps) + refused
