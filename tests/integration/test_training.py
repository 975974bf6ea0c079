"""The trainer on a tiny model: oracles for the loss, gradients that survive an evaluation, invariance, seeds, options."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.bases.loading import load_model
from studio.errors import InvalidInput, TrainingFailed
from studio.lora.frozen import FrozenQuantizedLinear, freeze_quantized
from studio.training.batching import micro_batches
from studio.training.checkpoint import CheckpointFolder
from studio.training.config import make_config
from studio.training.loop import Trainer
from studio.training.loss import CausalLoss
from studio.training.schedule import factor
from tests.oracle import perturb
from tests.tiny import make_model, make_tokenizer
from tests.trainers import Events, examples, gradients, likely_row, plain_steps, rows_of, same, state, trainer

# The loss


def test_the_loss_is_transformers_loss_at_the_trained_tokens() -> None:
    reference, loss = make_model(), CausalLoss(make_model())
    rows = [*examples(), likely_row(reference)]
    assert loss.plain
    theirs, right = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.token_ids])
        labels = torch.tensor([[t if m else -100 for t, m in zip(row.token_ids, row.trained, strict=True)]])
        said = reference(ids, labels=labels)
        theirs += float(said.loss.detach()) * int((labels[:, 1:] != -100).sum())
        right += int((said.logits[:, :-1].argmax(-1) == labels[:, 1:]).sum())
    assert right >= 6
    for budget in (16, 64, 4096):
        found = [loss(batch) for batch in micro_batches(rows, budget)]
        assert sum(float(nats.detach()) for nats, _ in found) == pytest.approx(theirs, rel=1e-5)
        assert sum(int(hits) for _, hits in found) == right


def with_biased_head(model: nn.Module) -> nn.Module:
    head = model.get_output_embeddings()
    biased = nn.Linear(head.in_features, head.out_features)
    biased.weight, biased.bias.data[:] = head.weight, 0.0
    model.set_output_embeddings(biased)
    return model


def test_an_unusual_head_falls_back_to_the_models_own_logits() -> None:
    plain, fallback = CausalLoss(make_model()), CausalLoss(with_biased_head(make_model()))
    assert plain.plain and not fallback.plain and fallback.packs
    batch = micro_batches(examples(), 4096)[0]
    for ours, theirs in zip(fallback(batch), plain(batch), strict=True):
        assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)


def test_the_heads_gradient_equals_autograds() -> None:
    model = make_model()
    batch = micro_batches(examples(), 4096)[0]
    loss = CausalLoss(model)
    embeddings = model.get_input_embeddings()
    embeddings.weight.requires_grad_(True)
    loss(batch)[0].backward()
    ours = embeddings.weight.grad.clone()
    embeddings.weight.grad = None
    hidden = loss._packed(batch.token_ids, batch.lengths, model.get_decoder())
    logits = F.linear(hidden, model.get_output_embeddings().weight)[batch.positions]
    F.cross_entropy(logits, batch.labels, reduction="sum").backward()
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, embeddings.weight.grad, rtol=1e-4, atol=1e-5)


def test_what_is_surely_wrong_costs_its_whole_distance() -> None:
    """A probability too small for float32 has no logarithm, but the loss is still the difference of the logits."""
    model = make_model()
    model.get_output_embeddings().weight.data.mul_(300)
    batch = micro_batches(examples(), 4096)[0]
    loss = CausalLoss(model)
    hidden = loss._packed(batch.token_ids, batch.lengths, model.get_decoder())[batch.positions]
    logits = F.linear(hidden, model.get_output_embeddings().weight).double()
    wanted = F.cross_entropy(logits, batch.labels, reduction="sum")
    assert F.softmax(logits.float(), -1).gather(1, batch.labels.unsqueeze(1)).min() == 0
    assert float(loss(batch)[0].detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


# A quantized base


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_gradients_are_the_same_before_and_after_an_evaluation(tiny_base: Path, quantization: str) -> None:
    """bitsandbytes repacks 4-bit weights at their first eval-mode forward; ours must never let it."""
    t = trainer(load_model(tiny_base, quantization), quantization=quantization)
    perturb(t.attached)
    before = gradients(t, examples()[:6])
    first = t.evaluate()
    assert first is not None and first == t.evaluate()
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


# Steps


def test_accumulation_does_not_change_the_step() -> None:
    rows = rows_of([14, 12, 10, 16, 9, 13, 11, 15])
    pair = [trainer(make_model(), token_budget=budget) for budget in (4096, 16)]
    assert [len(micro_batches(rows, t.config.token_budget)) for t in pair] == [1, 8]
    losses = [(t.step(rows), t.step(rows)) for t in pair]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for x, y in zip(pair[0].parameters, pair[1].parameters, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_a_steps_loss_is_the_mean_over_all_its_trained_tokens() -> None:
    """Not the mean of its pieces' means, which would give short rows more weight."""
    rows = [*rows_of([40]), *rows_of([9], seed=5)]
    t = trainer(make_model(), token_budget=16)
    sums = [(float(t.loss(b)[0].detach()), len(b.labels)) for b in micro_batches(rows, 16)]
    mean, naive = sum(s for s, _ in sums) / sum(n for _, n in sums), sum(s / n for s, n in sums) / len(sums)
    assert abs(mean - naive) > 1e-3
    assert t.step(rows) == pytest.approx(mean, rel=1e-6)


