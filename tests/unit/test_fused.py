"""Norms and gated MLPs with a backward pass of their own: the numbers of the modules that they stand in for."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaConfig, GemmaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from studio.training.fused import FusedRMSNorm, GatedMlp, _GatedSilu, _RMSNorm, fuse, is_fused
from tests.tiny import FAMILIES, SHAPE, make_model

EPS = 1e-2  # large, so that a wrong place of it shows


def numbers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def test_the_gradient_of_the_norm_is_that_of_finite_differences() -> None:
    weight = numbers(6, seed=1).detach()
    assert torch.autograd.gradcheck(lambda x: _RMSNorm.apply(x, weight, EPS), (numbers(2, 3, 6),))


def test_the_gradients_of_the_gate_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(_GatedSilu.apply, (numbers(2, 3, 4), numbers(2, 3, 4, seed=1)))


def llama_norm(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    norm = LlamaRMSNorm(64, EPS).to(dtype)
    norm.weight.data = numbers(64, dtype=dtype, seed=1).detach()
    return norm, FusedRMSNorm(norm.weight, EPS)


def llama_mlp(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    mlp = copy.deepcopy(next(m for m in make_model().modules() if isinstance(m, LlamaMLP))).to(dtype).requires_grad_(False)
    return mlp, GatedMlp(mlp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [llama_norm, llama_mlp])
def test_output_and_gradient_are_those_of_the_module(make: object, dtype: torch.dtype) -> None:
    theirs, ours = make(dtype)
    x, weights = numbers(2, 9, 64, dtype=dtype), numbers(2, 9, 64, dtype=dtype, seed=2).detach()
    outputs = theirs(x), ours(x)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0)
    grads = [torch.autograd.grad((y * weights).sum(), x)[0] for y in outputs]
    exact = torch.autograd.grad((copy.deepcopy(theirs).double()(x.double()) * weights.double()).sum(), x)[0].double()
    assert exact.abs().max() > 0.1
    errors = [float((grad.double() - exact).norm() / exact.norm()) for grad in grads]
    assert errors[1] < (1e-6 if dtype == torch.float32 else 1e-2) and errors[1] < 1.5 * errors[0] + 1e-7


@pytest.mark.parametrize(
    ("family", "count"), [("llama", 2 * 3 + 1), ("qwen2", 2 * 3 + 1), ("qwen3", 2 * 5 + 1), ("phi3", 2 * 2 + 1), ("gpt2", 0)]
)
def test_norms_and_gates_are_replaced_where_they_are_what_their_names_say(family: str, count: int) -> None:
    model = FAMILIES[family]()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.uniform_(0.5, 1.5)
    ids = torch.arange(20).unsqueeze(0)
    before, names = model(ids).logits, {name for name, _ in model.named_parameters()}
    assert is_fused(model) == (count > 0) and fuse(model) == count
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)
    assert {name for name, _ in model.named_parameters()} == names
    assert sum(isinstance(module, FusedRMSNorm | GatedMlp) for module in model.modules()) == count


@pytest.mark.parametrize(
    "make", [lambda: GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=16)), lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE))]
)
def test_gemma_keeps_its_norms_and_its_own_activation(make: object) -> None:
    """Its norm multiplies by 1 + w, and its gate is a GELU."""
    model = make().eval()
    ids = torch.arange(20).unsqueeze(0)
    before = model(ids).logits
    assert any(type(module).__name__.endswith("RMSNorm") for module in model.modules())
    assert fuse(model) == 0
    assert torch.equal(model(ids).logits, before)


def test_a_norm_of_the_name_with_other_numbers_stays() -> None:
    class OddRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) * 1.02

    assert fuse(nn.ModuleDict({"norm": LlamaRMSNorm(8)})) == 1
    assert fuse(nn.ModuleDict({"norm": OddRMSNorm(8)})) == 0
