"""The training process from its job to the adapter's files: what it says, what it writes, two processes as one."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from studio.bases.originals import original_weights
from studio.errors import BaseUnavailable, InvalidInput
from studio.jobs.executor import Launch
from studio.jobs.process import LocalExecutor
from studio.lora.files import read_adapter
from studio.lora.injection import linear_layers
from studio.training.run import LINEAGE_FILE, identity
from tests.jobs import WEIGHTS, Forks, Job
from tests.oracle import TOKENS, load_in_peft
from tests.tiny import FAMILIES, make_model
from tests.trainers import trainer

SHORT = {"max_steps": 4, "learning_rate": 0.02}


def done(forks: Forks, job: Job) -> dict[str, Any]:
    assert forks.run(job) == 0, job.log
    (event,) = job.events("done")
    return event


def test_a_job_says_what_it_does_and_leaves_an_adapter_with_its_lineage(tmp_path: Path, tiny_base: Path, forks: Forks) -> None:
    job = Job(tmp_path / "job", tiny_base, **SHORT, checkpoint_every_s=0, sample_prompts="Hello", keep_checkpoints=1)
    event = done(forks, job)
    kinds = [json.loads(line)["kind"] for line in job.out.read_text().splitlines()]
    step = ["progress", "checkpoint"]
    assert kinds == ["state", "state", "eval", "samples", *step, *step, *step, "progress", "eval", "samples", "state", "done"]
    assert [e["state"] for e in job.events("state")] == ["loading", "training", "saving"]
    assert job.checkpoints() == ["step-000000003"] and event["resumed_from_step"] is None
    lineage = json.loads((job.adapter / LINEAGE_FILE).read_text())
    assert lineage["metrics"] == {k: v for k, v in event.items() if k not in ("kind", "at")}
    assert lineage["config"] == job.spec.config and lineage["dataset_hash"] == job.spec.dataset_hash
    assert [e["text"] for s in (event["samples_before"], event["samples"]) for e in s] == [
        e["items"][0]["text"] for e in job.events("samples")
    ]
    weights = read_adapter(job.adapter)
    assert weights.rank == 4 and all(b.abs().max() > 0 for _, b in weights.pairs.values())
    assert job.log == ""  # what works says nothing


def test_a_checkpoint_belongs_to_what_decides_the_adapter(tmp_path: Path, tiny_base: Path) -> None:
    spec = Job(tmp_path / "job", tiny_base, **SHORT).spec
    others = [replace(spec, base_fingerprint="g"), replace(spec, dataset_hash="h")]
    others += [
        replace(spec, config={**spec.config, key: value}) for key, value in (("seed", 1), ("rank", 8), ("max_steps", 9), ("devices", 2))
    ]
    assert len({identity(s) for s in [spec, *others]}) == 1 + len(others)
    watched = {"sample_prompts": "Hello", "checkpoint_every_s": 1, "tracker": "wandb", "keep_checkpoints": 9, "sample_tokens": 3}
    same = [replace(spec, config={**spec.config, **watched}), replace(spec, adapter_name="b", job_folder="elsewhere", memory_limit_mb=5000)]
    assert {identity(s) for s in same} == {identity(spec)}


def test_a_changed_job_does_not_go_on_from_the_old_ones_checkpoint(tmp_path: Path, tiny_base: Path, forks: Forks) -> None:
    first, changed = (Job(tmp_path / str(seed), tiny_base, **SHORT, seed=seed, checkpoint_every_s=0) for seed in (0, 1))
    done(forks, first)
    (first.folder / "checkpoints").rename(changed.folder / "checkpoints")
    assert changed.checkpoints() == ["step-000000002", "step-000000003"]
    assert done(forks, changed)["resumed_from_step"] is None and "is of another configuration and is not used" in changed.log
    assert (first.adapter / WEIGHTS).read_bytes() != (changed.adapter / WEIGHTS).read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_an_8_bit_optimizer_without_cuda_is_refused_in_one_sentence(tmp_path: Path, tiny_base: Path, forks: Forks) -> None:
    job = Job(tmp_path / "job", tiny_base, **SHORT, optimizer="adamw8bit")
    assert forks.run(job) == 1 and not job.adapter.exists()
    assert [e["reason"] for e in job.events("failed")] == ["The option optimizer is 'adamw8bit', which needs CUDA; choose adamw."]


def test_a_prefix_is_trained_and_its_file_is_read_back(tmp_path: Path, tiny_base: Path, forks: Forks) -> None:
    job = Job(tmp_path / "job", tiny_base, method="prefix", virtual_tokens=5, quantization="fp32", max_steps=12, learning_rate=0.05)
    event = done(forks, job)
    assert event["eval_loss"] < event["eval_loss_before"] - 0.1
    weights = read_adapter(job.adapter)
    assert weights.kind == "prefix" and weights.prefix is not None and weights.prefix.embedding.shape == (5, 2 * 2 * 2 * 16)
    base = make_model(vocab=600)
    assert (load_in_peft(make_model(vocab=600), job.adapter)(TOKENS).logits - base(TOKENS).logits).abs().max() > 0.1


def test_loftq_begins_nearer_to_the_base_before_it_was_quantized(tmp_path: Path, tiny_base: Path, forks: Forks) -> None:
    options = {"max_steps": 1, "rank": 16, "held_out": 0.5}
    variants = {"fp32": {"quantization": "fp32"}, "nf4": {"quantization": "nf4"}, "loftq": {"quantization": "nf4", "init": "loftq"}}
    before = {name: done(forks, Job(tmp_path / name, tiny_base, **options, **v))["eval_loss_before"] for name, v in variants.items()}
    assert 0 < abs(before["loftq"] - before["fp32"]) < abs(before["nf4"] - before["fp32"])
    with pytest.raises(InvalidInput, match=r"The option init is 'loftq': .*this base is not quantized; choose kaiming or pissa\."):
        trainer(make_model(), init="loftq")


# The weights of a base's files


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard", ["100KB", "5GB"])
def test_each_layers_weight_is_found_in_the_files(tmp_path: Path, family: str, shard: str) -> None:
    model = FAMILIES[family]()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "100KB")
    read = original_weights(tmp_path)
    layers = linear_layers(model)
    assert len(layers) >= 8
    for name, layer in layers.items():
        assert torch.equal(read(name), layer.weight)


def test_files_of_the_model_without_its_head_are_read_too(tmp_path: Path) -> None:
    for family, prefix in (("llama", "model."), ("gpt2", "transformer.")):
        model = FAMILIES[family]()
        model.get_decoder().save_pretrained(tmp_path / family)
        assert not any(key.startswith(prefix) for path in (tmp_path / family).glob("*.safetensors") for key in load_file(path))
        name, layer = next(iter(linear_layers(model).items()))
        assert name.startswith(prefix) and torch.equal(original_weights(tmp_path / family)(name), layer.weight)


def test_a_weight_that_is_not_there_is_told(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    with pytest.raises(
        BaseUnavailable, match=r"hold no weight named 'model.layers.9.x.weight', so init loftq cannot be used; choose kaiming"
    ):
        original_weights(tmp_path)("model.layers.9.x")


# Several processes


def test_two_processes_train_the_adapter_of_one(tmp_path: Path, tiny_base: Path, forks: Forks) -> None:
    options = {"max_steps": 6, "learning_rate": 0.02, "token_budget": 40, "neftune": 0.0, "eval_steps": 3, "checkpoint_every_s": 0}
    alone, together = Job(tmp_path / "alone", tiny_base, **options), Job(tmp_path / "together", tiny_base, **options, devices=2)
    wanted = done(forks, alone)
    run = LocalExecutor().submit(Launch("together", together.spec, together.folder, together.folder / "log.txt", processes=2))
    end = time.monotonic() + 240
    while (status := run.status(1)) is None:
        assert time.monotonic() < end, together.log
    events = run.events()
    run.close()
    assert status == 0, together.log
    assert [kind for _, kind, _ in events] == [json.loads(line)["kind"] for line in alone.out.read_text().splitlines()]  # one speaks
    found = next(data for _, kind, data in events if kind == "done")
    assert (found["tokens"], found["trained_tokens"], found["steps"]) == (wanted["tokens"], wanted["trained_tokens"], wanted["steps"])
    losses = [data["loss"] for _, kind, data in events if kind == "progress"]
    assert losses == pytest.approx([event["loss"] for event in alone.events("progress")], rel=1e-4)
    assert found["eval_loss"] == pytest.approx(wanted["eval_loss"], rel=1e-4) and found["accuracy"] == pytest.approx(wanted["accuracy"])
    ours, theirs = (load_file(job.adapter / WEIGHTS) for job in (together, alone))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert value.abs().max() > 1e-2
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-4)
    assert together.checkpoints() == alone.checkpoints()