def test_a_step_may_be_counted_in_tokens() -> None:
    run = trainer(make_model(), emit := Events(), batch_tokens=60, epochs=2, held_out=0.0)
    run.fit()
    steps = emit.of("progress")
    used = [after["tokens"] - before["tokens"] for before, after in pairwise([{"tokens": 0}, *steps])]
    assert len(steps) == run.total_steps and sum(used) == 2 * sum(len(row.token_ids) for row in examples())
    assert max(used) <= 60 and len(steps) > 2 * math.ceil(24 / 6)


def test_training_learns_and_the_same_seed_gives_the_same_weights() -> None:
    runs = [trainer(make_model(), epochs=6, dropout=0.1, neftune=1.0, seed=seed) for seed in (1, 1, 2)]
    outcomes = [run.fit() for run in runs]
    first, again, other = (run.weights().pairs for run in runs)
    assert outcomes[0].train_loss < 0.9 * outcomes[0].eval_loss_before and outcomes[0].steps == 24
    assert all(torch.equal(first[n][i], again[n][i]) for n in first for i in (0, 1))
    assert any(not torch.equal(first[n][1], other[n][1]) for n in first)
    assert all(b.abs().max() > 0 for _, b in first.values())


def test_the_base_is_frozen() -> None:
    model = make_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run = trainer(model, epochs=2, init="pissa")
    run.fit()
    after = {n.replace(".base.", "."): p for n, p in model.named_parameters() if "lora_" not in n}
    assert set(after) == set(before)
    assert all(torch.equal(before[n], p) for n, p in after.items())


def test_tokens_are_counted_without_padding() -> None:
    run = trainer(make_model(), epochs=1, held_out=0.0)
    outcome = run.fit()
    assert outcome.tokens == sum(len(row.token_ids) for row in examples())
    assert outcome.trained_tokens == sum(sum(row.trained) for row in examples())
    assert outcome.eval_loss is None and outcome.accuracy is None and run.evaluate() is None


def test_a_loss_that_is_not_a_number_says_what_to_change() -> None:
    run = trainer(make_model())
    next(iter(run.attached.layers.values())).lora_A.data.fill_(float("nan"))
    with pytest.raises(TrainingFailed, match=r"at step 1 of \d+; halve learning_rate \(now 0.01\)"):
        run.fit()


def test_nothing_to_train_on_is_told() -> None:
    with pytest.raises(InvalidInput, match="No row is left"):
        Trainer(make_model(), [], make_config(), lambda kind, **data: None)
    with pytest.raises(InvalidInput, match="targets is 'wq'"):
        trainer(make_model(), targets="wq")


