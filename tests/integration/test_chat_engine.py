"""The scheduler on a tiny model: right answers under load, and a base that nothing can change."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from studio.chat.bank import Lease, Part, Voice
from studio.chat.engine import AdapterSource, Capacity, Engine, Ticket
from studio.chat.kv import KvBatch
from studio.chat.sampling import Sampling
from studio.chat.service import load_engine
from studio.datasets.rendering import prompt_ids
from studio.errors import IncompatibleAdapter, InvalidInput, StudioError
from studio.lora.files import AdapterWeights
from studio.lora.injection import linear_layers

GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True)
PROMPTS = ["Hello", "What is the time?", "Tell me a long story about a dog and a cat", "Why?", "Describe the sea to a child"]


def random_adapter(model: torch.nn.Module, seed: int, rank: int) -> AdapterWeights:
    """An adapter whose B is not zero, strong enough to change every answer."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, layer in linear_layers(model).items():
        a = torch.randn(rank, layer.in_features, generator=generator) * 0.1
        b = torch.randn(layer.out_features, rank, generator=generator) * 0.5
        pairs[name] = (a, b)
    return AdapterWeights(rank, float(rank), False, pairs)


def source(weights: AdapterWeights, name: str) -> AdapterSource:
    return AdapterSource(name, lambda: weights)


@pytest.fixture(scope="module")
def adapters(tiny_base: Path) -> list[AdapterSource]:
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    return [source(random_adapter(model, seed, rank), f"adapter-{seed}") for seed, rank in ((1, 4), (2, 8), (3, 16))]


@pytest.fixture
def engine(tiny_base: Path) -> Iterator[Engine]:
    engine = load_engine(tiny_base, "fp32", Capacity(slots=3, max_batch=8))
    yield engine
    engine.close()


def voice(*adapters: AdapterSource | None) -> Voice:
    return Voice(tuple(Part(one) for one in adapters if one is not None))


def ids(engine: Engine, prompt: str) -> list[int]:
    return prompt_ids(engine.tokenizer, [{"role": "user", "content": prompt}])


def answer(engine: Engine, prompt: str, adapter: AdapterSource | None) -> str:
    return engine.submit(ids(engine, prompt), GREEDY, voice(adapter)).text()


def test_200_concurrent_requests_equal_each_given_alone(engine: Engine, adapters: list[AdapterSource]) -> None:
    voices: list[AdapterSource | None] = [None, *adapters]
    checksum = engine.checksum()
    alone = {(p, i): answer(engine, p, voice) for p in PROMPTS for i, voice in enumerate(voices)}
    for p in PROMPTS:  # the voices differ, or the test would prove nothing
        assert len({alone[p, i] for i in range(len(voices))}) == len(voices)
    jobs = [(random.Random(n).choice(PROMPTS), n % len(voices)) for n in range(200)]
    results: list[str | Exception] = [""] * len(jobs)

    def ask(n: int) -> None:
        try:
            results[n] = answer(engine, jobs[n][0], voices[jobs[n][1]])
        except Exception as error:
            results[n] = error

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [n for n, job in enumerate(jobs) if results[n] != alone[job]] == []
    assert engine.checksum() == checksum


