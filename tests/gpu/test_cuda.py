"""The path on CUDA. Never run where there is no GPU: `make test` leaves these out by their marker."""

from pathlib import Path
from typing import Any

import pytest
import torch

from studio.bases.loading import load_model
from studio.chat.backend import load_engine
from studio.chat.bank import Part, Voice
from studio.chat.engine import AdapterSource, Capacity
from studio.chat.graphs import GraphRunner
from studio.chat.sampling import Sampling
from studio.datasets.rendering import prompt_ids
from studio.training.checkpoint import CheckpointFolder
from studio.training.memory import is_out_of_memory
from tests.trainers import Events, gradients, rows_of, state, trainer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16"])
def test_an_adapter_trains_and_speaks_on_cuda(tiny_base: Path, quantization: str) -> None:
    assert torch.cuda.is_available()
    run = trainer(load_model(tiny_base, quantization), quantization=quantization, epochs=10)
    outcome = run.fit()
    assert outcome.eval_loss_before is not None and outcome.train_loss < outcome.eval_loss_before
    engine = load_engine(tiny_base, quantization, Capacity(slots=2, max_batch=4))
    weights = run.weights()
    ids = prompt_ids(engine.tokenizer, [{"role": "user", "content": "Hello"}])
    greedy = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)
    base = engine.submit(ids, greedy).text()
    assert engine.submit(ids, greedy, Voice((Part(AdapterSource("a", lambda: weights)),))).text() != base
    assert engine.submit(ids, greedy).text() == base
    engine.close()


def test_recorded_steps_say_what_steps_say(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = trainer(load_model(tiny_base, "fp32"), quantization="fp32", epochs=10)
    weights.fit()
    voices = [Voice((Part(AdapterSource("a", weights.weights)),)), Voice()]

    def texts(steady: int) -> list[str]:
        monkeypatch.setattr("studio.chat.graphs.STEADY", steady)
        engine = load_engine(tiny_base, "fp32", Capacity(slots=2, max_batch=4))
        ids = prompt_ids(engine.tokenizer, [{"role": "user", "content": "Hello"}])
        tickets = [engine.submit(ids, Sampling(max_tokens=48, temperature=0.0, ignore_eos=True), voice) for voice in voices]
        said = [ticket.text() for ticket in tickets]
        assert isinstance(engine.runner, GraphRunner) and (engine.runner._recording is not None) == (steady < 48)
        engine.close()
        return said

    assert texts(4) == texts(1000)


@pytest.mark.parametrize("quantization", ["bf16", "fp32"])
def test_packed_rows_have_the_gradients_of_each_row_alone(tiny_base: Path, quantization: str) -> None:
    """In bf16 by torch's variable-length attention, in float32 by our own tiles."""
    rows = rows_of([5, 1, 300, 17, 128, 129, 40])
    t = trainer(load_model(tiny_base, quantization), rows=rows, quantization=quantization)
    assert t.loss.packs
    for layer in t.attached.layers.values():
        layer.lora_B.data.normal_(0, 0.1)
    for x, y in zip(gradients(t, rows, 10_000), gradients(t, rows, 1), strict=True):
        assert float((x - y).norm() / y.norm()) < (0.05 if quantization == "bf16" else 1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "paged_adamw8bit"])
def test_every_optimizer_learns_and_goes_on_from_a_checkpoint(tiny_base: Path, tmp_path: Path, optimizer: str) -> None:
    def run(steps: int) -> Any:
        parts = {"checkpoints": CheckpointFolder(tmp_path / "checkpoints", "a", 2)}
        options = {"quantization": "nf4", "optimizer": optimizer, "checkpoint_every_s": 0, "schedule": "constant", "max_steps": steps}
        return trainer(load_model(tiny_base, "nf4"), parts=parts, **options)

    first = run(10)
    outcome = first.fit()
    assert outcome.eval_loss < outcome.eval_loss_before
    again = run(10)
    assert again.fit().resumed_from_step == 9
    for name, value in state(first).items():
        torch.testing.assert_close(state(again)[name], value, rtol=0, atol=2e-3)


def test_memory_that_runs_out_on_the_device_is_known_and_the_pieces_become_smaller(tiny_base: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(caught.value)
    t = trainer(load_model(tiny_base, "bf16"), emit := Events(), quantization="bf16", token_budget=400, batch_size=12)

    def allocate(_: object, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].shape[1] > 100:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")

    t.model.get_decoder().layers[1].mlp.register_forward_pre_hook(allocate)
    t.fit()
    assert t.at.token_budget == 100 and len(emit.of("notice")) == 2
