"""Recorded steps. A trace of the operations stands for a CUDA graph: as there, all that Python computed is fixed when it is recorded."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from studio.chat.backend import load_engine
from studio.chat.engine import AdapterSource, Capacity, Engine, Ticket
from studio.chat.graphs import STEADY, GraphRunner, with_graphs
from studio.chat.sampling import Sampling
from tests.integration.test_chat_engine import ids, random_adapter, source, voice

LONG = Sampling(max_tokens=3 * STEADY, temperature=0.0, ignore_eos=True)
ASKED = [("Hello", 0), ("What is the time?", 1), ("Why?", None), ("Describe the sea", 2), ("Hello there", 0)]
Step = Callable[[], Tensor]


class Traces:
    """Records by tracing, and counts what is done again."""

    def __init__(self, error: float = 0.0) -> None:
        self.recorded = self.replayed = 0
        self.error = error

    def __call__(self, step: Step) -> tuple[Callable[[], None], Tensor]:
        traced = make_fx(step)()
        self.recorded += 1
        result = torch.zeros_like(traced())

        def replay() -> None:
            self.replayed += 1
            result.copy_(traced() + self.error)

        return replay, result


def engine_with(base: Path, monkeypatch: pytest.MonkeyPatch, capture: Callable[[Step], tuple[Callable[[], None], Tensor]] | None) -> Engine:
    if capture is not None:
        monkeypatch.setattr("studio.chat.engine.with_graphs", lambda runner: GraphRunner(runner, capture))
    return load_engine(base, "fp32", Capacity(slots=4, max_batch=8))


@pytest.fixture(scope="module")
def adapters(tiny_base: Path) -> list[AdapterSource]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    return [source(random_adapter(model, seed, rank), f"graph-{seed}") for seed, rank in ((1, 4), (2, 16), (3, 16))]


@pytest.fixture(autouse=True)
def products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters are multiplied as on a GPU, where graphs are: by products, and not by the sums of a CPU."""
    monkeypatch.setattr("studio.lora.serving.MOST_IN_BAGS", 0)


@pytest.fixture
def plain(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    engine = engine_with(tiny_base, monkeypatch, None)
    yield engine
    engine.close()


def ask(engine: Engine, adapters: list[AdapterSource], asked: list[tuple[str, int | None]]) -> list[str]:
    """All at once, so that they run together."""
    gate = threading.Event()
    held = threading.Thread(target=engine.call, args=(lambda: gate.wait(20),))
    held.start()
    tickets: list[Ticket] = [
        engine.submit(ids(engine, prompt), LONG, voice(None if who is None else adapters[who])) for prompt, who in asked
    ]
    gate.set()
    held.join()
    return [ticket.text() for ticket in tickets]


def test_recorded_steps_say_what_steps_say(
    plain: Engine, tiny_base: Path, adapters: list[AdapterSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = Traces()
    engine = engine_with(tiny_base, monkeypatch, traces)
    wanted = ask(plain, adapters, ASKED)
    assert len(set(wanted)) == len(ASKED)
    assert ask(engine, adapters, ASKED) == wanted
    assert traces.recorded == 1 and traces.replayed > STEADY  # one recording served most of the steps
    assert ask(engine, adapters, ASKED[:2]) == wanted[:2]  # other rows, other buffers: another recording
    assert traces.recorded == 2
    assert ask(engine, adapters, ASKED[3:]) == wanted[3:]  # as many rows, in other slots
    assert traces.recorded == 3
    engine.close()


def test_a_row_that_comes_or_leaves_ends_a_recording(
    plain: Engine, tiny_base: Path, adapters: list[AdapterSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = Traces()
    engine = engine_with(tiny_base, monkeypatch, traces)

    def talk(engine: Engine) -> list[str]:
        first = engine.submit(ids(engine, "Hello"), Sampling(max_tokens=100, temperature=0.0, ignore_eos=True), voice(adapters[0]))
        told, pieces = [], iter(first)
        for prompt, who in (("Why?", 1), ("What?", 2)):
            for _ in range(STEADY + 4):
                told.append(next(pieces))
            told.append(engine.submit(ids(engine, prompt), LONG, voice(adapters[who])).text())
        return ["".join(told[: STEADY + 4]), *told[STEADY + 4 :: STEADY + 5], first.text()[-10:]]

    first, second = talk(plain), talk(engine)
    assert second[1:] == first[1:] and traces.recorded >= 3 and traces.replayed > STEADY
    engine.close()


def test_a_recording_that_errs_is_not_used(
    plain: Engine, tiny_base: Path, adapters: list[AdapterSource], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    traces = Traces(error=100.0)
    engine = engine_with(tiny_base, monkeypatch, traces)
    with caplog.at_level(logging.WARNING):
        assert ask(engine, adapters, ASKED) == ask(plain, adapters, ASKED)
    assert "A recorded step errs by" in caplog.text and (traces.recorded, traces.replayed) == (1, 1)
    engine.close()


def test_what_cannot_be_recorded_is_computed_as_before(
    plain: Engine, tiny_base: Path, adapters: list[AdapterSource], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(step: Step) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = engine_with(tiny_base, monkeypatch, refuse)
    with caplog.at_level(logging.WARNING):
        assert ask(engine, adapters, ASKED) == ask(plain, adapters, ASKED)
    assert "Steps cannot be recorded on this base (operation not permitted" in caplog.text
    engine.close()


def test_on_the_cpu_nothing_is_recorded(plain: Engine) -> None:
    assert with_graphs(plain.runner) is plain.runner
