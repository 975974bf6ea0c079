"""Adapters made to do harm: each is refused with one plain sentence, in bounded memory, and nothing of it stays."""

import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from studio.adapters.sources import Repository
from studio.errors import InvalidInput, NameTaken, NotFound, StudioError
from studio.lora.files import CONFIG_FILE, WEIGHTS_FILE
from studio.services import Studio
from tests.conftest import ROOT, tiny_settings
from tests.hostile_adapters import ATTACKS, Attack, bomb, both, config, pack, put, weights
from tests.hub import COMMIT, running_hub
from tests.oracle import INNER

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")
PEAK = 120 << 20
FUZZ_SEEDS = 120


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Studio]:
    """One studio for all attacks: none of them may leave anything in it."""
    studio = Studio(tiny_settings(tmp_path_factory.mktemp("attacked") / "home"))
    studio.bases.fetch(str(tiny_base))
    home = tmp_path_factory.mktemp("good")
    record = studio.import_adapter(put(home / "a"), "good").record  # the good one is good, and all that is slow is imported
    studio.adapters.remove(record.id)
    yield studio
    studio.close()


def tree(home: Path) -> dict[str, int]:
    """Every file and folder of a home with its size, without what SQLite writes."""
    return {str(path.relative_to(home)): path.stat().st_size for path in home.rglob("*") if not path.name.startswith("studio.db")}


def refusal(studio: Studio, wanted: object, name: str = "mine") -> str:
    with pytest.raises(StudioError) as caught:
        studio.import_adapter(wanted, name)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_an_attack_is_refused_in_one_sentence_and_leaves_nothing(studio: Studio, tmp_path: Path, attack: Attack) -> None:
    home = studio.settings.home
    folder = tmp_path / "sent"
    folder.mkdir()
    wanted, before = attack.make(folder), tree(home)
    tracemalloc.start()
    try:
        sentence = refusal(studio, wanted, attack.asked)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(word in sentence for word in attack.words), sentence
    assert len(sentence) < 700 and sentence.isprintable() and sentence[0] in "'\"" + sentence[0].upper(), sentence
    assert sentence.endswith(".") and str(tmp_path) not in sentence and str(home) not in sentence, sentence
    assert peak < PEAK
    assert tree(home) == before and studio.adapters.all() == []
    assert not list(tmp_path.rglob("ran")) and not (ROOT / "ran").exists()


def test_there_are_many_attacks_and_each_has_its_name() -> None:
    assert len(ATTACKS) >= 40 and len({attack.name for attack in ATTACKS}) == len(ATTACKS)


# What a process holds that unpacks a bomb, by the system's own count.
WITNESS = """
import sys
from pathlib import Path
from studio.services import Studio
from tests.conftest import tiny_settings
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
studio = Studio(tiny_settings(Path(sys.argv[1])))
before = peak()
try:
    studio.import_adapter(sys.argv[2], "mine")
except Exception as error:
    print(type(error).__name__, error)
print(peak() - before)
studio.close()
"""