# The learning rate


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_each_step_takes_the_rate_of_its_schedule(schedule: str) -> None:
    run = trainer(make_model(), emit := Events(), schedule=schedule, max_steps=6, warmup=0.4, lora_plus=4.0)
    taken = []
    run.optimizer.register_step_pre_hook(lambda optimizer, *_: taken.append([group["lr"] for group in optimizer.param_groups]))
    run.fit()
    wanted = [0.01 * factor(schedule, step, 6, 0.4) for step in range(1, 7)]
    assert wanted[0] == 0.005 and max(wanted) == 0.01
    assert taken == [[rate, 4.0 * rate] for rate in wanted]
    assert [event["learning_rate"] for event in emit.of("progress")] == wanted


def test_b_learns_a_multiple_as_fast() -> None:
    """The first step of Adam moves each number by the rate, whatever its gradient."""
    run = trainer(make_model(), lora_plus=8.0, schedule="constant", warmup=0.0)
    perturb(run.attached)
    before = state(run)
    run.step(run.train)
    for name, parameter in run.attached.parameters.items():
        moved = (parameter.detach() - before[name]).abs().median()
        assert float(moved) == pytest.approx(0.08 if name.endswith("lora_B") else 0.01, rel=1e-2), name


def test_decay_pulls_what_is_learned_towards_zero() -> None:
    sizes = []
    for decay in (0.0, 1.0):
        run = trainer(make_model(), weight_decay=decay, epochs=4)
        run.fit()
        sizes.append(float(torch.stack([p.detach().norm() for p in run.parameters]).norm()))
    assert sizes[1] < sizes[0]


def test_gradients_are_scaled_down_to_the_norm() -> None:
    run = trainer(make_model(), emit := Events(), max_grad_norm=0.01)
    run.step(run.train)
    left = torch.stack([p.grad.norm() for p in run.parameters]).norm()
    assert emit.of("progress")[0]["grad_norm"] > 0.1
    assert float(left) == pytest.approx(0.01, rel=1e-3)


def test_an_8_bit_optimizer_without_cuda_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA is here")
    for name in ("adamw8bit", "paged_adamw8bit"):
        with pytest.raises(InvalidInput, match=f"The option optimizer is '{name}', which needs CUDA; choose adamw."):
            trainer(make_model(), optimizer=name)


# Noise


def embedded(t: Trainer) -> list[Tensor]:
    """What the first block reads from here on, pass by pass."""
    seen: list[Tensor] = []
    t.model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()[0]))
    return seen


