"""The scheduler on a tiny model: right answers under load, and a base that nothing can change."""

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from studio.chat.backend import load_engine
from studio.chat.bank import Lease, Part, Voice
from studio.chat.engine import AdapterSource, Capacity, Engine, Ticket
from studio.chat.kv import KvBatch
from studio.chat.sampling import Sampling
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


def overflowing(weights: AdapterWeights, name: str) -> AdapterSource:
    """An adapter of finite numbers whose products are not."""
    return source(replace(weights, pairs={n: (a.sign() * 3e38, b) for n, (a, b) in weights.pairs.items()}), name)


def test_numbers_that_overflow_in_one_row_never_reach_another(engine: Engine, adapters: list[AdapterSource]) -> None:
    bad = voice(overflowing(adapters[1].load(), "overflow"))
    with pytest.raises(StudioError, match="not finite"):  # it has the first slot, which every mixed step reads
        engine.submit(ids(engine, "Why?"), GREEDY, bad).text()
    voices = [voice(), voice(adapters[0]), voice(adapters[1])]
    good = [engine.submit(ids(engine, "Why?"), GREEDY, one).text() for one in voices]
    assert len(set(good)) == 3
    for _ in range(5):
        tickets = [engine.submit(ids(engine, "Why?"), GREEDY, one) for one in voices]
        poison = [engine.submit(ids(engine, prompt), GREEDY, bad) for prompt in PROMPTS]
        for ticket in poison:
            with pytest.raises(StudioError, match="not finite"):
                ticket.text()
        assert [ticket.text() for ticket in tickets] == good


