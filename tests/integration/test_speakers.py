"""Who can speak besides finished adapters: checkpoints of trainings. And files that are not those that were trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from storage.records import JobRecord
from studio.chat.voices import choose
from studio.datasets.rendering import prompt_ids
from studio.errors import InvalidInput, NotFound
from studio.lora.files import WEIGHTS_FILE, AdapterWeights, read_adapter
from studio.services import Studio
from studio.training.checkpoint import CheckpointFolder
from tests.conftest import tiny_settings
from tests.serving import add_adapters, serving, tiny_files
from tests.trainers import Events, trainer

HELLO: list[dict[str, str]] = [{"role": "user", "content": "Hello, who are you?"}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}
STEPS = (1, 2, 3)


def leave_checkpoints(studio: Studio, job: JobRecord, **changes: Any) -> dict[int, AdapterWeights]:
    """Train a job's adapter here, so that it leaves a checkpoint after each step but the last; returns what it had learned at each."""
    learned: dict[int, AdapterWeights] = {}

    class Watch(Events):
        def __call__(self, kind: str, **data: Any) -> None:
            if kind == "checkpoint":
                learned[data["step"]] = trained.weights()

    model = AutoModelForCausalLM.from_pretrained(str(tiny_files(studio)))
    kept = CheckpointFolder(studio.queue.checkpoints.path(job.id), "identity", keep=10)
    parts = {"checkpoints": kept, "base_name": "tiny"}
    changes = {"checkpoint_every_s": 0, "max_steps": 4, "learning_rate": 0.3, "warmup": 0, "schedule": "constant", **changes}
    trained = trainer(model, Watch(), parts=parts, **changes)
    trained.fit()
    return learned