def test_a_bomb_of_400_megabytes_takes_no_memory(studio: Studio, tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.zip", size=400 << 20)
    command = [sys.executable, "-c", WITNESS, str(studio.settings.home), path]
    said, grown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said.startswith("InvalidInput The file 'bomb.zip' unpacks to more than 250 times its size")
    assert int(grown) < 60


def test_an_import_holds_one_tensor_at_a_time(studio: Studio, tmp_path: Path) -> None:
    shape = studio.importer.shapes.of(studio.bases.get("tiny"))
    large = {}
    for name, (d_out, d_in) in shape.layers.items():
        large |= {f"{INNER}{name}.lora_A.weight": torch.ones(1024, d_in), f"{INNER}{name}.lora_B.weight": torch.ones(d_out, 1024)}
    data, text = save(large), config(r=1024, target_modules="all-linear")
    packed = pack(tmp_path / "a.zip", [(CONFIG_FILE, text), (WEIGHTS_FILE, data)], zipfile.ZIP_STORED)
    for wanted in (packed, put(tmp_path / "a", text, data)):
        tracemalloc.start()
        record = studio.import_adapter(wanted, "large").record
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 << 20 < len(data) // 2  # what numpy and Python hold; the check at the end holds torch's tensors once
        assert record.size_bytes > len(data)
        studio.adapters.remove(record.id)


KILLED = """
import sys, time
from pathlib import Path
from studio.adapters import importing
from studio.services import Studio
from tests.conftest import tiny_settings
studio = Studio(tiny_settings(Path(sys.argv[1])))
write = importing.write_tensors
def slow(path, tensors, numbers):
    write(path, tensors, numbers)
    print("written", flush=True)
    time.sleep(60)
importing.write_tensors = slow
studio.import_adapter(sys.argv[2], "mine")
"""


def test_nothing_stays_of_an_import_that_was_killed(studio: Studio, tmp_path: Path) -> None:
    home, path = studio.settings.home, pack(tmp_path / "a.zip", both())
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(home), path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with pytest.raises(NotFound):
        studio.adapters.get("mine")
    left = list((home / "adapters").iterdir())
    assert len(left) == 2 and all(one.name.startswith(".partial-") for one in left) and studio.adapters.all() == []
    for one in left:
        os.utime(one, (time.time() - 2 * 86400,) * 2)
    Studio(tiny_settings(home)).close()  # what is left is swept a day later
    assert list((home / "adapters").iterdir()) == []


def test_an_adapter_over_the_limit_is_refused_before_it_is_read(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio.importer, "limits", type(studio.importer.limits)(3 << 10))
    assert "'adapter_model.safetensors' has 0.0 MB and the limit is 0.0 MB" in refusal(studio, put(tmp_path / "a"))
    packed = pack(tmp_path / "a.zip", [(CONFIG_FILE, config()), (WEIGHTS_FILE, bytes(9999))])
    assert "of 0.0 MB, and the limit is 0.0 MB" in refusal(studio, packed)


def test_ranks_that_would_grow_beyond_the_limit_are_refused(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio.importer, "limits", type(studio.importer.limits)(1 << 18))
    wide = weights(
        model__layers__0__self_attn__q_proj__lora_A__weight=torch.ones(448, 64),
        model__layers__0__self_attn__q_proj__lora_B__weight=torch.ones(64, 448),
    )
    sentence = refusal(studio, put(tmp_path / "a", config(rank_pattern={"q_proj": 448}), wide))
    assert "at one rank they take" in sentence and "train it with one rank" in sentence


def test_a_name_that_is_taken_or_looks_taken_is_refused_before_anything_is_read(studio: Studio, tmp_path: Path) -> None:
    record = studio.import_adapter(put(tmp_path / "a"), "wizard").record
    for name, words in (("wizard", "already an adapter named"), ("w\u0456zard", "looks like"), ("\uff57izard", "looks like")):
        with pytest.raises(NameTaken, match=words):
            studio.import_adapter("nothing/at-all", name)
    studio.adapters.remove(record.id)


def test_the_hub_gives_two_files_of_one_commit_and_nothing_else(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub("models", "me/lora") as hub:
        monkeypatch.setattr(studio.importer, "endpoint", hub.url)
        hub.files = {"adapter_config.json": config(), WEIGHTS_FILE: weights(), "evil.py": b"raise SystemExit", "training_args.bin": b"x"}
        found = studio.import_adapter("me/lora@main", "mine")
        assert found.record.source == f"me/lora@{COMMIT[:12]} on the Hub"
        assert {path.rsplit("/", 1)[1] for path in hub.asked if "/resolve/" in path} == {"adapter_config.json", WEIGHTS_FILE}
        assert all(COMMIT in path for path in hub.asked if "/resolve/" in path)
        studio.adapters.remove("mine")
        asked = len(hub.asked)
        for files, words in (
            ({"adapter_config.json": config(), "adapter_model.bin": b"x"}, "is a pickle"),
            ({"README.md": b"x"}, "There is no adapter_config.json in the repository 'me/lora'"),
            ({"adapter_config.json": bytes(2 << 20), WEIGHTS_FILE: weights()}, "has 2.0 MB and the limit is 1.0 MB"),
        ):
            hub.files = files
            assert words in refusal(studio, "me/lora")
        assert not [path for path in hub.asked[asked:] if "/resolve/" in path]
        hub.error = (404, "RepoNotFound")
        with pytest.raises(NotFound, match="'me/lora' is not on the Hub, or it is private"):
            studio.import_adapter("me/lora", "mine")
        hub.error = (404, "RevisionNotFound")
        assert "has no revision 'v2'" in refusal(studio, "me/lora@v2")
    assert studio.adapters.all() == [] and list((studio.settings.home / "adapters").iterdir()) == []


def test_broken_copies_are_imported_or_refused_and_nothing_else(studio: Studio, tmp_path: Path) -> None:
    generator, outcomes = random.Random(7), set[str]()
    folder = tmp_path / "a"
    for seed in range(FUZZ_SEEDS):
        texts = [bytearray(config()), bytearray(weights())]
        text = texts[seed % 3 > 0]
        if seed % 4 == 0:
            del text[generator.randrange(len(text)) :]
        else:  # mostly in the header, where every byte means something
            for _ in range(generator.randint(1, 3)):
                place = generator.randrange(min(len(text), 700))
                text[place] ^= 1 << generator.randrange(8)
        try:
            found = studio.import_adapter(put(folder, bytes(texts[0]), bytes(texts[1])), f"copy {seed}")
        except StudioError as error:
            assert str(error).isprintable() and str(error).endswith("."), str(error)
            outcomes.add("refused")
        else:
            outcomes.add("imported")
            studio.adapters.read(found.record)
            studio.adapters.remove(found.record.id)
    assert outcomes == {"refused", "imported"}
    assert list((studio.settings.home / "adapters").iterdir()) == []


def test_a_repository_is_never_taken_for_a_folder_of_this_machine(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    with running_hub("models", "me/lora") as hub:
        monkeypatch.setattr(studio.importer, "endpoint", hub.url)
        assert "'owner/name' is not on the Hub" in refusal(studio, Repository.read("owner/name"))
    for text in ("../../etc", "/etc/passwd", "owner/name@", "owner/name@a b", "a" * 5000, "~/x", "owner/name\0"):
        with pytest.raises(InvalidInput, match="is no Hub id"):
            Repository.read(text)
    for text in ("~nobody-here/x", "a" * 5000, "a\0b/c", "~"):
        assert "There is no" in refusal(studio, text)


def test_what_is_wrong_with_one_base_is_not_asked_of_another(studio: Studio, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no base named 'gpt'"):
        studio.import_adapter(put(tmp_path / "a"), "mine", "gpt")
    with pytest.raises(InvalidInput, match="is a pickle"):
        (tmp_path / "adapter_model.ckpt").write_bytes(b"x")
        studio.import_adapter([tmp_path / "adapter_model.ckpt", tmp_path / "a" / "adapter_config.json"], "mine")