def test_numbers_that_overflow_late_end_their_row_alone(
    engine: Engine, adapters: list[AdapterSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = answer(engine, "Why?", adapters[0])
    decode = engine._decode

    def poisoned(rows: list[Any], kv: KvBatch) -> torch.Tensor:
        logits = decode(rows, kv)
        for index, row in enumerate(rows):
            if row.ticket.user == "unlucky" and len(row.token_ids) == 3:
                logits[index] = float("nan")
                for tensor in kv._keys + kv._values:
                    tensor[index].fill_(float("nan"))
        return logits

    monkeypatch.setattr(engine, "_decode", poisoned)
    for turn in range(4):  # its place among the rows differs, and so does who has it afterwards
        tickets = [engine.submit(ids(engine, "Why?"), GREEDY, voice(adapters[0]), user="unlucky" if n == turn else "") for n in range(4)]
        for n, ticket in enumerate(tickets):
            if n == turn:
                with pytest.raises(StudioError, match="not finite"):
                    ticket.text()
            else:
                assert ticket.text() == good


@pytest.mark.parametrize("place", ["norm", "qkv", "out", "mlp_norm", "gate_up", "down"])
def test_an_exception_in_any_layer_leaves_the_next_request_right(
    engine: Engine, adapters: list[AdapterSource], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    voices = [voice(), voice(adapters[0]), voice(adapters[1])]
    good = [engine.submit(ids(engine, "Why?"), GREEDY, one).text() for one in voices]
    checksum = engine.checksum()
    forward, calls = engine.runner.forward, [0]

    class Broken:
        def __init__(self, part: Any) -> None:
            self.part = part

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("a kernel failed")

    def sometimes(token_ids: torch.Tensor, kv: KvBatch) -> torch.Tensor:
        calls[0] += 1
        if calls[0] % 7:
            return forward(token_ids, kv)
        blocks = engine.runner.blocks  # type: ignore[attr-defined]
        layer = calls[0] // 7 % len(blocks)
        whole = blocks[layer]
        blocks[layer] = replace(whole, **{place: Broken(getattr(whole, place))})
        try:
            return forward(token_ids, kv)
        finally:
            blocks[layer] = whole

    monkeypatch.setattr(engine.runner, "forward", sometimes)
    told = 0
    for _ in range(4):
        for ticket, wanted in [(engine.submit(ids(engine, "Why?"), GREEDY, one), text) for one, text in zip(voices, good, strict=True)]:
            try:
                assert ticket.text() == wanted  # a step that fails once is computed again
            except StudioError as error:
                told += 1
                assert str(error) == "The reply stopped on an error of the studio itself (RuntimeError); send it again."
    assert calls[0] > 30 and told < 6
    monkeypatch.setattr(engine.runner, "forward", forward)
    assert [engine.submit(ids(engine, "Why?"), GREEDY, one).text() for one in voices] == good
    assert engine.checksum() == checksum


def test_a_row_whose_step_always_fails_ends_and_its_neighbours_go_on(
    engine: Engine, adapters: list[AdapterSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = answer(engine, "Why?", adapters[0])
    decode = engine._decode

    def failing(rows: list[Any], kv: KvBatch) -> torch.Tensor:
        if any(row.ticket.user == "unlucky" and len(row.token_ids) > 3 for row in rows):
            raise RuntimeError("out of memory")
        return decode(rows, kv)

    monkeypatch.setattr(engine, "_decode", failing)
    tickets = [engine.submit(ids(engine, "Why?"), GREEDY, voice(adapters[0]), user="unlucky" if n == 1 else "") for n in range(4)]
    with pytest.raises(StudioError, match="an error of the studio itself"):
        tickets[1].text()
    assert [tickets[n].text() for n in (0, 2, 3)] == [good] * 3


def test_1000_requests_amid_changes_of_everything_are_all_right(tiny_base: Path, adapters: list[AdapterSource]) -> None:
    """Adapters come and go, one name gets other bytes, requests are cancelled; few slots, little memory."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    pool = [*adapters, *(source(random_adapter(model, seed, rank), f"pool-{seed}") for seed, rank in enumerate((1, 3, 12, 24, 40, 8), 30))]
    engine = load_engine(tiny_base, "fp32", Capacity(slots=3, max_batch=8, host_mb=1, kv_mb=1))
    short = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True)
    checksum, logits = engine.checksum(), base_logits(engine)
    voices = [voice(), *(voice(one) for one in pool), voice(pool[0], pool[4])]
    alone = {(p, i): engine.submit(ids(engine, p), short, one).text() for p in PROMPTS for i, one in enumerate(voices)}
    assert len({alone[PROMPTS[0], i] for i in range(len(voices))}) > len(voices) - 2
    wrong: list[str] = []

    def client(number: int) -> None:
        chance = random.Random(number)
        for _ in range(125):
            prompt, who = chance.choice(PROMPTS), chance.randrange(len(voices))
            if chance.random() < 0.1:  # the bytes under a name change: another content, another hash
                who, other = 0, f"changed-{number}-{chance.random()}"
                changed = voice(AdapterSource(other, pool[0].load))
                ticket, wanted = engine.submit(ids(engine, prompt), short, changed), alone[prompt, 1]
            else:
                ticket, wanted = engine.submit(ids(engine, prompt), short, voices[who], user=str(number % 3)), alone[prompt, who]
            if chance.random() < 0.15:
                ticket.cancel()
                if not wanted.startswith(ticket.text()):
                    wrong.append(f"{prompt} {who} after a cancel")
            elif (said := ticket.text()) != wanted:
                wrong.append(f"{prompt} {who}: {said!r} for {wanted!r}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(engine.bank.resident) <= 3 and not engine.busy
    assert engine.checksum() == checksum and torch.equal(base_logits(engine), logits)
    engine.close()


def test_a_pinned_adapter_keeps_its_slot_and_a_bank_of_pins_says_so(engine: Engine, adapters: list[AdapterSource]) -> None:
    model = engine.runner.model  # type: ignore[attr-defined]
    more = [source(random_adapter(model, seed, 4), f"more-{seed}") for seed in range(50, 56)]
    answer(engine, "Hello", adapters[0])
    engine.pin({adapters[0].sha256})
    for one in more:
        answer(engine, "Hello", one)
    assert adapters[0].sha256 in engine.bank.resident and len(engine.bank.resident) == 3
    engine.pin(set(engine.bank.resident))
    with pytest.raises(StudioError, match="Every slot for adapters is pinned; unpin one, or raise STUDIO_SLOTS"):
        answer(engine, "Hello", more[0])
    engine.pin(set())
    assert answer(engine, "Hello", more[0])


def test_a_long_prompt_is_computed_between_the_steps_of_others(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.chat.prefill.PIECE", 16)
    order: list[tuple[str, int]] = []
    forward = engine.runner.forward
    monkeypatch.setattr(engine.runner, "forward", lambda t, kv: order.append(("rows", t.shape[1])) or forward(t, kv))
    talking = engine.submit(ids(engine, "Hello"), Sampling(max_tokens=60, temperature=0.0, ignore_eos=True))
    next(iter(talking))
    long = engine.submit(list(range(2, 300)), GREEDY)
    short = engine.submit(ids(engine, "Why?"), GREEDY)
    texts = [short.text(), long.text(), talking.text()]
    assert all(texts)
    pieces = [index for index, (_, count) in enumerate(order) if count == 16]
    assert len(pieces) >= 15
    assert all(any(order[i][1] == 1 for i in range(a + 1, b)) for a, b in pairwise(pieces[:8]))
    assert short.submitted > long.submitted and short.finished.ttft_ms < long.finished.ttft_ms  # type: ignore[union-attr]


@pytest.mark.parametrize("fails", [False, True])
def test_short_prompts_of_several_voices_are_computed_together(
    engine: Engine, adapters: list[AdapterSource], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    asked = [("Hello", None), ("What is the time?", adapters[0]), ("Why?", adapters[1]), ("Describe the sea", adapters[0])]
    alone = [answer(engine, prompt, one) for prompt, one in asked]
    shapes: list[tuple[int, ...]] = []
    forward, gate = engine.runner.forward, threading.Event()

    def watched(token_ids: torch.Tensor, kv: KvBatch) -> torch.Tensor:
        shapes.append(tuple(token_ids.shape))
        if fails and len(token_ids) > 1 and token_ids.shape[1] > 1:
            raise RuntimeError("together it cannot be done")
        return forward(token_ids, kv)

    monkeypatch.setattr(engine.runner, "forward", watched)
    held = threading.Thread(target=engine.call, args=(lambda: gate.wait(20),))  # so that they come all at once
    held.start()
    tickets = [engine.submit(ids(engine, prompt), GREEDY, voice(one)) for prompt, one in asked]
    gate.set()
    held.join()
    assert [ticket.text() for ticket in tickets] == alone
    prompts = [shape for shape in shapes if shape[1] > 1]
    assert prompts[0] == (4, max(len(ids(engine, prompt)) for prompt, _ in asked))
    assert len(prompts) == (5 if fails else 1)


def test_a_request_that_waits_can_be_cancelled(engine: Engine, adapters: list[AdapterSource]) -> None:
    gate = threading.Event()

    def slow() -> AdapterWeights:
        gate.wait(20)
        return adapters[0].load()

    waiting = engine.submit(ids(engine, "Hello"), GREEDY, voice(AdapterSource("slow", slow)))
    other = answer(engine, "Hello", adapters[1])  # what is being read stalls nobody
    waiting.cancel()
    assert waiting.text() == "" and waiting.finished is not None and waiting.finished.reason == "cancelled"
    gate.set()
    assert answer(engine, "Hello", adapters[1]) == other


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


def test_slots_keep_to_their_budget_of_bytes(tiny_base: Path) -> None:
    """Classes of ranks share it: what one frees, another may take."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    many = [source(random_adapter(model, seed, rank), f"b{seed}") for seed, rank in enumerate((4, 60, 8, 30, 4, 60, 16, 8), 60)]
    engine = load_engine(tiny_base, "fp32", Capacity(slots=16, slots_mb=1, max_batch=4))
    wanted = [answer(engine, "Hello", one) for one in many]
    assert len(set(wanted)) == len(many)
    for turn in range(3):
        order = random.Random(turn).sample(range(len(many)), len(many))
        tickets = [(n, engine.submit(ids(engine, "Hello"), GREEDY, voice(many[n]))) for n in order]
        assert all(ticket.text() == wanted[n] for n, ticket in tickets)
        assert 0 < engine.bank.slot_bytes() <= 2**20 and len(engine.bank.resident) > 1
    engine.close()
    tight = load_engine(tiny_base, "fp32", Capacity(slots=2, slots_mb=0, max_batch=4))
    assert [answer(tight, "Hello", one) for one in many] == wanted  # one at a time is always served
    tight.close()


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
