"""Evaluations on a tiny base: numbers that are right, several voices at once, and nothing lost by a stop or a death."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from storage.evaluations import DONE, INTERRUPTED, STOPPED
from studio.datasets.rendering import render, render_all
from studio.errors import InvalidInput, NotFound
from studio.evaluation.cases import held_out_rows
from studio.evaluation.metrics import chrf, exact_match, rouge, token_f1
from studio.evaluation.plan import Plan
from studio.services import Studio
from studio.training.config import make_config
from studio.training.loop import Trainer
from tests.commands import Shell
from tests.conftest import ROOT
from tests.serving import add_adapters
from tests.tiny import make_model
from tests.trainers import Events

QUESTIONS = ["Hello", "What is the time?", "Why?", "Describe the sea to a child", "Who are you?", "Tell me a joke."]
LOSS = Plan(metrics=("loss",))


def add_rows(studio: Studio, count: int = 6, name: str = "talk", long: bool = False) -> None:
    rows = [{"prompt": QUESTIONS[i % 6] + f" {i}", "completion": f"The answer is {i}."} for i in range(count)]
    if long:
        rows[1]["completion"] = "word and word " * 400
    path = studio.settings.home / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    studio.datasets.add([path], name)


@pytest.fixture
def filled(studio: Studio) -> Studio:
    add_adapters(studio)
    add_rows(studio)
    return studio


def test_every_voice_meets_every_row_and_the_numbers_are_right(filled: Studio) -> None:
    voices = ["base", "wizard", "pirate:0.5+wizard:0.5"]
    told: list[tuple[int, int]] = []
    record = filled.evaluations.add("talk", voices, Plan(max_tokens=12))
    found = filled.evaluations.finish(record.id, lambda done, of: told.append((done, of)))
    assert found.record.state == DONE and (found.done, found.of) == (18, 18) and told[-1] == (18, 18)
    assert [voice.label for voice in found.voices] == ["base", "wizard", "pirate:0.5+wizard:0.5"]
    assert [bool(voice.adapter_id) for voice in found.voices] == [False, True, False]
    assert len({voice.values["loss"] for voice in found.voices}) == 3

    base = found.voices[0].values
    nats, tokens = base_loss(filled)
    assert base["loss"] == pytest.approx(nats / tokens, rel=2e-4) and base["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=2e-3)
    read = filled.evaluations.read(record.id, 0, 100)
    assert [case.reference for case, _ in read] == [f"The answer is {i}." for i in range(6)] and read[1][0].prompt == "What is the time? 1"
    for case, answers in read:
        for one, voice in zip(answers, voices, strict=True):
            asked = [{"role": "user", "content": case.prompt}]
            assert one.answer == filled.reply(asked, voice, max_tokens=12, temperature=0.0).text
            wanted = {"chrf": chrf(one.answer, case.reference), "f1": token_f1(one.answer, case.reference)}
            wanted |= {"exact": exact_match(one.answer, case.reference), **rouge(one.answer, case.reference)}
            assert one.scores == pytest.approx(wanted)
    for voice in found.voices:
        mine = [answers[voice.place].scores["chrf"] for _, answers in read]
        assert voice.values["chrf"] == pytest.approx(sum(mine) / 6)


def base_loss(studio: Studio) -> tuple[float, int]:
    """Nats and trained tokens of the dataset, by transformers, a row at a time."""
    backend = studio.chat.make_resident(studio.default_base())
    model = AutoModelForCausalLM.from_pretrained(str(studio.bases.path(studio.default_base())))
    nats, count = 0.0, 0
    for conversation in studio.datasets.store(studio.datasets.get("talk")).conversations():
        row = render(backend.tokenizer, conversation)
        counted = torch.tensor(row.trained[1:])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.token_ids])).logits[0, :-1]
        nats += float(F.cross_entropy(logits[counted], torch.tensor(row.token_ids[1:])[counted], reduction="sum"))
        count += int(counted.sum())
    return nats, count


def test_some_rows_are_drawn_by_the_seed(filled: Studio) -> None:
    def rows(seed: int) -> list[int]:
        record = filled.evaluations.add("talk", ["base"], Plan(metrics=("loss",), rows=3, seed=seed))
        return [case.row for case, _ in filled.evaluations.read(record.id, 0, 9)]

    assert rows(1) == rows(1) == sorted(rows(1)) and len(rows(1)) == 3
    assert len({tuple(rows(seed)) for seed in range(6)}) > 1


def test_held_out_rows_are_those_that_the_trainer_keeps(studio: Studio) -> None:
    add_rows(studio, 30, long=True)
    add_adapters(studio)
    dataset, tokenizer = studio.datasets.get("talk"), studio.chat.make_resident(studio.default_base()).tokenizer
    config = make_config("quick", {"held_out": 0.3, "seed": 5, "max_length": 200, "over_length": "drop", "quantization": "fp32"})
    record = replace(studio.adapters.get("wizard"), dataset_hash=dataset.content_hash, config=config.model_dump())
    rendered = render_all(tokenizer, studio.datasets.store(dataset).conversations(), config.max_length, config.over_length)
    assert rendered.dropped == 1  # or numbers of rows and of examples would be the same
    wanted = Trainer(make_model(vocab=len(tokenizer)), rendered.examples, config, Events()).held
    found = held_out_rows(studio.datasets.store(dataset), dataset, [record], tokenizer)
    ours = [render(tokenizer, studio.datasets.store(dataset).page(row, 1)[0].conversation) for row in found]
    assert [row.token_ids for row in ours] == [row.token_ids for row in wanted] and len(found) == 9
    with pytest.raises(InvalidInput, match="held out different rows"):
        other = replace(record, name="other", config={**record.config, "seed": 6})
        held_out_rows(studio.datasets.store(dataset), dataset, [record, other], tokenizer)


def test_a_row_that_is_too_long_is_told_and_the_others_count(studio: Studio) -> None:
    add_rows(studio, long=True)
    found = studio.evaluations.finish(studio.evaluations.add("talk", ["base"], Plan(metrics=("loss", "f1"), max_tokens=4)).id)
    [voice] = found.voices
    assert found.record.state == DONE and (voice.rows, voice.errors) == (6, 1) and "loss" in voice.values
    [error] = [one.error for _, answers in studio.evaluations.read(found.record.id, 0, 9) for one in answers if one.error]
    assert "this base's context is 512" in error


@pytest.mark.parametrize(
    ("voices", "plan", "sentence"),
    [
        ([], LOSS, "No adapter is chosen"),
        (["base", "base"], LOSS, "'base' is chosen twice"),
        (["wizard", "id1"], LOSS, "'wizard' is chosen twice"),
        (["base"], Plan(rows=-1), "The option rows is -1"),
        (["base"], Plan(metrics=()), "No metric is chosen"),
        (["wizard"], Plan(held_out=True), "needs an adapter that was trained on 'talk'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_kept(filled: Studio, voices: list[str], plan: Plan, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        filled.evaluations.add("talk", voices, plan)
    assert filled.evaluations.all() == []


def test_a_stopped_one_goes_on_and_does_nothing_twice(filled: Studio) -> None:
    add_rows(filled, 60, "many")
    record = filled.evaluations.add("many", ["base", "wizard"], Plan(metrics=("f1", "loss"), max_tokens=24))
    some = threading.Event()
    filled.evaluations.start(record.id, lambda done, _of: some.set() if done >= 5 else None)
    assert some.wait(60)
    with pytest.raises(InvalidInput, match="runs already"):
        filled.evaluations.start(record.id)
    filled.evaluations.stop(record.id)
    until = time.monotonic() + 20
    while filled.evaluations._runs and time.monotonic() < until:
        time.sleep(0.02)
    stopped = filled.evaluations.get(record.id)
    assert stopped.record.state == STOPPED and 5 <= stopped.done < 120 and not filled.chat.make_resident(filled.default_base()).busy
    before = {(one.number, one.place): one for _, row in filled.evaluations.read(record.id, 0, 60) for one in row}
    found = filled.evaluations.finish(record.id)
    after = {(one.number, one.place): one for _, row in filled.evaluations.read(record.id, 0, 60) for one in row}
    assert found.record.state == DONE and found.done == 120 == len(after) and all(after[key] == one for key, one in before.items())
    again = filled.evaluations.finish(filled.evaluations.add("many", ["base", "wizard"], Plan(metrics=("f1", "loss"), max_tokens=24)).id)
    for one, other in zip(found.voices, again.voices, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-4)
    with pytest.raises(InvalidInput, match="is done"):
        filled.evaluations.start(record.id)


def test_it_stays_readable_when_the_adapter_and_the_dataset_are_gone(filled: Studio) -> None:
    record = filled.evaluations.add("talk", ["wizard"], LOSS)
    found = filled.evaluations.finish(record.id)
    half = filled.evaluations.add("talk", ["wizard"], LOSS)
    sha256 = filled.adapters.get("wizard").sha256
    assert [one.id for one, _ in filled.evaluations.of_adapter("id1")] == [half.id, record.id]
    filled.adapters.remove("wizard")
    filled.datasets.remove("talk")
    left = filled.evaluations.get(record.id[:8])
    assert left == found and left.voices[0].sha256 == sha256 and left.voices[0].label == "wizard"
    with pytest.raises(NotFound):
        filled.evaluations.start(half.id)


def test_kill_9_loses_at_most_the_rows_in_progress(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(tmp_path / "home", monkeypatch, capfd)
    assert shell.run("base", "fetch", str(tiny_base)).status == 0
    rows = [json.dumps({"prompt": f"Say {i}", "completion": f"It is {i}"}) for i in range(400)]
    assert shell.run("dataset", "add", shell.write("rows.jsonl", "\n".join(rows)), "--name", "rows").status == 0
    asked = ["evaluate", "--dataset", "rows", "--adapter", "base", "--metrics", "loss,f1", "--max-tokens", "16"]
    process = subprocess.Popen([sys.executable, "-m", "studio", *asked], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("40 of"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    [seen] = shell.run("evaluation", "list", "--json").json["evaluations"]
    assert seen["state"] == INTERRUPTED and 40 <= seen["done"] < 400
    found = shell.run("evaluation", "resume", seen["evaluation"][:8], "--json").json
    assert found["state"] == DONE and found["done"] == 400 and found["results"][0]["values"]["loss"] > 0
    assert "is done" in shell.refuse("evaluation", "resume", seen["evaluation"])
    shown = shell.run("evaluation", "show", seen["evaluation"], "--rows", "2", "--json").json
    assert [case["prompt"] for case in shown["answers"]] == ["Say 0", "Say 1"]
    assert shell.run("evaluation", "rm", seen["evaluation"]).status == 0
    assert "There is no evaluation" in shell.refuse("evaluation", "show", seen["evaluation"])
