"""One product for layers that share their input: the plain formula's numbers, PEFT's gradients, the right groups."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from studio.bases.loading import load_model
from studio.lora.layers import LoraLinear
from studio.lora.product import SharedInput, _SharedProduct, share_inputs
from studio.lora.starts import Start
from studio.training.batching import micro_batches
from studio.training.loop import Trainer
from tests.oracle import copy_into, perturb, trained_by
from tests.tiny import FAMILIES, make_model
from tests.trainers import assert_near, examples, gradients, same, state, trainer

SCALE = 0.7


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layers(count: int, bias: bool) -> list[LoraLinear]:
    """Float64 layers from 5 to 3, 4, 5 … numbers, of ranks 2, 3, 4 …"""
    made = []
    for index in range(count):
        base = nn.Linear(5, 3 + index, bias=bias).double().requires_grad_(False)
        base.weight.data = numbers(3 + index, 5, seed=index)
        if bias:
            base.bias.data = numbers(3 + index, seed=20 + index)
        rank = 2 + index
        made.append(LoraLinear(base, Start(numbers(rank, 5, seed=40 + index), numbers(3 + index, rank, seed=60 + index)), SCALE, 0.0))
    return made


def formula(members: list[LoraLinear], x: Tensor, factors: tuple[Tensor, ...]) -> list[Tensor]:
    """W x + b + s · B (A x)."""
    pairs = zip(members, factors[::2], factors[1::2], strict=True)
    return [F.linear(x, m.base.weight, m.base.bias) + SCALE * F.linear(F.linear(x, a), b) for m, a, b in pairs]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_outputs_and_gradients_are_those_of_the_formula(count: int, bias: bool) -> None:
    members = layers(count, bias)
    x = numbers(2, 3, 5, seed=9).requires_grad_()
    factors = tuple(factor for member in members for factor in member.factors())
    assert torch.autograd.gradcheck(lambda x, *f: _SharedProduct.apply(x, members, *f), (x, *factors))
    shared = SharedInput(members)
    outputs = [shared.product(member, x) for member in members], formula(members, x, factors)
    weights = [numbers(*y.shape, seed=index) for index, y in enumerate(outputs[0])]
    grads = [torch.autograd.grad(sum((y * w).sum() for y, w in zip(ys, weights, strict=True)), (x, *factors)) for ys in outputs]
    for ours, theirs in (*zip(*outputs, strict=True), *zip(*grads, strict=True)):
        torch.testing.assert_close(ours, theirs)


def test_an_output_that_nothing_uses_has_no_gradient_to_give() -> None:
    members = layers(3, True)
    x = numbers(4, 5, seed=9).requires_grad_()
    shared = SharedInput(members)
    first, _, last = (shared.product(member, x) for member in members)
    (first.sum() + last.sum()).backward()
    assert not members[1].lora_A.grad.any() and not members[1].lora_B.grad.any()
    assert members[0].lora_B.grad.any() and members[2].lora_B.grad.any()


def test_the_first_that_is_called_computes_for_all_and_each_input_is_its_own() -> None:
    members = layers(2, False)
    shared = SharedInput(members)
    x, other = numbers(4, 5, seed=1), numbers(4, 5, seed=2)
    wanted = {id(t): formula(members, t, tuple(f for m in members for f in m.factors())) for t in (x, other)}
    for t in (x, other, x):
        for index in (0, 1):
            torch.testing.assert_close(shared.product(members[index], t), wanted[id(t)][index])
    shared.product(members[0], x)  # the second never asks
    torch.testing.assert_close(shared.product(members[0], other), wanted[id(other)][0])
    torch.testing.assert_close(shared.product(members[1], x), wanted[id(x)][1])


def test_an_input_that_was_changed_in_place_is_another_input() -> None:
    members = layers(2, False)
    shared = SharedInput(members)
    x = numbers(4, 5, seed=1)
    before = shared.product(members[0], x)
    x.mul_(2)
    torch.testing.assert_close(shared.product(members[1], x), formula(members, x, tuple(f for m in members for f in m.factors()))[1])
    torch.testing.assert_close(shared.product(members[0], x), 2 * before)


def groups(t: Trainer) -> list[list[str]]:
    """The names, within their blocks, of the layers that multiply as one, in the first block."""
    names = {id(layer): name for name, layer in t.attached.layers.items()}
    found = [[names[id(member)] for member in group.layers] for group in t.shared]
    assert sorted(name for group in found for name in group) == sorted(names.values())
    return [[name.rpartition(".")[2] for name in group] for group in found if ".0." in group[0]]


@pytest.mark.parametrize(
    ("family", "targets", "wanted"),
    [
        ("llama", "all-linear", [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]),
        ("qwen3", "all-linear", [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]),
        ("llama", "q_proj,v_proj,up_proj", [["q_proj", "v_proj"], ["up_proj"]]),
        ("phi3", "all-linear", [["qkv_proj"], ["o_proj"], ["gate_up_proj"], ["down_proj"]]),
        ("gpt2", "all-linear", [["c_attn"], ["c_proj"], ["c_fc"], ["c_proj"]]),
    ],
)
def test_layers_that_read_the_same_are_found(family: str, targets: str, wanted: list[list[str]]) -> None:
    assert groups(trainer(FAMILIES[family](), targets=targets)) == wanted


def test_a_layer_that_is_called_twice_multiplies_alone() -> None:
    twice, once = layers(2, False)
    x = numbers(4, 5)
    found = share_inputs([twice, once], lambda: (twice(x), once(x), twice(numbers(4, 5, seed=3))))
    assert not found and twice.shared is None and once.shared is None


def test_a_run_that_fails_leaves_no_hook() -> None:
    members = layers(2, False)

    def fail() -> None:
        members[0](numbers(4, 5))
        raise ValueError("on the way")

    with pytest.raises(ValueError, match="on the way"):
        share_inputs(members, fail)
    assert not any(member._forward_pre_hooks for member in members)


def plain(t: Trainer) -> Trainer:
    """Each layer on its own, by autograd."""
    for layer in t.attached.layers.values():
        layer.shared = None
    return t


@pytest.mark.parametrize("quantization", ["fp32", "nf4", "int8"])
def test_a_model_has_the_same_gradients_with_and_without_sharing(tiny_base: Path, quantization: str) -> None:
    found = []
    for take in (lambda t: t, plain):
        model = load_model(tiny_base, quantization)
        for parameter in model.parameters():
            if parameter.dtype == torch.bfloat16:  # what is not quantized: then all products are in float32
                parameter.data = parameter.data.float()
        t = take(trainer(model, quantization=quantization))
        perturb(t.attached)
        found.append(gradients(t, examples()))
    for ours, theirs in zip(*found, strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_whole_model_are_pefts(family: str) -> None:
    """Everything at once: packed rows, fused norms and gates, shared products, the loss's own gradient."""
    t = trainer(FAMILIES[family](), alpha=8.0)
    perturb(t.attached)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2")
    theirs = get_peft_model(FAMILIES[family](), config).eval()
    copy_into(theirs, t.attached)
    gradients(t, examples())
    for row in examples():
        labels = torch.tensor([[token if trained else -100 for token, trained in zip(row.token_ids, row.trained, strict=True)]])
        mean = theirs(torch.tensor([row.token_ids]), labels=labels).loss
        (mean * int((labels[:, 1:] >= 0).sum())).backward()
    other = trained_by(theirs)
    assert set(other) == set(t.attached.parameters)
    for name, parameter in t.attached.parameters.items():
        assert_near(parameter.grad, other[name].grad)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_activations_that_are_computed_twice_give_the_same_bits(family: str) -> None:
    runs = [
        trainer(FAMILIES[family](), activation_checkpointing=mode, dropout=d, neftune=n)
        for d, n in ((0, 0), (0.1, 5))
        for mode in ("off", "on")
    ]
    for run in runs:
        run.fit()
    assert [run.at.recompute for run in runs] == [False, True, False, True]
    states = [state(run) for run in runs]
    assert same(states[0], states[1]) and same(states[2], states[3]) and not same(states[0], states[2])