def test_noise_is_added_in_training_alone_and_is_as_large_as_neftune_says() -> None:
    t = trainer(make_model(), neftune=5.0)
    rows = rows_of([12, 100, 400])
    (batch,) = micro_batches(rows, 4096)
    clean = t.model.get_input_embeddings().weight[batch.token_ids]
    seen = embedded(t)
    t.step(rows)
    t.evaluate()
    t.step(rows)
    first, evaluated, second = seen
    assert torch.equal(evaluated, t.model.get_input_embeddings().weight[micro_batches(t.held, 4096)[0].token_ids])
    assert not torch.equal(first, second)
    for part in (first - clean).split(batch.lengths):
        bound = 5.0 / math.sqrt(part.numel())
        assert 0.95 * bound < part.abs().max() < bound + 1e-5
        assert float(part.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert abs(float(part.mean())) < 0.1 * bound


def test_without_neftune_the_embeddings_are_as_they_are() -> None:
    t = trainer(make_model())
    seen = embedded(t)
    t.step(t.train[:1])
    assert torch.equal(seen[0], t.model.get_input_embeddings().weight[torch.tensor(t.train[0].token_ids)])


# Evaluations


def test_evaluations_come_before_the_first_step_at_intervals_and_after_the_last() -> None:
    by_interval, by_epoch = Events(), Events()
    trainer(make_model(), by_interval, eval_steps=3, max_steps=7).fit()
    run = trainer(make_model(), by_epoch, epochs=2.5)
    run.fit()
    assert [event["step"] for event in by_interval.of("eval")] == [0, 3, 6, 7]
    ends = [step for step, (_, ends_epoch) in enumerate(run.plan, 1) if ends_epoch]
    assert [event["step"] for event in by_epoch.of("eval")] == [0, *ends] and len(ends) == 3


def test_an_evaluation_is_the_mean_over_the_held_out_tokens() -> None:
    run = trainer(make_model(), emit := Events(), held_out=0.3, token_budget=32)
    outcome = run.fit()
    batches = micro_batches(run.held, 4096)
    with torch.no_grad():
        sums = [run.loss(batch) for batch in batches]
    count = sum(len(batch.labels) for batch in batches)
    last = emit.of("eval")[-1]
    assert last["loss"] == outcome.eval_loss == pytest.approx(sum(float(nats) for nats, _ in sums) / count, rel=1e-5)
    assert last["accuracy"] == outcome.accuracy == sum(int(hits) for _, hits in sums) / count
    assert last["perplexity"] == outcome.perplexity == pytest.approx(math.exp(last["loss"]))
    assert outcome.eval_loss_before == emit.of("eval")[0]["loss"] != outcome.eval_loss


WORSE = {"learning_rate": 0.3, "schedule": "constant", "max_steps": 12, "eval_steps": 1, "held_out": 0.4, "max_grad_norm": 1000.0}


def evaluations(emit: Events) -> list[float]:
    return [event["loss"] for event in emit.of("eval")]


def test_training_stops_early_after_so_many_evaluations_without_a_better_one() -> None:
    trainer(make_model(), whole := Events(), **WORSE).fit()
    losses = evaluations(whole)[1:]
    for patience in (1, 2, 4):
        outcome = trainer(make_model(), emit := Events(), early_stopping=patience, **WORSE).fit()
        # The first step whose last `patience` evaluations are all no better than one before them.
        stop = next(n for n in range(patience + 1, 12) if min(losses[n - patience : n]) >= min(losses[: n - patience]))
        assert outcome.stopped_early and outcome.steps == stop < 12
        assert evaluations(emit) == evaluations(whole)[: stop + 1]
        assert outcome.best_step == 1 + losses[:stop].index(min(losses[:stop]))
    assert not trainer(make_model(), **{**WORSE, "learning_rate": 1e-4}, early_stopping=1).fit().stopped_early


def test_the_weights_that_are_kept_are_those_of_the_best_step() -> None:
    states: dict[int, dict[str, Tensor]] = {}
    run = trainer(make_model(), emit := Events(), keep_best=True, **WORSE)
    run.optimizer.register_step_post_hook(lambda *_: states.update({len(states) + 1: state(run)}))
    outcome = run.fit()
    losses = evaluations(emit)[1:]
    best = 1 + losses.index(min(losses))
    assert outcome.best_step == best < 12 and outcome.eval_loss == min(losses) < losses[-1]
    assert same(state(run), states[best]) and not same(states[best], states[12])
    last = trainer(make_model(), **WORSE)
    assert last.fit().eval_loss == losses[-1] and same(state(last), states[12])


def test_evaluations_samples_and_checkpoints_change_no_bit_of_what_is_learned(tmp_path: Path) -> None:
    options = {"dropout": 0.2, "neftune": 5.0, "max_steps": 6}
    parts = {"tokenizer": make_tokenizer(), "checkpoints": CheckpointFolder(tmp_path / "checkpoints", "a", 2)}
    watched = trainer(
        make_model(),
        emit := Events(),
        parts=parts,
        eval_steps=1,
        sample_prompts="Hello|Bye",
        checkpoint_every_s=0,
        **options,
    )
    watched.fit()
    assert [len(emit.of(kind)) for kind in ("eval", "samples", "checkpoint")] == [7, 7, 5]
    bare = trainer(make_model(), quiet := Events(), **options)
    plain_steps(bare)
    assert {event["kind"] for event in quiet} == {"progress"}
    assert same(state(watched), state(bare))
    other = trainer(make_model(), **{**options, "dropout": 0.1})
    plain_steps(other)
    assert not same(state(bare), state(other))
