"""The engine with PEFT and transformers as oracles: every kind of adapter, every family, all in one batch, token by token."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from studio.chat.bank import BASE, Part, Voice
from studio.chat.engine import AdapterSource, Capacity, Engine
from studio.chat.prefill import PIECE
from studio.chat.runner import LeanRunner, PlainRunner
from studio.chat.sampling import Sampling
from studio.lora.adapter import AdapterSpec, attach
from studio.lora.files import AdapterWeights, adapter_sha256, read_adapter
from tests.oracle import load_in_peft, perturb, write
from tests.tiny import FAMILIES, make_tokenizer

COUNT = 64
GREEDY = Sampling(max_tokens=COUNT, temperature=0.0, ignore_eos=True)
PROMPTS = [list(range(20, 50)), [7], list(range(300, 311)), list(range(100, 190))]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alpha": 8.0},
    "wide": {"rank": 24, "alpha": 24.0},
    "rslora": {"rank": 9, "alpha": 9.0, "rslora": True},
    "attention": {"rank": 8, "alpha": 8.0, "targets": "attention", "layers": "last 1"},
    "dora": {"method": "dora", "rank": 4, "alpha": 8.0},
    "prefix": {"method": "prefix", "virtual_tokens": 5},
}


def greedy(model: nn.Module, prompt: list[int], count: int = COUNT) -> list[int]:
    """transformers' continuation of one prompt alone."""
    ids = torch.tensor([prompt])
    said = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return said[0, len(prompt) :].tolist()


def make_adapters(family: str, folder: Path) -> dict[str, Path]:
    """One adapter of each kind, none of which leaves the base as it is."""
    found = {}
    for seed, (kind, spec) in enumerate(KINDS.items()):
        attached = attach(FAMILIES[family](), AdapterSpec(**spec), start_ids=list(range(30, 60)))
        perturb(attached, seed)
        found[kind] = write(folder / kind, attached.weights())
    return found


def source(folder: Path) -> AdapterSource:
    return AdapterSource(adapter_sha256(folder), lambda: read_adapter(folder))


def voice(*folders: Path) -> Voice:
    return Voice(tuple(Part(source(folder)) for folder in folders))


@pytest.fixture
def start() -> Iterator[Callable[..., Engine]]:
    """Starts engines on tiny models in float32 and closes them."""
    engines: list[Engine] = []

    def make(model: nn.Module, **limits: int) -> Engine:
        engines.append(Engine(lambda: (model, make_tokenizer()), Capacity(**{"slots": 8, "max_batch": 32, **limits})))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def tokens_of(engine: Engine, asked: list[tuple[list[int], Voice]]) -> list[list[int]]:
    """What each of some requests, all running together, says."""
    tickets = [engine.submit(prompt, Sampling(**{**vars(GREEDY), "logprobs": 0}), voice) for prompt, voice in asked]
    for ticket in tickets:
        ticket.text()
    return [[one.token_id for one in ticket.logprobs] for ticket in tickets]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_all_kinds_says_what_peft_says_of_each_alone(family: str, tmp_path: Path, start: Callable[..., Engine]) -> None:
    engine = start(FAMILIES[family]())
    assert isinstance(engine.runner, PlainRunner if family == "gpt2" else LeanRunner)
    folders = make_adapters(family, tmp_path)
    wanted = {"base": [greedy(FAMILIES[family](), prompt) for prompt in PROMPTS]}
    for kind, folder in folders.items():
        theirs = load_in_peft(FAMILIES[family](), folder)
        wanted[kind] = [greedy(theirs, prompt) for prompt in PROMPTS]
    assert len({str(said) for said in wanted.values()}) == len(wanted)  # each changes the answers
    voices = {"base": BASE} | {kind: voice(folder) for kind, folder in folders.items()}
    asked = [(kind, index) for index in range(len(PROMPTS)) for kind in voices]
    said = tokens_of(engine, [(PROMPTS[index], voices[kind]) for kind, index in asked])
    assert [pair for pair, one in zip(asked, said, strict=True) if one != wanted[pair[0]][pair[1]]] == []
    again = tokens_of(engine, [(PROMPTS[1], voices["dora"])])
    assert again == [wanted["dora"][1]]


def merged(family: str, parts: list[tuple[AdapterWeights, float]]) -> nn.Module:
    """A model whose dense weights hold a weighted sum of adapters."""
    model = FAMILIES[family]()
    with torch.no_grad():
        for weights, share in parts:
            for name, (a, b) in weights.pairs.items():
                delta = share * weights.scale * (b @ a)
                weight = model.get_submodule(name).weight
                weight += delta.T if family == "gpt2" else delta
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_blend_says_what_the_sum_of_its_adapters_says(family: str, tmp_path: Path, start: Callable[..., Engine]) -> None:
    engine = start(FAMILIES[family]())
    folders = make_adapters(family, tmp_path)
    blends = [{"lora": 0.7, "wide": 0.3}, {"lora": 1.3}, {"rslora": 2.0, "attention": 0.5, "lora": 0.25}, {"wide": 0.3, "lora": 0.7}]
    wanted = [greedy(merged(family, [(read_adapter(folders[k]), w) for k, w in blend.items()]), PROMPTS[0]) for blend in blends]
    assert wanted[0] == wanted[3] and len({str(said) for said in wanted}) == 3
    voices = [Voice(tuple(Part(source(folders[kind]), weight) for kind, weight in blend.items())) for blend in blends]
    assert tokens_of(engine, [(PROMPTS[0], one) for one in voices]) == wanted
    assert tokens_of(engine, [(PROMPTS[0], voices[0])]) == wanted[:1]  # alone in the batch as well


