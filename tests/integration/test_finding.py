"""Finding adapters, and what people write on them: with a studio of its own, and on the command line."""

import json
import shutil
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from sqlalchemy import insert

from storage.catalog import Search
from storage.tables import AdapterRow
from studio.chat.voices import choose
from studio.errors import InvalidInput, NotFound
from studio.services import Studio
from studio.ui.page import voices
from tests.commands import Shell
from tests.conftest import tiny_settings
from tests.records import ADAPTER
from tests.serving import VOICES, add_adapters

NAMES = ("bird", "eagle", "owl")


def fill(studio: Studio) -> None:
    """Three adapters of the tiny base, and one of another."""
    base = studio.bases.get("tiny")
    for number, name in enumerate(NAMES):
        made = replace(ADAPTER, id=f"a{number}", name=name, sha256=f"{number}abcdef" * 9, created_at=float(number))
        studio.adapters.records.add(replace(made, base_id=base.id, base_fingerprint=base.fingerprint))
    studio.adapters.records.add(replace(ADAPTER, id="a9", name="stranger", base_id=base.id))


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    home = tmp_path_factory.mktemp("stocked") / "home"
    studio = Studio(tiny_settings(home))
    studio.bases.fetch(str(tiny_base))
    fill(studio)
    studio.close()
    return home


