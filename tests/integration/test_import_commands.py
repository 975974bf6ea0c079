"""`adapter import` on the command line: one JSON object, or one sentence."""

import shutil
from pathlib import Path

import pytest

from studio.services import Studio
from tests.commands import Shell
from tests.conftest import tiny_settings
from tests.hostile_adapters import both, config, pack, put

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, warm: None) -> Path:
    """A home with the tiny base."""
    home = tmp_path_factory.mktemp("stocked") / "home"
    studio = Studio(tiny_settings(home))
    studio.bases.fetch(str(tiny_base))
    studio.close()
    return home


@pytest.fixture
def shell(stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(Path(shutil.copytree(stocked, tmp_path / "home")), monkeypatch, capfd)


def test_an_adapter_is_imported_listed_exported_and_speaks(shell: Shell, tmp_path: Path) -> None:
    outcome = shell.start("adapter", "import", pack(tmp_path / "a.zip", both()), "--name", "wizard", "--base", "tiny", "--json")
    found = outcome.json
    keys = {"id", "name", "kind", "origin", "source", "parents", "sha256", "rank", "size_bytes", "base_id", "path", "notices"}
    assert keys <= set(found) and (found["name"], found["kind"], found["origin"], found["rank"]) == ("wizard", "lora", "import", 4)
    assert found["source"] == "the file 'a.zip'" and Path(found["path"], "adapter_config.json").is_file()
    assert found["notices"] == [outcome.err.strip()] and "do not prove which base" in outcome.err
    [listed] = shell.run("adapter", "list", "--json").json["adapters"]
    assert (listed["origin"], listed["kind"], listed["told"]) == ("import", "lora", "LoRA, rank 4")
    assert shell.run("adapter", "list").out.startswith("wizard  LoRA, rank 4  0.0 MB")
    reply = shell.run("chat", "--adapter", "wizard", "--greedy", "--max-tokens", "4", "Hello", "--json").json
    assert reply["adapter_sha256"] == found["sha256"]
    exported = shell.run("adapter", "export", "wizard", "--out", tmp_path / "out", "--json").json["path"]
    again = shell.run("adapter", "import", exported, "--name", "wizard again", "--json").json
    assert again["sha256"] == found["sha256"] and again["notices"] == [
        "Its content is that of the adapter 'wizard', which was here before."
    ]
    assert shell.run("adapter", "import", put(tmp_path / "b"), "--name", "plain").out == "plain was imported from the folder 'b'.\n"


def test_an_adapter_is_made_of_others(shell: Shell, tmp_path: Path) -> None:
    for name in ("wizard", "pirate"):
        shell.run("adapter", "import", put(tmp_path / name), "--name", name, "--json")
    made = shell.start("adapter", "make", "wizard:0.7+pirate:-0.2", "--name", "mix", "--rank", "3", "--json").json
    assert (made["origin"], made["rank"], made["source"]) == ("arithmetic", 3, "0.7 · wizard − 0.2 · pirate")
    assert [parent["weight"] for parent in made["parents"]] == [0.7, -0.2] and made["notices"][0].startswith("At rank 3 it differs from")
    told = shell.run("adapter", "make", "wizard+pirate", "--name", "sum").out
    assert told == "sum was made from 1 · wizard + 1 · pirate. It is the exact sum, at rank 8.\n"
    assert "choose one of sum, ties, dare" in shell.refuse("adapter", "make", "wizard", "--name", "x", "--method", "slerp")
    shell.run("adapter", "make", "wizard+pirate", "--name", "merged", "--method", "dare", "--density", "0.5", "--seed", "3", "--json")
    shown = shell.run("adapter", "show", "merged", "--json").json
    assert (shown["config"]["combined_by"], shown["seed"]) == ("dare", 3) and shown["source"].endswith(", merged by DARE")


def test_a_refusal_is_one_sentence_and_status_2(shell: Shell, tmp_path: Path) -> None:
    said = shell.refuse("adapter", "import", put(tmp_path / "a", config(modules_to_save=["lm_head"])), "--name", "mine", start=True)
    assert said.startswith("The adapter's adapter_config.json uses modules_to_save, which replaces whole layers of the base")
    assert "There is no file or folder 'gone.zip'" in shell.refuse("adapter", "import", "gone.zip", "--name", "mine")
    assert "The Hub gave no repository 'nobody/nothing'" in shell.refuse("adapter", "import", "nobody/nothing", "--name", "mine")
