"""Rows packed one behind the other give what each gives alone in transformers' own attention: losses and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from studio.datasets.rendering import Example
from studio.errors import InvalidInput
from studio.lora.adapter import AdapterSpec, attach
from studio.lora.prefix import Prefix
from studio.training.attention import NAME, TILE
from studio.training.batching import micro_batches
from studio.training.fused import fuse
from studio.training.loss import CausalLoss
from tests.oracle import perturb
from tests.tiny import FAMILIES, SHAPE, make_model
from tests.trainers import assert_near, gradients, likely_row, rows_of, trainer, untouched

# A row of one token, rows that share tiles, rows that fill one, and rows over several.
LENGTHS = (5, 1, 2 * TILE + 40, 17, TILE, TILE + 1, 40, 2, 2 * TILE)
WINDOW = 16


def seeded(kind: type, config: object) -> nn.Module:
    torch.manual_seed(0)
    return kind(config).eval()


def make_mistral() -> nn.Module:
    return seeded(MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=WINDOW))


def make_gemma2() -> nn.Module:
    """Scores and logits are soft-capped, every other layer has a window."""
    return seeded(Gemma2ForCausalLM, Gemma2Config(**SHAPE, head_dim=16, sliding_window=WINDOW, attn_logit_softcapping=2.0))


def make_gpt_oss() -> nn.Module:
    """Attention sinks."""
    return seeded(GptOssForCausalLM, GptOssConfig(**SHAPE, head_dim=16, sliding_window=WINDOW, num_local_experts=2, num_experts_per_tok=1))


def make_falcon() -> nn.Module:
    """Positions are a bias on the scores."""
    shape = {name: SHAPE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "initializer_range")}
    return seeded(FalconForCausalLM, FalconConfig(**shape, alibi=True, new_decoder_architecture=False))


PACKED = {**FAMILIES, "mistral": make_mistral}
ALONE = {"gemma2": make_gemma2, "gpt_oss": make_gpt_oss, "falcon": make_falcon}


def rows() -> list[Example]:
    return rows_of(LENGTHS)


def theirs_alone(model: nn.Module, row: Example, **options: object) -> tuple[Tensor, int]:
    """transformers' loss of a row, and how many trained tokens are the likeliest; the head is a constant, as it is for adapters."""
    ids, mask = torch.tensor(row.token_ids), torch.tensor(row.trained)[1:]
    logits = model(ids.unsqueeze(0), **options).logits[0, :-1][mask]
    return F.cross_entropy(logits, ids[1:][mask], reduction="sum"), int((logits.argmax(-1) == ids[1:][mask]).sum())


def ours_at_once(loss: CausalLoss, packed: list[Example]) -> tuple[Tensor, int]:
    (batch,) = micro_batches(packed, 10_000)
    nats, hits = loss(batch)
    return nats, int(hits)


def embedding_gradient(model: nn.Module, nats: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(nats, model.get_input_embeddings().weight)
    return grad


def learn_embeddings_alone(model: nn.Module) -> nn.Module:
    """The longest way back through a model: every layer's gradient is in its embeddings'. Untied from the head, which is a constant."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    return model


def assert_as_alone(loss: CausalLoss, model: Any, theirs: Any) -> None:
    """Our loss, hits and gradient over many rows are transformers' over each of them alone."""
    packed = [*rows(), likely_row(theirs)]
    nats, hits = ours_at_once(loss, packed)
    alone = [theirs_alone(theirs, row) for row in packed]
    whole = torch.stack([x for x, _ in alone]).sum()
    assert_near(nats, whole)
    assert hits == sum(found for _, found in alone) >= 6
    assert_near(embedding_gradient(model, nats), embedding_gradient(theirs, whole))


@pytest.mark.parametrize("family", PACKED)
def test_packed_rows_have_transformers_losses_and_gradients(family: str) -> None:
    model = learn_embeddings_alone(PACKED[family]())
    theirs = untouched(model)
    fuse(model)
    loss = CausalLoss(model)
    assert loss.packs and loss.plain and model.config._attn_implementation == NAME
    assert_as_alone(loss, model, theirs)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_an_adapter_has_the_same_gradients_packed_and_row_by_row(family: str) -> None:
    t = trainer(PACKED[family](), rows=rows())
    perturb(t.attached)
    at_once, one_by_one = gradients(t, rows(), 10_000), gradients(t, rows(), 1)
    assert len(micro_batches(rows(), 10_000)) == 1 and len(micro_batches(rows(), 1)) == len(LENGTHS)
    for x, y in zip(at_once, one_by_one, strict=True):
        assert_near(x, y)
    assert all(torch.equal(x, y) for x, y in zip(at_once, gradients(t, rows(), 10_000), strict=True))


def test_a_window_hides_what_is_further_away() -> None:
    """So the window of the test above is one: with a wider one the numbers are others."""
    wide = seeded(MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=WINDOW + 1))
    narrow = make_mistral()
    assert all(torch.equal(x, y) for x, y in zip(wide.parameters(), narrow.parameters(), strict=True))
    losses = [float(ours_at_once(CausalLoss(model), rows())[0].detach()) for model in (wide, narrow)]
    assert abs(losses[0] - losses[1]) > 1


