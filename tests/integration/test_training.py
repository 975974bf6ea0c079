"""The trainer on a tiny model: oracles for the loss, gradients that survive an evaluation, invariance, seeds."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from studio.bases.loading import load_model
from studio.datasets.rendering import Example
from studio.errors import InvalidInput, TrainingFailed
from studio.lora.frozen import FrozenQuantizedLinear, freeze_quantized
from studio.training.batching import micro_batches
from studio.training.config import make_config
from studio.training.loop import Trainer
from studio.training.loss import CausalLoss
from tests.tiny import make_model


def examples(count: int = 24) -> list[Example]:
    """Rows of varied length whose second half is trained."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(count):
        length = 8 + 3 * (index % 7)
        token_ids = torch.randint(2, 600, (length,), generator=generator).tolist()
        rows.append(Example(token_ids, [i >= length // 2 for i in range(length)]))
    return rows


def trainer(model: torch.nn.Module, **changes: object) -> Trainer:
    config = make_config("quick", {"rank": 4, "batch_size": 6, "learning_rate": 0.01, "quantization": "fp32", **changes})
    return Trainer(model, examples(), config, lambda kind, **data: None)


def gradients(t: Trainer, rows: list[Example]) -> list[torch.Tensor]:
    t.model.train()
    t.optimizer.zero_grad()
    for batch in micro_batches(rows, 512):
        t.loss(batch).backward()
    return [p.grad.clone() for p in t.parameters if p.grad is not None]


def test_the_loss_is_transformers_loss_at_the_trained_tokens() -> None:
    model = make_model()
    rows = examples()
    loss = CausalLoss(model)
    assert loss.plain
    for budget in (16, 64, 4096):
        ours = sum(float(loss(batch)) for batch in micro_batches(rows, budget))
        theirs = 0.0
        for row in rows:
            ids = torch.tensor([row.token_ids])
            labels = torch.tensor([[t if m else -100 for t, m in zip(row.token_ids, row.trained, strict=True)]])
            count = int((labels[:, 1:] != -100).sum())
            theirs += float(model(ids, labels=labels).loss) * count
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_an_unusual_head_falls_back_to_the_models_own_logits() -> None:
    model = make_model()
    head = model.get_output_embeddings()
    plain = CausalLoss(model)
    batch = micro_batches(examples(), 4096)[0]
    biased = torch.nn.Linear(head.in_features, head.out_features)
    biased.weight, biased.bias.data[:] = head.weight, 0.0
    model.set_output_embeddings(biased)
    fallback = CausalLoss(model)
    assert plain.plain and not fallback.plain
    assert float(fallback(batch)) == pytest.approx(float(plain(batch)), rel=1e-5)


def test_the_heads_gradient_equals_autograds() -> None:
    model = make_model()
    batch = micro_batches(examples(), 4096)[0]
    loss = CausalLoss(model)
    embeddings = model.get_input_embeddings()
    embeddings.weight.requires_grad_(True)
    loss(batch).backward()
    ours = embeddings.weight.grad.clone()
    embeddings.weight.grad = None
    logits = model(batch.token_ids).logits.flatten(0, 1)[batch.positions]
    F.cross_entropy(logits, batch.labels, reduction="sum").backward()
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, embeddings.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_gradients_are_the_same_before_and_after_an_evaluation(tiny_base: Path, quantization: str) -> None:
    """bitsandbytes repacks 4-bit weights at their first eval-mode forward; ours must never let it."""
    t = trainer(load_model(tiny_base, quantization), quantization=quantization)
    for layer in t.layers.values():
        layer.lora_B.data.normal_(0, 0.1)
    before = gradients(t, examples()[:6])
    t.evaluate(0)
    t.evaluate(0)
    after = gradients(t, examples()[:6])
    assert all(g.abs().max() > 0 for g in before)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_a_frozen_layer_computes_what_it_dequantizes_and_passes_the_gradient(tiny_base: Path) -> None:
    for quantization in ("nf4", "int8"):
        model = load_model(tiny_base, quantization)
        plain = dict(load_model(tiny_base, "bf16").named_modules())
        assert freeze_quantized(model) == 14
        for name, layer in model.named_modules():
            if isinstance(layer, FrozenQuantizedLinear):
                x = torch.randn(5, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
                layer(x).sum().backward()
                weight = layer.dense(torch.bfloat16)
                torch.testing.assert_close(layer(x), F.linear(x, weight), rtol=0, atol=0)
                torch.testing.assert_close(x.grad, torch.ones(5, layer.out_features, dtype=torch.bfloat16) @ weight, rtol=1e-2, atol=1e-2)
                error = (weight - plain[name].weight).float().norm() / plain[name].weight.float().norm()
                assert error < (0.12 if quantization == "nf4" else 0.02)


def test_accumulation_does_not_change_the_step() -> None:
    rows = examples()[:8]
    whole, pieces = trainer(make_model(), token_budget=4096), trainer(make_model(), token_budget=16)
    assert len(micro_batches(rows, 4096)) == 1 and len(micro_batches(rows, 16)) == 7
    whole._step(1, rows)
    pieces._step(1, rows)
    for x, y in zip(whole.parameters, pieces.parameters, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_training_learns_and_the_same_seed_gives_the_same_weights() -> None:
    runs = [trainer(make_model(), epochs=10, dropout=0.1, seed=seed) for seed in (1, 1, 2)]
    outcomes = [run.fit() for run in runs]
    first, again, other = (run.weights().pairs for run in runs)
    assert outcomes[0].train_loss < 0.8 * 9 and outcomes[0].steps == 40
    assert all(torch.equal(first[n][i], again[n][i]) for n in first for i in (0, 1))
    assert any(not torch.equal(first[n][1], other[n][1]) for n in first)
    assert all(b.abs().max() > 0 for _, b in first.values())


def test_the_base_is_frozen() -> None:
    model = make_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run = trainer(model, epochs=2)
    run.fit()
    after = {n.replace(".base.", "."): p for n, p in model.named_parameters() if "lora_" not in n}
    assert set(after) == set(before)
    assert all(torch.equal(before[n], p) for n, p in after.items())


def test_tokens_are_counted_without_padding() -> None:
    run = trainer(make_model(), epochs=1, held_out=0.0)
    outcome = run.fit()
    assert outcome.tokens == sum(len(row.token_ids) for row in examples())
    assert outcome.trained_tokens == sum(sum(row.trained) for row in examples())
    assert outcome.eval_loss is None


def test_a_loss_that_is_not_a_number_says_what_to_change() -> None:
    run = trainer(make_model())
    next(iter(run.layers.values())).lora_A.data.fill_(float("nan"))
    with pytest.raises(TrainingFailed, match="halve learning_rate"):
        run.fit()


def test_nothing_to_train_on_is_told() -> None:
    with pytest.raises(InvalidInput, match="No row is left"):
        Trainer(make_model(), [], make_config(), lambda kind, **data: None)
    with pytest.raises(InvalidInput, match="targets is 'wq'"):
        trainer(make_model(), targets="wq")