@pytest.fixture
def shell(stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(Path(shutil.copytree(stocked, tmp_path / "home")), monkeypatch, capfd)


def test_labels_are_written_on_an_adapter_and_found_by(studio: Studio) -> None:
    fill(studio)
    finder = studio.finder
    assert finder.tag("bird", [" Loud ", "für  Kinder", "loud"], ["quiet"]).tags == ["loud", "für kinder"]
    assert finder.tag("bird", remove=["LOUD"]).tags == ["für kinder"] and finder.collect("owl", ["Best of"]).collections == ["Best of"]
    assert finder.favourite("owl").favourite and finder.archive("eagle").archived_at
    at = finder.archive("eagle").archived_at
    assert finder.archive("eagle").archived_at == at  # since then
    assert [a.name for a in finder.page(Search(tags=("für kinder",)), 9).records] == ["bird"]
    assert [a.name for a in studio.adapters_of(studio.bases.get("tiny"))] == ["owl", "bird"]
    for wrong in (lambda: finder.set_tags("bird", [f"t{n}" for n in range(31)]), lambda: finder.collect("bird", ["x" * 81])):
        with pytest.raises(InvalidInput, match=r"^The .*\.$"):
            wrong()
    with pytest.raises(InvalidInput, match="choose newest, name, loss, rank, size"):
        finder.page(Search(sort="random"), 9)
    with pytest.raises(NotFound, match="there are"):
        finder.tag("nobody", ["x"])


def test_the_chat_leaves_out_what_is_archived_but_speaks_with_it_when_it_is_named(studio: Studio) -> None:
    fill(studio)
    assert [name for name, _ in voices(studio)] == ["Base model", "owl", "eagle", "bird", "Blend…"]
    studio.finder.archive("eagle")
    studio.finder.make_version("owl", "bird")
    assert [name for name, _ in voices(studio)] == ["Base model", "bird"]
    assert voices(studio, "a1")[1] == ("eagle", "a1") and voices(studio, "a0")[1] == ("bird, version 1", "a0")
    assert "stranger" not in dict(voices(studio, "a9"))  # it is of another base


def test_a_name_with_the_start_of_a_hash_is_one_version(studio: Studio) -> None:
    fill(studio)
    studio.finder.make_version("owl", "bird")
    assert studio.adapters.get("bird").id == "a2" and studio.adapters.get("bird@0ABCDEF").id == "a0"
    chosen = choose("bird@0abcdef", studio.adapters.get)
    assert chosen.adapter_id == "a0" and choose(chosen.label, studio.adapters.get) == chosen
    assert choose("bird", studio.adapters.get).label == "bird"
    for wrong in ("bird@0", "bird@999999", "owl"):
        with pytest.raises(NotFound):
            studio.adapters.get(wrong)
    for name, of, why in (("bird", "bird", "a version of that name already"), ("stranger", "bird", "of another base")):
        with pytest.raises(InvalidInput, match=why):
            studio.finder.make_version(name, of)


def test_commands_find_and_label(shell: Shell) -> None:
    assert shell.run("adapter", "tag", "bird", "Loud", "birds", "--json").json["tags"] == ["loud", "birds"]
    assert shell.run("adapter", "collect", "bird", "Best of", "--json").json["collections"] == ["Best of"]
    assert shell.run("adapter", "favourite", "owl", "--json").json == {"adapter": "owl", "favourite": True}
    assert shell.run("adapter", "archive", "eagle", "--json").json["archived_at"] > 0
    assert [a["name"] for a in shell.run("adapter", "list", "--tag", "LOUD", "--json").json["adapters"]] == ["bird"]
    assert [a["name"] for a in shell.run("adapter", "list", "--sort", "name", "--json").json["adapters"]] == ["bird", "owl", "stranger"]
    assert "eagle" in shell.run("adapter", "list", "--archived").out and "★" in shell.run("adapter", "list", "--search", "ow").out
    assert shell.run("adapter", "list", "--search", '"* (-', "--favourites", "--json").json["adapters"][0]["name"] == "owl"
    shell.run("adapter", "archive", "eagle", "--off")
    versions = shell.run("adapter", "version", "eagle", "--of", "bird", "--json").json["versions"]
    assert [(v["version"], v["current"]) for v in versions] == [(2, True), (1, False)]
    versions = shell.run("adapter", "version", f"bird@{versions[1]['sha256'][:8]}", "--current", "--json").json["versions"]
    assert [v["current"] for v in versions] == [False, True]


def test_a_card_is_shown_kept_and_made_anew_and_mistakes_are_one_sentence(shell: Shell) -> None:
    made = shell.run("adapter", "card", "bird").out
    assert made.startswith("---\n") and "library_name: peft" in made and "# bird" in made
    path = shell.write("card.md", "---\nlicense: evil\n---\n# Mine\n")
    card = shell.run("adapter", "card", "bird", "--edit", path, "--licence", "mit", "--json").json["card"]
    assert "license: mit" in card and "evil" not in card and card.endswith("# Mine\n")
    again = shell.run("adapter", "card", "bird", "--edit", shell.write("empty.md", "")).out
    assert "# bird" in again and "# Mine" not in again and "license: mit" in again
    assert "no text in UTF-8" in shell.refuse("adapter", "card", "bird", "--edit", shell.write("bad.md", b"\xff\xfe"))
    assert "cannot be read" in shell.refuse("adapter", "card", "bird", "--edit", shell.home.parent / "none.md")
    assert "shorten it" in shell.refuse("adapter", "card", "bird", "--edit", shell.write("long.md", "x" * 200_001))
    assert "comma" in shell.refuse("adapter", "tag", "bird", "a,b")
    assert "is not known; choose newest" in shell.refuse("adapter", "list", "--sort", "random")
    assert "There is no adapter named 'nobody'" in shell.refuse("adapter", "archive", "nobody")
    assert json.loads(shell.run("adapter", "show", "bird", "--json").out)["licence"] == "mit"


def test_ten_thousand_are_listed_and_one_is_exported_without_reading_another(studio: Studio, tmp_path: Path) -> None:
    add_adapters(studio)
    real = studio.adapters.get("wizard")
    count = 10_000 - len(VOICES)
    rows = [asdict(replace(real, id=f"x{i}", name=f"far {i}", sha256=f"{i:064x}", created_at=float(i))) for i in range(count)]
    with studio._database.write() as session:
        session.execute(insert(AdapterRow), rows)
    studio.finder.index.catch_up()  # as at the start of a studio
    with pytest.raises(NotFound, match="cannot be used"):  # they have no files, so whoever reads one fails
        studio.adapters.read(studio.adapters.get("far 1"))
    names, after = list[str](), None
    while after is not None or not names:
        found = studio.finder.page(Search(sort="gain"), 1000, after)
        names, after = names + [record.name for record in found.records], found.next
    assert len(set(names)) == len(names) == 10_000
    with zipfile.ZipFile(studio.export_adapter("wizard", out=tmp_path)) as archive:
        assert "adapter_model.safetensors" in archive.namelist()