def test_greedy_answers_equal_those_of_transformers(engine: Engine, tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    for prompt in PROMPTS:
        token_ids = torch.tensor([ids(engine, prompt)])
        wanted = model.generate(token_ids, max_new_tokens=24, do_sample=False, eos_token_id=None)
        text = engine.tokenizer.decode(wanted[0, token_ids.shape[1] :], skip_special_tokens=True)
        # The length may cut a character in two; half a character is never sent.
        assert len(text) > 10 and answer(engine, prompt, None) == text.rstrip("\ufffd")


def test_more_adapters_than_slots_take_turns(engine: Engine, tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    many = [source(random_adapter(model, seed, 4), f"many-{seed}") for seed in range(10, 20)]
    alone = [answer(engine, "Hello", one) for one in many]
    assert len(set(alone)) == len(many)
    tickets = [engine.submit(ids(engine, "Hello"), GREEDY, voice(one)) for one in many for _ in range(2)]
    assert [t.text() for t in tickets] == [text for text in alone for _ in range(2)]
    assert len(engine.bank.resident) == 3


def base_logits(engine: Engine) -> torch.Tensor:
    """The base's own logits, straight from the model, between two steps."""

    def work() -> torch.Tensor:
        engine.bank.route([Lease()])
        return engine.runner.forward(torch.arange(2, 40).unsqueeze(0), KvBatch.starting())

    return engine.call(work)


@pytest.mark.parametrize("quantization", ["fp32", "nf4", "int8"])
def test_the_base_is_bit_identical_after_swaps_and_failures(tiny_base: Path, quantization: str, adapters: list[AdapterSource]) -> None:
    engine = load_engine(tiny_base, quantization, Capacity(slots=1, max_batch=4))
    checksum, logits, text = engine.checksum(), base_logits(engine), answer(engine, "Hello", None)
    for adapter in adapters:
        answer(engine, "Hello", adapter)

    def broken() -> AdapterWeights:
        raise OSError("the disk is gone")

    def other_base() -> AdapterWeights:
        return AdapterWeights(4, 4.0, False, {"model.layers.0.self_attn.q_proj": (torch.ones(4, 32), torch.ones(64, 4))})

    with pytest.raises(StudioError, match="send it again"):
        answer(engine, "Hello", AdapterSource("broken", broken))
    with pytest.raises(IncompatibleAdapter, match="layer of"):
        answer(engine, "Hello", AdapterSource("other", other_base))
    assert engine.checksum() == checksum
    assert torch.equal(base_logits(engine), logits)
    assert answer(engine, "Hello", None) == text
    engine.close()


def test_an_adapter_of_nan_fails_alone(engine: Engine, adapters: list[AdapterSource]) -> None:
    good = answer(engine, "Why?", adapters[0])
    weights = adapters[1].load()
    poison = AdapterWeights(
        weights.rank, weights.alpha, False, {n: (a, torch.full_like(b, float("nan"))) for n, (a, b) in weights.pairs.items()}
    )
    neighbours = [engine.submit(ids(engine, "Why?"), GREEDY, voice(adapters[0])) for _ in range(3)]
    bad = engine.submit(ids(engine, "Why?"), GREEDY, voice(source(poison, "poison")))
    with pytest.raises(StudioError, match="not finite"):
        bad.text()
    assert [t.text() for t in neighbours] == [good] * 3
    # Its slot is used again by others without a trace.
    after = [answer(engine, "Why?", adapter) for adapter in (*adapters, adapters[0])]
    assert after[0] == after[3] == good


def test_cancel_ends_a_reply_and_frees_its_place(engine: Engine, adapters: list[AdapterSource]) -> None:
    endless = Sampling(max_tokens=400, temperature=0.0, ignore_eos=True)
    ticket = engine.submit(ids(engine, "Hello"), endless, voice(adapters[0]))
    pieces = iter(ticket)
    first = next(pieces)
    ticket.cancel()
    rest = list(pieces)
    assert first and ticket.finished is not None and ticket.finished.reason == "cancelled"
    assert len(rest) < 400 and ticket.finished.tokens < 400
    assert answer(engine, "Hello", adapters[1])


def test_a_conversation_over_the_context_is_refused_with_the_numbers(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="context is 512"):
        engine.submit(list(range(2, 500)), GREEDY)


def test_the_same_seed_draws_the_same_reply(engine: Engine) -> None:
    hot = Sampling(max_tokens=16, temperature=1.5, top_p=0.95, seed=7, ignore_eos=True)
    texts = {engine.submit(ids(engine, "Hello"), hot).text() for _ in range(3)}
    other = engine.submit(ids(engine, "Hello"), Sampling(max_tokens=16, temperature=1.5, seed=8, ignore_eos=True)).text()
    assert len(texts) == 1 and other not in texts


def test_close_tells_those_who_wait(tiny_base: Path) -> None:
    engine = load_engine(tiny_base, "fp32", Capacity(slots=1, max_batch=1))
    endless = Sampling(max_tokens=450, temperature=0.0, ignore_eos=True)
    tickets: list[Ticket] = [engine.submit(ids(engine, "Hello"), endless) for _ in range(3)]
    engine.close()
    for ticket in tickets:
        with pytest.raises(StudioError, match="closed"):
            ticket.text()
    with pytest.raises(StudioError, match="closed"):
        engine.submit([2, 3], GREEDY)


@pytest.mark.timeout(120)
def test_those_who_wait_go_on_when_all_rows_leave_at_once(tiny_base: Path) -> None:
    engine = load_engine(tiny_base, "fp32", Capacity(slots=1, max_batch=1))
    asked = [engine.submit(ids(engine, prompt), GREEDY) for prompt in PROMPTS]
    assert all(ticket.text() for ticket in asked)
    endless = Sampling(max_tokens=400, temperature=0.0, ignore_eos=True)
    gone = [engine.submit(ids(engine, "Hello"), endless) for _ in range(5)]
    for ticket in gone:
        ticket.cancel()
    for ticket in gone:
        ticket.text()
    assert [ticket.finished.reason for ticket in gone if ticket.finished] == ["cancelled"] * 5 and not engine.busy
    engine.close()