def test_a_block_computes_its_products_twice_only_where_it_is_asked_to() -> None:
    counts = []
    for mode in ("off", "on"):
        t = trainer(make_model(), activation_checkpointing=mode)
        t._set_recompute(t.at.recompute)
        calls: list[int] = []
        t.model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        gradients(t, examples()[:2])
        counts.append(len(calls))
    assert counts == [1, 2]


def test_dropout_acts_on_the_input_of_a_in_training_alone() -> None:
    """In training each layer drops for itself, so it multiplies alone; in evaluation the group does, and nothing is dropped."""
    dropping, whole = trainer(make_model(), dropout=0.5), trainer(make_model())
    found = []
    alone = plain(trainer(make_model(), dropout=0.5))
    for t in (dropping, whole, alone):
        perturb(t.attached)
    for t in (dropping, whole, dropping, alone):
        torch.manual_seed(1)
        found.append(gradients(t, examples()))
    first, without, again, by_itself = found
    for x, y, z in zip(first, again, by_itself, strict=True):
        assert torch.equal(x, y) and torch.equal(x, z)
    assert all((x - y).abs().max() > 0.1 * y.abs().max() for x, y in zip(first, without, strict=True))
    assert dropping.evaluate() == whole.evaluate()


@pytest.mark.parametrize("where", ["k_proj", "up_proj", "down_proj"])
def test_a_forward_pass_that_failed_on_the_way_leaves_nothing_behind(where: str) -> None:
    t = trainer(make_model())
    perturb(t.attached)
    (batch,) = micro_batches(examples(), 4096)
    wanted, evaluation = gradients(t, examples()), t.evaluate()

    def fail(*_: object) -> None:
        raise RuntimeError("on the way")

    layer = next(layer for name, layer in t.attached.layers.items() if name.endswith(where))
    for grad in (torch.enable_grad, torch.no_grad):
        hook = layer.register_forward_pre_hook(fail)
        with grad(), pytest.raises(RuntimeError, match="on the way"):
            t.loss(batch)
        hook.remove()
        assert all(torch.equal(x, y) for x, y in zip(gradients(t, examples()), wanted, strict=True))
        assert t.evaluate() == evaluation


@pytest.mark.parametrize("recompute", [False, True])
def test_nothing_is_held_between_steps(recompute: bool) -> None:
    """A group that kept its input or outputs would hold a piece's activations while the next one is computed."""
    t = trainer(make_model())
    t._set_recompute(recompute)
    for act in (lambda: gradients(t, examples()), t.evaluate):
        act()
        assert all(not group._ready and group._input is None for group in t.shared)
