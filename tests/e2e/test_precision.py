"""The starter base as the chat holds it on the CPU, int8 by row for NF4, against NF4 as trainings see it; and long greedy answers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from studio.bases.loading import load_model, load_tokenizer
from studio.chat.bank import Part, Voice
from studio.chat.engine import AdapterSource, Capacity, Engine
from studio.chat.kv import KvBatch
from studio.chat.runner import LeanRunner, make_runner
from studio.chat.sampling import Sampling
from studio.lora.adapter import AdapterSpec, attach
from studio.lora.files import AdapterWeights
from studio.lora.frozen import FrozenQuantizedLinear, freeze_quantized
from studio.lora.packed import PackedProduct
from studio.lora.serving import Routing
from tests.oracle import perturb
from tests.tiny import HELD_OUT

ROWS = 8
MAX_LOSS_CHANGE = 0.001  # of the held-out loss
MAX_ERROR_SHARE = 0.1  # of what NF4 itself errs by


@pytest.fixture(scope="module")
def text(starter_base: Path) -> Tensor:
    """(ROWS, T) tokens: all of the text that ships with the studio."""
    ids = load_tokenizer(starter_base)(HELD_OUT.read_text(encoding="utf-8"))["input_ids"]
    return torch.tensor(ids[: len(ids) // ROWS * ROWS]).view(ROWS, -1)


@torch.inference_mode()
def test_the_held_out_loss_is_that_of_nf4(starter_base: Path, text: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.lora.packed.FEW_ROWS", ROWS)  # int8 computes all of them
    exact = load_model(starter_base, "nf4")
    freeze_quantized(exact)
    wanted = exact(input_ids=text).logits[:, :-1].float()
    loss = float(F.cross_entropy(wanted.flatten(0, 1), text[:, 1:].flatten()))
    runner = make_runner(load_model(starter_base, "nf4"), Routing(), torch.float32, packed=True)
    assert isinstance(runner, LeanRunner) and isinstance(runner.blocks[0].qkv.product, PackedProduct)
    kv, losses = KvBatch(), []
    kv.lengths = [0] * ROWS
    for column in range(text.shape[1] - 1):  # a step at a time, as the chat decodes
        logits = runner.forward(text[:, column : column + 1], kv)
        kv.advance(1)
        losses.append(F.cross_entropy(logits.float(), text[:, column + 1]))
    packed = float(torch.stack(losses).mean())
    print(f"held-out loss: exact {loss:.5f}, packed {packed:.5f}, {packed / loss - 1:+.3%}")
    assert abs(packed / loss - 1) <= MAX_LOSS_CHANGE


@torch.inference_mode()
def test_int8_errs_by_a_tenth_of_what_nf4_errs_by(starter_base: Path) -> None:
    original, held = load_model(starter_base, "bf16"), load_model(starter_base, "nf4")
    freeze_quantized(held)
    x = torch.randn(8, original.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    shares = []
    for index in range(0, original.config.num_hidden_layers, 5):
        name = f"model.layers.{index}.mlp.up_proj"
        layer = held.get_submodule(name)
        assert isinstance(layer, FrozenQuantizedLinear)
        true, nf4 = original.get_submodule(name)(x).float(), layer(x.float())
        shares.append(float((PackedProduct([layer], keep_dense=False)(x).float() - nf4).norm() / (nf4 - true).norm()))
    print("int8's error over NF4's:", [round(share, 3) for share in shares])
    assert max(shares) <= MAX_ERROR_SHARE


@pytest.mark.soak
def test_a_mixed_batch_on_the_starter_base_says_what_transformers_says_of_each_row(starter_base: Path) -> None:
    """float32, 64 tokens, greedy, token by token; the oracle runs the layers that trainings run."""
    prompts = [[1, 4093, 198, 1780, 359, 346, 47, 2, 198, 1, 520, 9531, 198], [504, 3575, 282, 4649, 314]]
    specs = [AdapterSpec(rank=8, alpha=8.0), AdapterSpec(rank=16, alpha=16.0, targets="attention")]
    weights, wanted = list[AdapterWeights](), list[list[list[int]]]()
    for seed, spec in enumerate([None, *specs]):
        model = load_model(starter_base, "fp32")
        if spec is not None:
            attached = attach(model, spec)
            perturb(attached, seed)
            for layer in attached.layers.values():
                layer.lora_B.data *= 0.2
            weights.append(attached.weights())
        wanted.append([greedy(model, prompt) for prompt in prompts])
    assert len({str(said) for said in wanted}) == 3
    engine = Engine(lambda: (load_model(starter_base, "fp32"), load_tokenizer(starter_base)), Capacity())
    voices = [Voice(), *(Voice((Part(AdapterSource(str(n), lambda w=w: w)),)) for n, w in enumerate(weights))]
    sampling = Sampling(max_tokens=64, temperature=0.0, ignore_eos=True, logprobs=0)
    tickets = [[engine.submit(prompt, sampling, voice) for prompt in prompts] for voice in voices]
    for ticket in (ticket for row in tickets for ticket in row):
        ticket.text()
    assert [[[one.token_id for one in ticket.logprobs] for ticket in row] for row in tickets] == wanted
    engine.close()


@torch.inference_mode()
def greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    said = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False, eos_token_id=None)
    return said[0, len(prompt) :].tolist()