def prefix_gradient(nats: Tensor, prefix: Prefix) -> Tensor:
    (grad,) = torch.autograd.grad(nats, prefix.embedding)
    return grad


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_behind_a_prefix_are_those_of_transformers_cache(family: str) -> None:
    model = FAMILIES[family]()
    theirs = untouched(model)
    without = float(ours_at_once(CausalLoss(untouched(model)), rows())[0].detach())
    t = trainer(model, rows=rows(), method="prefix", virtual_tokens=5)
    prefix = t.attached.prefix
    perturb(t.attached)
    nats, _ = ours_at_once(t.loss, rows())
    assert abs(float(nats.detach() - without)) > 1
    alone = []
    for row in rows():
        pairs = [tuple(part.unsqueeze(0) for part in prefix.keys_values(layer)) for layer in range(prefix.layers)]
        alone.append(theirs_alone(theirs, row, past_key_values=DynamicCache(pairs), use_cache=True)[0])
    whole = torch.stack(alone).sum()
    assert_near(nats, whole)
    assert_near(prefix_gradient(nats, prefix), prefix_gradient(whole, prefix))


@pytest.mark.parametrize("family", ALONE)
def test_what_cannot_be_packed_goes_row_by_row_with_the_same_numbers(family: str) -> None:
    model = learn_embeddings_alone(ALONE[family]())
    theirs, usual = untouched(model), model.config._attn_implementation
    loss = CausalLoss(model)
    assert not loss.packs and model.config._attn_implementation == usual
    assert_as_alone(loss, model, theirs)


def test_attention_in_chunks_is_not_packed_though_short_rows_would_not_tell() -> None:
    model = make_model()
    assert CausalLoss(model).packs
    model = make_model()
    model.config.attention_chunk_size = 8192
    assert not CausalLoss(model).packs


def test_such_a_model_trains_an_adapter_but_takes_no_prefix() -> None:
    t = trainer(make_gemma2(), epochs=2, neftune=5.0)
    outcome = t.fit()
    assert not t.loss.packs and outcome.eval_loss < outcome.eval_loss_before
    with pytest.raises(InvalidInput, match=r"method is 'prefix': the attention of this base takes no prefix; choose lora or dora\."):
        trainer(make_gemma2(), method="prefix", virtual_tokens=5)


def test_soft_caps_and_sinks_are_refused_by_the_packed_attention_itself() -> None:
    """And not only seen by the probe: the probe's rows could be too short to show them."""
    model = make_gemma2()
    loss = CausalLoss(model)
    loss.packing.install(model, "eager")
    loss.packs = True
    with pytest.raises(NotImplementedError, match="softcap"):
        ours_at_once(loss, rows())


@pytest.mark.parametrize("make", [FAMILIES["llama"], make_mistral])
def test_attention_as_usual_inside_put_aside(make: Callable[[], nn.Module]) -> None:
    model = make()
    theirs, ids = untouched(model), torch.tensor([row.token_ids for row in rows_of([40, 40])])
    loss = CausalLoss(model)
    ours_at_once(loss, rows())
    with loss.packing.put_aside(model):
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=0, atol=0)
    before = ours_at_once(loss, rows())
    assert torch.equal(before[0], ours_at_once(CausalLoss(theirs), rows())[0])


def test_a_prefix_of_any_length_starts_from_the_models_own_attention() -> None:
    """Its start is computed by the model, which then must not think of the rows that were packed last."""
    for length in (3, 16, 20):
        t = trainer(FAMILIES["llama"](), method="prefix", virtual_tokens=length)
        alone = attach(FAMILIES["llama"](), AdapterSpec(method="prefix", virtual_tokens=length), start_ids=t.train[0].token_ids)
        assert_near(t.attached.parameters["prefix"], alone.parameters["prefix"])