def test_a_blend_of_doras_moves_from_the_base_to_each(tmp_path: Path, start: Callable[..., Engine]) -> None:
    engine = start(FAMILIES["llama"]())
    dora = source(make_adapters("llama", tmp_path)["dora"])

    def first(weight: float) -> torch.Tensor:
        ticket = engine.submit(PROMPTS[0], GREEDY, Voice((Part(dora, weight),)) if weight else BASE, wants_distribution=True)
        ticket.text()
        assert ticket.distribution is not None
        return ticket.distribution.exp()

    base, shifts = first(0), [float((first(w) - first(0)).abs().sum()) for w in (0.1, 0.5, 1.0)]
    assert base.sum() == pytest.approx(1, abs=1e-4) and 0 < shifts[0] < shifts[1] < shifts[2]


def test_a_prefix_and_a_lora_speak_together_and_two_prefixes_do_not(tmp_path: Path, start: Callable[..., Engine]) -> None:
    engine = start(FAMILIES["llama"]())
    folders = make_adapters("llama", tmp_path)
    theirs = load_in_peft(merged("llama", [(read_adapter(folders["lora"]), 1.0)]), folders["prefix"])
    assert tokens_of(engine, [(PROMPTS[0], voice(folders["prefix"], folders["lora"]))]) == [greedy(theirs, PROMPTS[0])]
    other = AdapterSource("another", lambda: read_adapter(folders["prefix"]))
    two = Voice((Part(source(folders["prefix"])), Part(other)))
    with pytest.raises(Exception, match="holds two; leave one of them out"):
        engine.submit(PROMPTS[0], GREEDY, two).text()
    with pytest.raises(Exception, match="set it to 1"):
        engine.submit(PROMPTS[0], GREEDY, Voice((Part(other, 0.5),))).text()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_next_turn_computes_its_new_tokens_alone_and_says_the_same(family: str, tmp_path: Path, start: Callable[..., Engine]) -> None:
    folders = make_adapters(family, tmp_path)
    engine, fresh = start(FAMILIES[family]()), start(FAMILIES[family](), kv_mb=0)
    for speaker in (BASE, voice(folders["lora"]), voice(folders["prefix"])):
        prompt = PROMPTS[3]
        said = tokens_of(engine, [(prompt, speaker)])[0]
        longer = [*prompt, *said, *range(400, 410)]
        ticket = engine.submit(longer, GREEDY, speaker)
        ticket.text()
        assert ticket.finished is not None and ticket.finished.reused_tokens == (len(prompt) + len(said) - 1) // PIECE * PIECE > 64
        wanted = tokens_of(fresh, [(longer, speaker)])
        assert tokens_of(engine, [(longer, speaker)]) == wanted
        stranger = engine.submit(longer, GREEDY, voice(folders["wide"]))
        stranger.text()
        assert stranger.finished is not None and stranger.finished.reused_tokens == 0  # another's keys and values are not its own
        engine.call(engine.kept.clear)


@pytest.mark.parametrize("odd", ["partial_rotary", "softcap"])
def test_a_variant_that_the_loop_was_not_written_for_runs_as_transformers_wrote_it(odd: str, start: Callable[..., Engine]) -> None:
    """A model of a known type that computes something else: the loop is tried on it, found wanting, and left alone."""
    model, plain = FAMILIES["llama"](), FAMILIES["llama"]()
    for one in (model, plain):
        if odd == "partial_rotary":  # the loop raises
            rotary = one.model.rotary_emb
            rotary.register_forward_hook(lambda _m, _i, out: (out[0][..., :8], out[1][..., :8]))
            for block in one.model.layers:
                block.self_attn.register_forward_pre_hook(_whole_rotation, with_kwargs=True)
        else:  # the loop computes something else
            one.model.layers[1].register_forward_hook(lambda _m, _i, out: torch.tanh(out))
    engine = start(model)
    assert isinstance(engine.runner, PlainRunner)
    assert tokens_of(engine, [(PROMPTS[0], BASE)]) == [greedy(plain, PROMPTS[0])]


def _whole_rotation(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give the attention what it needs of a rotation that was cut: ones and zeros turn nothing."""
    cos, sin = kwargs["position_embeddings"]
    more = (cos.shape[0], cos.shape[1], 8)
    return args, kwargs | {"position_embeddings": (torch.cat([cos, cos.new_ones(more)], -1), torch.cat([sin, sin.new_zeros(more)], -1))}
