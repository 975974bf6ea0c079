"""Losses of given rows through the engine, held to PEFT and transformers and to the training's own evaluation."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from studio.chat.bank import BASE, Part, Voice
from studio.chat.engine import AdapterSource, Capacity, Engine
from studio.chat.sampling import Sampling
from studio.datasets.rendering import Example
from studio.errors import BaseUnavailable, ContextTooLong, Interrupted, StudioError
from studio.lora.adapter import AdapterSpec, attach
from tests.integration.test_chat_against_peft import KINDS, make_adapters, source, voice
from tests.oracle import load_in_peft, write
from tests.tiny import FAMILIES, make_tokenizer
from tests.trainers import rows_of, trainer

ROWS = rows_of([5, 40, 63, 64, 65, 9, 300, 17, 130, 2])
CLOSE = 2e-4


@torch.no_grad()
def theirs(model: nn.Module, rows: list[Example]) -> list[tuple[float, int, int]]:
    """Nats, trained tokens and right ones of each row, as transformers has them of it alone."""
    found = []
    for row in rows:
        ids = torch.tensor(row.token_ids)
        labels = torch.tensor([t if on else -100 for t, on in zip(row.token_ids, row.trained, strict=True)])[1:]
        logits = model(input_ids=ids[None]).logits[0, :-1]
        counted = labels != -100
        nats = float(F.cross_entropy(logits[counted], labels[counted], reduction="sum"))
        found.append((nats, int(counted.sum()), int((logits[counted].argmax(-1) == labels[counted]).sum())))
    return found


def check(engine: Engine, rows: list[Example], who: Voice, wanted: list[tuple[float, int, int]]) -> None:
    for got, (nats, tokens, hits) in zip(engine.score(rows, who).result(), wanted, strict=True):
        assert (got.tokens, got.hits) == (tokens, hits)
        assert got.nats == pytest.approx(nats, rel=CLOSE, abs=CLOSE)


@pytest.fixture
def start() -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(model: nn.Module, **limits: Any) -> Engine:
        engines.append(Engine(lambda: (model, make_tokenizer()), Capacity(**{"slots": 8, "max_batch": 8, **limits})))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_losses_are_those_of_peft(family: str, tmp_path: Path, start: Callable[..., Engine]) -> None:
    engine = start(FAMILIES[family]())
    check(engine, ROWS, BASE, theirs(FAMILIES[family](), ROWS))
    losses = set()
    for folder in make_adapters(family, tmp_path).values():
        wanted = theirs(load_in_peft(FAMILIES[family](), folder), ROWS)
        check(engine, ROWS, voice(folder), wanted)
        losses.add(round(sum(nats for nats, _, _ in wanted), 3))
    assert len(losses) == len(KINDS)  # or the test would prove nothing


def test_losses_are_those_of_the_trainings_own_evaluation(tmp_path: Path, start: Callable[..., Engine]) -> None:
    rows = rows_of([12, 30, 44, 21, 90, 33, 70, 15, 26, 51])
    training = trainer(FAMILIES["llama"](), rows=rows, held_out=0.4, epochs=3.0)
    outcome = training.fit()
    folder = write(tmp_path / "it", training.weights())
    engine = start(FAMILIES["llama"]())
    for who, wanted in ((BASE, outcome.eval_loss_before), (voice(folder), outcome.eval_loss)):
        scores = engine.score(training.held, who).result()
        assert sum(s.nats for s in scores) / sum(s.tokens for s in scores) == pytest.approx(wanted, rel=CLOSE)
    assert outcome.eval_loss != pytest.approx(outcome.eval_loss_before, rel=10 * CLOSE)


def test_a_blend_is_scored_as_a_blend(tmp_path: Path, start: Callable[..., Engine]) -> None:
    folders = make_adapters("llama", tmp_path)
    engine = start(FAMILIES["llama"]())
    half = Voice((Part(source(folders["lora"]), 0.5),))
    whole, base = (sum(s.nats for s in engine.score(ROWS, who).result()) for who in (voice(folders["lora"]), BASE))
    assert len({round(whole, 2), round(base, 2), round(sum(s.nats for s in engine.score(ROWS, half).result()), 2)}) == 3


def test_chats_go_on_while_rows_are_scored_and_say_the_same(tmp_path: Path, start: Callable[..., Engine]) -> None:
    folders = make_adapters("llama", tmp_path)
    engine = start(FAMILIES["llama"](), slots=2)
    greedy = Sampling(max_tokens=100, temperature=0.0, ignore_eos=True)
    prompt = list(range(20, 50))
    alone = engine.submit(prompt, greedy, voice(folders["lora"])).text()
    wanted = [theirs(FAMILIES["llama"](), ROWS * 8), theirs(load_in_peft(FAMILIES["llama"](), folders["wide"]), ROWS * 8)]
    scorings = [engine.score(ROWS * 8, who) for who in (BASE, voice(folders["wide"]))]
    tickets = [engine.submit(prompt, greedy, voice(folders[kind])) for kind in ("lora", "rslora", "lora")]
    said = [ticket.text() for ticket in tickets]
    assert said[0] == said[2] == alone != said[1]
    for scoring, these in zip(scorings, wanted, strict=True):
        assert [s.nats for s in scoring.result()] == pytest.approx([nats for nats, _, _ in these], rel=CLOSE, abs=CLOSE)
    assert not engine.busy


def test_a_scoring_is_cancelled_between_two_passes(start: Callable[..., Engine]) -> None:
    engine = start(FAMILIES["llama"]())
    scoring = engine.score(ROWS * 500)
    while not scoring.scores:
        threading.Event().wait(0.002)
    scoring.cancel()
    with pytest.raises(Interrupted):
        scoring.result()
    assert 0 < len(scoring.scores) < len(ROWS) * 500
    check(engine, ROWS, BASE, theirs(FAMILIES["llama"](), ROWS))


def test_what_cannot_be_scored_is_told_in_a_sentence(start: Callable[..., Engine]) -> None:
    engine = start(FAMILIES["llama"]())
    with pytest.raises(ContextTooLong, match="The row has 513 tokens, but this base's context is 512"):
        engine.score(rows_of([513]))
    huge = attach(FAMILIES["llama"](), AdapterSpec(rank=4, alpha=4.0)).weights()
    pairs = {
        name: (torch.full_like(torch.as_tensor(x), 1e25), torch.full_like(torch.as_tensor(y), 1e25)) for name, (x, y) in huge.pairs.items()
    }
    broken = Voice((Part(AdapterSource("broken", lambda: replace(huge, pairs=pairs))),))
    with pytest.raises(StudioError, match="not finite"):
        engine.score(ROWS, broken).result()
    check(engine, ROWS, BASE, theirs(FAMILIES["llama"](), ROWS))  # nobody else met it
    left = engine.score(ROWS * 500)
    engine.close()
    with pytest.raises(BaseUnavailable):
        left.result()
