"""The command line as a user meets it: each mistake is one plain sentence, each command one JSON object."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.errors import IncompatibleAdapter
from studio.services import Studio
from tests.commands import GOOD, Outcome, Shell
from tests.conftest import tiny_settings
from tests.tiny import save_base

pytestmark = pytest.mark.usefixtures("warm")
STEPS = ["--set", "quantization=fp32", "--set", "rank=2", "--set", "max_steps=2"]


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, warm: None) -> Path:
    """A home with the tiny base, the samples and one adapter named bird."""
    home = tmp_path_factory.mktemp("stocked") / "home"
    studio = Studio(tiny_settings(home))
    studio.bases.fetch(str(tiny_base))
    job = studio.train("Angry bird", "bird", overrides={"quantization": "fp32", "rank": 2, "max_steps": 2})
    assert studio.train_and_wait(job, lambda event: None).state == "done"
    studio.close()
    return home


@pytest.fixture
def shell(stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    """A command line on a copy of the stocked home."""
    return Shell(Path(shutil.copytree(stocked, tmp_path / "home")), monkeypatch, capfd)


@pytest.fixture(scope="module")
def second_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "other", seed=1)


# Files


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", "", ["'empty.jsonl' is empty", "at least one row"]),
        ("blank.csv", "\n \n", ["'blank.csv' is empty"]),
        ("header.csv", "prompt,completion\n", ["no rows in header.csv", "add at least one example"]),
        ("bad.jsonl", GOOD * 2 + '{"prompt": \n' + GOOD, ["bad.jsonl, line 3", "not valid JSON", "Nothing was added"]),
        ("bad.json", f"[{GOOD},\n{GOOD}\n{GOOD}]", ["bad.json, line 5", "comma"]),
        ("utf16.csv", b"\xff\xfea\x00,\x00\x00\xd8", ["'utf16.csv' begins as UTF-16", "save it again with the encoding UTF-8"]),
        ("columns.csv", "colour,size\nred,3\n", ["columns are colour, size", "prompt and completion", "map a role"]),
        ("field.jsonl", GOOD + '{"prompt": "Hello"}\n', ["line 2, field 'completion'", "missing", "add it or delete the row"]),
        ("answer.jsonl", GOOD + '{"prompt": "Hello", "completion": " "}\n', ["line 2, field 'completion'", "empty"]),
        ("cells.csv", "prompt,completion\np,c\na,b,c\n", ["cells.csv, line 3", "3 cells", "header has 2", "quotes"]),
        ("surrogate.json", '[{"prompt": "p", "completion": "\\ud83d"}]', ["line 1", "half of a character", "write the whole character"]),
        ("rows.docx", GOOD, ["'rows.docx' ends in .docx", ".jsonl", ".csv", ".xlsx"]),
        ("nul.txt", "a\0b", ["'nul.txt' is not text", "line 1 holds a NUL byte", "one with the right ending"]),
        ("list.jsonl", GOOD + "[1, 2]\n", ["line 2", "not an object"]),
        ("lists.jsonl", "[1, 2]\n", ["The first row is a list, not an object", "write each row as"]),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_its_place_and_its_mend(
    shell: Shell, name: str, content: str | bytes, words: list[str]
) -> None:
    sentence = shell.refuse("dataset", "add", shell.write(name, content), "--name", "mine")
    assert all(word in sentence for word in words), sentence


def test_a_file_that_is_not_there_is_told(shell: Shell) -> None:
    assert "no file 'gone.csv'" in shell.refuse("dataset", "add", shell.home / "gone.csv", "--name", "mine")


def test_a_process_of_its_own_refuses_in_one_sentence_too(shell: Shell) -> None:
    path = shell.write("bad.jsonl", GOOD + "{\n")
    assert "bad.jsonl, line 2" in shell.refuse("dataset", "add", path, "--name", "mine", start=True)
    assert "no adapter named 'nobody'" in shell.refuse("chat", "--adapter", "nobody", "Hello", start=True)


def test_a_file_over_the_limit_is_refused(shell: Shell) -> None:
    shell.monkeypatch.setenv("STUDIO_MAX_UPLOAD_BYTES", str(1 << 20))
    sentence = shell.refuse("dataset", "add", shell.write("big.jsonl", GOOD * 50_000), "--name", "mine")
    assert "'big.jsonl' has 2.2 MB and the limit is 1.0 MB; split it into parts" in sentence


def test_a_file_of_a_gigabyte_and_a_byte_is_refused_without_being_read(shell: Shell) -> None:
    path = shell.home.parent / "huge.jsonl"
    with path.open("wb") as handle:
        handle.truncate((1 << 30) + 1)
    read_before = bytes_read()
    sentence = shell.refuse("dataset", "add", path, "--name", "mine")
    assert bytes_read() - read_before < 64 << 20
    assert "'huge.jsonl' has 1,024.0 MB and the limit is 1,024.0 MB" in sentence


def bytes_read() -> int:
    """What this process has asked the system to read so far."""
    import psutil

    return int(psutil.Process().io_counters().read_chars)


# Rows that are too long

LONG = json.dumps({"prompt": "Hello", "completion": "a long answer " * 60}) + "\n"


def train_on(shell: Shell, rows: str, name: str, *changes: str) -> Outcome:
    assert shell.run("dataset", "add", shell.write(f"{name}.jsonl", rows), "--name", name, "--json").status == 0
    options = [part for change in changes for part in ("--set", change)]
    return shell.run("train", "--dataset", name, "--name", name, *STEPS, *options, "--wait", "--json")


def notices(shell: Shell, job: str) -> list[str]:
    return [e["text"] for e in flat_events(shell, job) if e["kind"] == "notice"]


def flat_events(shell: Shell, job: str) -> list[dict[str, Any]]:
    return [{**e["data"], **e} for e in shell.run("job", "logs", job, "--json").json["events"]]


@pytest.mark.parametrize(
    ("over_length", "truncated", "dropped", "told"),
    [
        ("truncate", 2, 0, "2 row(s) are longer than max_length and were cut off at it."),
        ("drop", 0, 2, "2 row(s) do not fit max_length and were left out."),
    ],
)
def test_rows_over_max_length_are_cut_or_left_out_as_chosen_and_told(
    shell: Shell, over_length: str, truncated: int, dropped: int, told: str
) -> None:
    outcome = train_on(shell, GOOD * 6 + LONG * 2, "long", f"over_length={over_length}", "max_length=40", "held_out=0", "batch_size=8")
    job = outcome.json
    assert job["state"] == "done" and told in outcome.err and notices(shell, job["job"]) == [told]
    metrics = shell.run("adapter", "show", "long", "--json").json["metrics"]
    assert (metrics["truncated"], metrics["dropped"]) == (truncated, dropped)
    short = metrics["tokens"] - 2 * 40 * truncated
    assert short % (2 * 6) == 0 and 0 < short // (2 * 6) <= 40  # two steps, each over all rows that were left


def test_a_job_whose_rows_are_all_left_out_fails_with_what_to_do(shell: Shell) -> None:
    outcome = train_on(shell, LONG * 4, "none", "over_length=drop", "max_length=40")
    assert outcome.status == 1 and "Traceback" not in outcome.err
    assert outcome.err.rstrip().endswith("No row is left to train on; raise max_length or add examples.")
    result = json.loads(outcome.out)
    assert (result["state"], result["adapter"]) == ("failed", "none")
    assert (
        shell.run("job", "show", result["job"], "--json").json["reason"] == "No row is left to train on; raise max_length or add examples."
    )
    assert "no adapter named 'none'" in shell.refuse("adapter", "show", "none")
    assert len(list((shell.home / "adapters").iterdir())) == 1


# Names and options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--dataset", "Gulls", "--name", "x"], ["no dataset named 'Gulls'", "'Angry bird'"]),
        (["train", "--dataset", "Angry bird", "--name", "x", "--base", "gpt"], ["no base named 'gpt'", "'tiny'", "base fetch gpt"]),
        (["train", "--dataset", "Angry bird", "--name", "bird"], ["already an adapter named 'bird'", "choose another name"]),
        (["train", "--dataset", "Angry bird", "--name", "base"], ["'base' means the base model itself"]),
        (["train", "--dataset", "Angry bird", "--name", " "], ["has no name"]),
        (["train", "--dataset", "Angry bird", "--name", "x" * 81], ["81 characters", "at most 80"]),
        (["train", "--dataset", "Angry bird", "--name", "x", "--set", "lr=1"], ["no option 'lr'", "learning_rate"]),
        (["train", "--dataset", "Angry bird", "--name", "x", "--set", "rank"], ["'rank' is not key=value"]),
        (["train", "--dataset", "Angry bird", "--name", "x", "--set", "rank=0"], ["option rank is '0'", "Range 1 to 256"]),
        (["train", "--dataset", "Angry bird", "--name", "x", "--set", "epochs=many"], ["option epochs is 'many'", "Range 0 to 100"]),
        (["train", "--dataset", "Angry bird", "--name", "x", "--set", "over_length=cut"], ["'truncate' or 'drop'"]),
        (["train", "--dataset", "Angry bird", "--name", "x", "--set", "quantization=int3"], ["option quantization is 'int3'", "'nf4'"]),
        (["train", "--dataset", "Angry bird", "--name", "x", "--sweep", "rank"], ["'rank' is not OPTION=VALUE,VALUE", "rank=8,16"]),
        (["train", "--dataset", "Angry bird", "--name", "x", "--sweep", "rank=4,0"], ["option rank is '0'", "Range 1 to 256"]),
        (["job", "compare", "nowhere"], ["no sweep 'nowhere'"]),
        (["job", "retry", "nowhere", "--from-start"], ["no job 'nowhere'"]),
        (["train", "--dataset", "Angry bird", "--name", "x", "--preset", "fast"], ["no preset 'fast'", "quick, balanced, thorough"]),
        (["dataset", "show", "Gulls"], ["no dataset named 'Gulls'", "'Angry bird'"]),
        (["dataset", "rm", "Gulls"], ["no dataset named 'Gulls'"]),
        (["adapter", "show", "gull"], ["no adapter named 'gull'", "'bird'"]),
        (["adapter", "rename", "gull", "x"], ["no adapter named 'gull'"]),
        (["adapter", "rename", "bird", "base"], ["'base' means the base model itself"]),
        (["adapter", "export", "bird", "--format", "onnx"], ["no export format 'onnx'", "peft"]),
        (["adapter", "export", "gull"], ["no adapter named 'gull'"]),
        (["adapter", "rm", "gull"], ["no adapter named 'gull'"]),
        (["job", "show", "nothing"], ["no job 'nothing'", "job list"]),
        (["job", "logs", "nothing"], ["no job 'nothing'"]),
        (["job", "cancel", "nothing"], ["no job 'nothing'"]),
        (["job", "retry", "nothing"], ["no job 'nothing'"]),
        (["chat", "--adapter", "gull", "Hello"], ["no adapter named 'gull'", "'bird'"]),
        (["chat", " "], ["no message to answer", "type one"]),
        (["chat", "--max-tokens", "0", "Hello"], ["option max_tokens is 0", "from 1 to"]),
        (["chat", "--temperature", "9", "Hello"], ["option temperature is 9.0", "from 0.0 to 5.0"]),
        (["chat", "--top-p", "0", "Hello"], ["option top_p is 0.0"]),
        (["chat", "--seed", str(2**70), "Hello"], ["option seed is", "from 0 to"]),
        (["chat", "--max-tokens", "20000", "Hello"], ["context is 512", "lower the length"]),
    ],
)
def test_a_name_or_an_option_that_is_wrong_is_told_with_what_there_is(shell: Shell, arguments: list[str], words: list[str]) -> None:
    sentence = shell.refuse(*arguments)
    assert all(word in sentence for word in words), sentence


def test_a_dataset_cannot_be_added_in_a_form_or_under_a_name_that_is_not_to_be_had(shell: Shell) -> None:
    path = shell.write("good.jsonl")
    assert "already a dataset named 'Angry bird'" in shell.refuse("dataset", "add", path, "--name", "Angry bird")
    assert "'Base' means the base model itself" in shell.refuse("dataset", "add", path, "--name", "Base")
    assert "no format 'alpaca'; choose auto, messages" in shell.refuse("dataset", "add", path, "--name", "x", "--format", "alpaca")
    assert "it needs messages" in shell.refuse("dataset", "add", path, "--name", "x", "--format", "messages")
    assert "'speaker=prompt' is not ROLE=COLUMN" in shell.refuse("dataset", "add", path, "--name", "x", "--map", "speaker=prompt")


def test_a_name_that_a_waiting_job_will_use_is_taken(shell: Shell) -> None:
    job = shell.run("train", "--dataset", "Angry bird", "--name", "owl", *STEPS, "--json").json["job"]
    sentence = shell.refuse("train", "--dataset", "Angry bird", "--name", "owl", *STEPS)
    assert job in sentence and "already makes an adapter named 'owl'" in sentence


def test_an_adapter_cannot_take_anothers_name(shell: Shell) -> None:
    shell.run("train", "--dataset", "Boy wizard", "--name", "wizard", *STEPS, "--wait", "--json")
    assert "already an adapter named 'bird'" in shell.refuse("adapter", "rename", "wizard", "bird")


def test_a_dataset_that_a_queued_job_needs_stays(shell: Shell) -> None:
    job = shell.run("train", "--dataset", "Boy wizard", "--name", "wizard", *STEPS, "--json").json["job"]
    assert "'Boy wizard' is needed by 1 unfinished job(s); cancel them first or wait" in shell.refuse("dataset", "rm", "Boy wizard")
    assert shell.run("job", "cancel", job, "--json").json == {"job": job, "state": "cancelled"}
    assert "is cancelled already" in shell.refuse("job", "cancel", job)
    assert shell.run("dataset", "rm", "Boy wizard", "--json").json == {"removed": "Boy wizard", "adapters_that_learned_from_it": []}


def test_a_job_whose_dataset_was_deleted_meanwhile_cannot_be_retried_into_a_riddle(shell: Shell) -> None:
    job = shell.run("train", "--dataset", "Boy wizard", "--name", "wizard", *STEPS, "--json").json["job"]
    shell.run("job", "cancel", job)
    shell.run("dataset", "rm", "Boy wizard")
    sentence = shell.refuse("job", "retry", job)
    assert "'Boy wizard'" in sentence and "deleted" in sentence


def test_a_bad_variable_is_told_with_its_name(shell: Shell) -> None:
    for name, value in (("STUDIO_QUANTIZATION", "int3"), ("STUDIO_PORT", "http"), ("STUDIO_LOG_LEVEL", "loud")):
        shell.monkeypatch.setenv(name, value)
        assert f"The environment variable {name} is {value!r}" in shell.refuse("dataset", "list")
        shell.monkeypatch.delenv(name)


# Bases


def broken_base(tiny_base: Path, folder: Path, **config: Any) -> Path:
    """A copy of the tiny base with some keys of its config changed."""
    shutil.copytree(tiny_base, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_a_base_that_is_nowhere_is_told(shell: Shell) -> None:
    assert "'gpt' is neither a folder, nor a Hub id like owner/name" in shell.refuse("base", "fetch", "gpt")


def test_a_folder_without_safetensors_is_no_base(shell: Shell, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    words = "The folder 'photos' has no config.json with *.safetensors; give a folder saved by transformers."
    assert shell.refuse("base", "fetch", tmp_path / "photos") == words
    folder = broken_base(tiny_base, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "'pickled' has no config.json with *.safetensors" in shell.refuse("base", "fetch", folder)


@pytest.mark.parametrize("text", ["{", "[]", "", '"text"', "\xff"])
def test_a_base_whose_config_is_no_object_is_told_with_its_folder(shell: Shell, tiny_base: Path, tmp_path: Path, text: str) -> None:
    folder = broken_base(tiny_base, tmp_path / "broken")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "The base 'broken' cannot be read" in shell.refuse("base", "fetch", folder)


def test_a_base_whose_weights_are_cut_off_is_told_with_its_folder(shell: Shell, tiny_base: Path, tmp_path: Path) -> None:
    folder = broken_base(tiny_base, tmp_path / "broken")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "The base 'broken' cannot be read" in shell.refuse("base", "fetch", folder)


@pytest.mark.parametrize(
    "config",
    [{"model_type": "no-such-model"}, {"model_type": None}, {"hidden_size": 96}, {"num_attention_heads": "four"}, {"model_type": "vit"}],
)
def test_a_base_that_cannot_be_loaded_is_told_and_not_kept(shell: Shell, tiny_base: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    folder = broken_base(tiny_base, tmp_path / "broken", **config)
    assert "The base 'broken' cannot be loaded" in shell.refuse("base", "fetch", folder)


def test_a_base_that_lacks_weights_is_told_and_not_filled_with_random_ones(shell: Shell, tiny_base: Path, tmp_path: Path) -> None:
    folder = broken_base(tiny_base, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sentence = shell.refuse("base", "fetch", folder)
    assert "The base 'broken' cannot be loaded: its files lack the weights model.layers.1.mlp.up_proj.weight" in sentence


def test_a_base_that_cannot_be_loaded_is_told_without_the_libraries_noise(shell: Shell, tiny_base: Path, tmp_path: Path) -> None:
    sentence = shell.refuse("base", "fetch", broken_base(tiny_base, tmp_path / "broken", hidden_size=96), start=True)
    assert "its weights have other shapes than its config.json says" in sentence


def test_a_base_without_a_tokenizer_is_told_and_not_kept(shell: Shell, tiny_base: Path, tmp_path: Path) -> None:
    folder = broken_base(tiny_base, tmp_path / "mute")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "The tokenizer of the base 'mute' cannot be loaded" in shell.refuse("base", "fetch", folder)


def test_two_bases_cannot_have_one_name(shell: Shell, second_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(second_base, tmp_path / "tiny"))
    assert "Another base is already named 'tiny'; rename the folder" in shell.refuse("base", "fetch", folder)


@pytest.fixture
def two_bases(shell: Shell, second_base: Path) -> Iterator[Studio]:
    studio = Studio(tiny_settings(shell.home))
    studio.bases.fetch(str(second_base))
    yield studio
    studio.close()


def test_an_adapter_of_another_base_is_refused_by_name(two_bases: Studio) -> None:
    prompt = [{"role": "user", "content": "Hello"}]
    two_bases.reply(prompt, "base", "other", max_tokens=2)  # the second base is resident now
    for base in ("other", None):
        with pytest.raises(IncompatibleAdapter) as caught:
            two_bases.reply(prompt, "bird", base, max_tokens=2)
        sentence = str(caught.value)
        assert "'bird' was trained on another base than the resident 'other'" in sentence and "make its own base resident" in sentence
    assert two_bases.reply(prompt, "bird", "tiny", max_tokens=2).stamp.base == "tiny"
    assert [a.name for a in two_bases.adapters_of(two_bases.bases.get("tiny"))] == ["bird"]
    assert two_bases.adapters_of(two_bases.bases.get("other")) == []


def test_an_adapter_whose_files_are_gone_or_broken_is_told(shell: Shell) -> None:
    (folder,) = (shell.home / "adapters").iterdir()
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    assert "The files of adapter 'bird' cannot be used" in shell.refuse("chat", "--adapter", "bird", "Hello")
    weights.unlink()
    assert "The files of adapter 'bird' cannot be used" in shell.refuse("chat", "--adapter", "bird", "Hello")
    shutil.rmtree(folder)
    assert "The files of adapter 'bird' cannot be used" in shell.refuse("adapter", "export", "bird")
    assert shell.run("adapter", "rm", "bird", "--json").json == {"removed": "bird"}


def test_an_export_that_cannot_be_written_is_told(shell: Shell) -> None:
    blocked = shell.write("a-file", "x")
    assert "could not be written" in shell.refuse("adapter", "export", "bird", "--out", blocked)


# What works: one JSON object a command


def test_an_estimate_says_the_memory_and_queues_nothing(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    types: set[object] = set()
    monkeypatch.setattr(torch, "set_default_dtype", types.add)  # it would change for the chat's thread as well
    asked = ["train", "--dataset", "Angry bird", "--name", "bird", *STEPS, "--estimate"]
    before = shell.kept()
    found = shell.run(*asked, "--json").json
    assert set(found) == {"total_mb", "parts", "available_mb", "advice"} and found["total_mb"] == sum(found["parts"].values())
    assert types <= {torch.float32}
    assert re.fullmatch(r"Needs about [\d.]+ GB \(.+\); [\d.]+ GB are free\.\n", shell.run(*asked).out)

    def needs(*changes: str) -> int:
        total: int = shell.run(*asked, *changes, "--json").json["total_mb"]
        return total

    budgets = "token_budget=512,32768"
    assert needs("--sweep", budgets) == needs("--set", "token_budget=32768") > needs("--set", "token_budget=512")
    rows = ["--set", "token_budget=16", "--set"]  # a row is computed whole, and no row of this set has 512 tokens
    assert needs(*rows, "max_length=512") == needs(*rows, "max_length=4096") > needs(*rows, "max_length=16")
    assert shell.kept() == before


def test_a_sweep_trains_one_adapter_for_each_value_and_compares_them(shell: Shell) -> None:
    sweep = ["train", "--dataset", "Angry bird", "--name", "owl", *STEPS, "--sweep", "seed=0,1"]
    assert "The option rank is swept and also set to 2" in shell.refuse(*sweep, "--sweep", "rank=2,4")
    done = shell.run(*sweep, "--wait", "--json").json
    assert [(job["state"], job["adapter"]) for job in done["jobs"]] == [("done", "owl seed=0"), ("done", "owl seed=1")]
    compared = shell.run("job", "compare", done["group"], "--json").json
    best = min(done["jobs"], key=lambda job: job["eval_loss"])
    assert compared["name"] == "owl" and [job["options"] for job in compared["jobs"]] == [{"seed": "0"}, {"seed": "1"}]
    assert [job["job"] for job in compared["jobs"] if job["best"]] == [best["job"]]
    lines = shell.run("job", "compare", done["group"]).out.splitlines()
    assert len(lines) == 2 and re.search(r"done  seed=\d  held-out loss [\d.]+  \d+ tokens/s  best$", "\n".join(lines), re.M)
    assert "nothing to cancel" in shell.refuse("job", "cancel", done["group"])


def test_a_waiting_sweep_is_cancelled_by_its_group_and_a_job_of_it_retried(shell: Shell) -> None:
    queued = shell.run("train", "--dataset", "Angry bird", "--name", "owl", "--sweep", "rank=2,4", "--json").json
    jobs = {job["job"] for job in queued["jobs"]}
    cancelled = shell.run("job", "cancel", queued["group"], "--json").json
    assert cancelled["group"] == queued["group"] and set(cancelled["cancelled"]) == jobs
    job = jobs.pop()
    retried = shell.run("job", "retry", job, "--from-start", "--json").json
    assert retried == {"job": job, "state": "queued", "resumes_at_step": None}


def test_a_trained_adapter_goes_its_way_through_every_command(shell: Shell, tmp_path: Path) -> None:
    outcome = shell.start("train", "--dataset", "Angry bird", "--name", "owl", *STEPS, "--wait", "--json")
    job = outcome.json
    keys = {"job", "state", "adapter", "tokens", "seconds", "tokens_per_s", "peak_rss_mb", "train_loss", "eval_loss", "steps"}
    assert set(job) == keys and (job["state"], job["adapter"], job["steps"]) == ("done", "owl", 2)
    assert all(job[key] > 0 for key in ("tokens", "seconds", "tokens_per_s", "peak_rss_mb", "train_loss", "eval_loss"))
    assert "step 2/2" in outcome.err and "Traceback" not in outcome.err

    assert [a["name"] for a in shell.run("adapter", "list", "--json").json["adapters"]] == ["owl", "bird"]
    shown = shell.run("adapter", "show", "owl", "--json").json
    assert shown["job_id"] == job["job"] and shown["rank"] == 2 and shown["metrics"]["steps"] == 2
    assert Path(shown["path"], "adapter_config.json").is_file()

    renamed = shell.run("adapter", "rename", "owl", "night owl", "--json").json
    assert renamed == {"id": shown["id"], "name": "night owl"}
    exported = shell.run("adapter", "export", "night owl", "--format", "peft", "--out", tmp_path / "out", "--json").json
    with zipfile.ZipFile(exported["path"]) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())
        archive.extractall(tmp_path / "unpacked")
    assert all(key.startswith("base_model.model.") for key in load_file(tmp_path / "unpacked" / "adapter_model.safetensors"))

    assert shell.run("job", "list", "--json").json["jobs"][0]["id"] == job["job"]
    assert shell.run("job", "show", job["job"], "--json").json["state"] == "done"
    logs = shell.run("job", "logs", job["job"], "--json").json
    assert [e["kind"] for e in logs["events"]][-1] == "done" and isinstance(logs["log"], str)
    assert "only a failed or cancelled job can be retried" in shell.refuse("job", "retry", job["job"])

    assert shell.run("adapter", "rm", "night owl", "--json").json == {"removed": "night owl"}
    assert [a["name"] for a in shell.run("adapter", "list", "--json").json["adapters"]] == ["bird"]
    assert not Path(shown["path"]).exists()


def test_chat_answers_with_its_stamp(shell: Shell) -> None:
    record = shell.run("adapter", "show", "bird", "--json").json
    reply = shell.start("chat", "--adapter", "bird", "--greedy", "--max-tokens", "8", "Hello", "--json").json
    assert {"text", "adapter", "adapter_sha256", "swap_ms", "ttft_ms", "tokens", "tokens_per_s"} <= set(reply)
    assert (reply["adapter"], reply["adapter_sha256"]) == ("bird", record["sha256"])
    assert 1 <= reply["tokens"] <= 8 and reply["swap_ms"] > 0 and reply["ttft_ms"] > 0
    again = shell.run("chat", "--adapter", "bird", "--greedy", "--max-tokens", "8", "Hello", "--json").json
    assert again["text"] == reply["text"]
    base = shell.run("chat", "--adapter", "base", "--greedy", "--max-tokens", "8", "--system", "Be brief.", "Hello", "--json").json
    assert (base["adapter"], base["adapter_sha256"], base["swap_ms"]) == ("base", "", 0.0)
    seeded = [shell.run("chat", "--seed", "5", "--max-tokens", "8", "Hello", "--json").json["text"] for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_a_dataset_comes_is_shown_and_goes(shell: Shell) -> None:
    path = shell.write("mine.csv", "frage;antwort\nHallo;Guten Tag!\nWer?;Ich.\n")
    mapped = ["--map", "prompt=frage", "--map", "completion=antwort"]
    added = shell.run("dataset", "add", path, "--name", "mine", *mapped, "--json").json
    assert (added["name"], added["form"], added["rows"], added["turns"], added["sample"]) == ("mine", "prompt-completion", 2, 4, False)
    assert len(added["content_hash"]) == 64
    assert shell.run("dataset", "list", "--json").json["datasets"][0]["name"] == "mine"
    shown = shell.run("dataset", "show", "mine", "--rows", "1", "--json").json
    expected = [[{"role": "user", "content": "Hallo"}, {"role": "assistant", "content": "Guten Tag!"}]]
    rows = [{"conversation": expected[0], "extra": {}, "line": 2, "file": "mine.csv"}]
    assert shown == added | {"preview": expected, "rows_shown": rows}
    assert shell.run("dataset", "rm", "mine", "--json").json == {"removed": "mine", "adapters_that_learned_from_it": []}
    assert not (shell.home / "datasets" / added["id"]).exists()


def test_the_same_rows_have_the_same_hash_in_every_format(shell: Shell) -> None:
    rows = [{"prompt": "p", "completion": "ç"}, {"prompt": "q", "completion": "d"}]
    written = {
        "a.jsonl": "\n".join(json.dumps(row) for row in rows),
        "a.json": json.dumps(rows, ensure_ascii=False, indent=1),
        "a.csv": "prompt,completion\np,ç\nq,d\n",
    }
    hashes = {shell.run("dataset", "add", shell.write(n, t), "--name", n, "--json").json["content_hash"] for n, t in written.items()}
    assert len(hashes) == 1


def test_bases_are_listed_and_fetched_once(shell: Shell, tiny_base: Path) -> None:
    (base,) = shell.run("base", "list", "--json").json["bases"]
    assert {"name", "path", "source", "fingerprint"} <= set(base) and base["name"] == "tiny"
    again = shell.run("base", "fetch", tiny_base, "--json").json
    assert {"base", "path", "source", "fingerprint"} <= set(again)
    assert (again["base"], again["path"], again["fingerprint"]) == ("tiny", base["path"], base["fingerprint"])
    assert set(again["quantization_loss"]) == {"bf16", "int8", "nf4"}


def test_logs_never_mix_with_the_object_on_stdout(shell: Shell) -> None:
    shell.monkeypatch.setenv("STUDIO_LOG_LEVEL", "DEBUG")
    outcome = shell.start("dataset", "list", "--json")
    assert len(outcome.json["datasets"]) == 5 and "Traceback" not in outcome.err


def test_what_a_person_reads_without_json_is_short_and_plain(shell: Shell) -> None:
    readers: dict[tuple[str, ...], Callable[[str], bool]] = {
        ("adapter", "list"): lambda text: text.startswith("bird  LoRA, rank 2"),
        ("dataset", "list"): lambda text: "Angry bird  version 1  96 rows  messages" in text,
        ("base", "list"): lambda text: text.startswith("tiny"),
        ("job", "list"): lambda text: "done  bird" in text,
    }
    for arguments, reads_well in readers.items():
        outcome = shell.run(*arguments)
        assert outcome.status == 0 and reads_well(outcome.out), outcome
    shell.run("adapter", "rm", "bird")
    assert shell.run("adapter", "list").out == "There are no adapters yet.\n"