@pytest.fixture(scope="module")
def studio(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    studio = Studio(tiny_settings(tmp_path_factory.mktemp("speakers") / "home"))
    studio.bases.fetch(str(tiny_base))
    add_adapters(studio)
    yield studio
    studio.close()


@pytest.fixture(scope="module")
def job(studio: Studio) -> JobRecord:
    return studio.train("Angry bird", "growing", overrides={"quantization": "fp32", "rank": 4})


@pytest.fixture(scope="module")
def learned(studio: Studio, job: JobRecord) -> dict[int, AdapterWeights]:
    return leave_checkpoints(studio, job)


def said_by(studio: Studio, weights: AdapterWeights) -> str:
    """What transformers says with W + s·B A in the place of W."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny_files(studio)))
    with torch.no_grad():
        for name, (a, b) in weights.pairs.items():
            model.get_submodule(name).weight += weights.scale * (b @ a)
        tokenizer = studio.chat.make_resident(studio.default_base()).tokenizer
        prompt = torch.tensor([prompt_ids(tokenizer, HELLO)])
        whole = model.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None)
    return str(tokenizer.decode(whole[0, prompt.shape[1] :], skip_special_tokens=True)).rstrip("\ufffd")


def test_checkpoints_of_one_training_answer_as_their_own_weights_say(
    studio: Studio, job: JobRecord, learned: dict[int, AdapterWeights]
) -> None:
    assert tuple(learned) == STEPS
    replies = {step: studio.reply(HELLO, f"job:{job.id}@{step}", **GREEDY) for step in STEPS}
    assert {step: reply.text for step, reply in replies.items()} == {step: said_by(studio, learned[step]) for step in STEPS}
    assert len({reply.text for reply in replies.values()}) > 1
    stamps = [reply.stamp for reply in replies.values()]
    assert len({stamp.adapter_sha256 for stamp in stamps}) == 3 and all(len(stamp.adapter_sha256) == 64 for stamp in stamps)
    assert (stamps[0].adapter, stamps[0].adapter_id) == ("job:growing@1", f"job:{job.id}@1")


@pytest.mark.parametrize("changes", [{"method": "lora"}, {"method": "dora"}, {"method": "prefix", "virtual_tokens": 3}, {"init": "pissa"}])
def test_every_kind_of_adapter_lies_beside_its_checkpoint(studio: Studio, changes: dict[str, Any]) -> None:
    job = studio.train("Angry bird", f"kind {changes}"[:80], overrides={"quantization": "fp32"})
    learned = leave_checkpoints(studio, job, max_steps=2, **changes)
    found, wanted = read_adapter(studio.queue.checkpoints.at(job.id, 1)), learned[1]
    assert (found.rank, found.alpha, found.kind, found.pairs.keys()) == (wanted.rank, wanted.alpha, wanted.kind, wanted.pairs.keys())
    assert all(torch.equal(a, wanted.pairs[name][0]) and torch.equal(b, wanted.pairs[name][1]) for name, (a, b) in found.pairs.items())
    assert all(torch.equal(value, wanted.magnitudes[name]) for name, value in found.magnitudes.items())
    if wanted.prefix is not None:
        assert found.prefix is not None and torch.equal(found.prefix.embedding, wanted.prefix.embedding)
    assert studio.reply(HELLO, f"job:{job.id}@1", **GREEDY).text
    studio.queue.cancel(job.id)


@pytest.mark.usefixtures("learned")
def test_the_api_and_blends_take_checkpoints_by_the_name_of_their_adapter(studio: Studio, job: JobRecord) -> None:
    with serving(studio) as served:
        client = served.client()
        asked: Any = {"messages": HELLO, "temperature": 0, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
        reply = client.chat.completions.create(model="job:growing@2", **asked)
        own = studio.reply(HELLO, f"job:{job.id}@2", **GREEDY)
        assert reply.choices[0].message.content == own.text
        assert reply.model_dump()["studio"]["adapter_sha256"] == own.stamp.adapter_sha256
        assert client.models.retrieve("job:growing@2").model_dump()["adapter_sha256"] == own.stamp.adapter_sha256
        mixed = client.chat.completions.create(model="job:growing@2:0.5+wizard:0.5", **asked).model_dump()["studio"]
        assert mixed["adapter"] == "job:growing@2:0.5+wizard:0.5"
        with pytest.raises(openai.NotFoundError, match="'growing' has no checkpoint of step 9 to talk to; there are '1', '2', '3'"):
            client.chat.completions.create(model="job:growing@9", **asked)
    for label in ("job:growing@2", "job:growing@2:0.5", "job:growing@2:0.5+wizard:0.5"):
        assert choose(label, studio.speakers.get).label == label
    with pytest.raises(NotFound, match="There is no checkpoint of a training of 'nobody'"):
        choose("job:nobody@2:0.5", studio.speakers.get)
    with pytest.raises(InvalidInput, match="stands in the blend twice"):
        choose("job:growing@2+job:growing@2", studio.speakers.get)


@pytest.mark.usefixtures("learned")
def test_the_page_offers_checkpoints_by_name_and_step(studio: Studio, job: JobRecord) -> None:
    from studio.ui.page import voices

    offered = [(name, key) for name, key in voices(studio) if "growing" in name]
    assert offered == [(f"growing, step {step}", f"job:{job.id}@{step}") for step in reversed(STEPS)]


def test_a_checkpoint_that_is_gone_is_refused_plainly(studio: Studio) -> None:
    job = studio.train("Angry bird", "brief", overrides={"quantization": "fp32"})
    leave_checkpoints(studio, job, max_steps=3)
    chosen = choose("job:brief@1", studio.speakers.get)
    [part] = chosen.voice(studio.speakers.read, studio.speakers.path).parts
    weights = studio.queue.checkpoints.at(job.id, 1) / WEIGHTS_FILE
    weights.write_bytes((studio.queue.checkpoints.at(job.id, 2) / WEIGHTS_FILE).read_bytes())
    with pytest.raises(NotFound, match=r"'job:brief@1' cannot be used any more: they were changed.* Choose another one\."):
        part.source.load()
    assert choose("job:brief@1", studio.speakers.get).sha256 != chosen.sha256  # never under the old hash
    weights.unlink()
    with pytest.raises(NotFound, match="has no checkpoint of step 1 to talk to; there are '2'"):
        choose("job:brief@1", studio.speakers.get)
    with pytest.raises(NotFound, match="is missing"):
        part.source.load()
    studio.queue.checkpoints.remove(job.id)
    with pytest.raises(NotFound, match="There is no checkpoint of a training of 'brief'; they go when it is done"):
        choose(chosen.adapter_id, studio.speakers.get)


def test_an_adapter_whose_file_was_changed_is_not_served_under_its_old_hash(studio: Studio) -> None:
    wizard = studio.adapters.get("wizard")
    path = studio.adapters.path(wizard) / WEIGHTS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit of one weight
    try:
        with pytest.raises(
            NotFound, match=r"The files of adapter 'wizard' cannot be used: they were changed, and hold \w{12} where \w{12} is"
        ):
            studio.adapters.read(wizard)
    finally:
        path.write_bytes(whole)
    assert studio.adapters.read(wizard).rank == 4
