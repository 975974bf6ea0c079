"""Answers from processes that remember nothing: the engine's own words, behind a border that pickles."""

import contextvars
import importlib
import multiprocessing
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from studio.chat import stateless
from studio.chat.backend import load_engine
from studio.chat.bank import BASE, Part, Voice
from studio.chat.engine import AdapterSource, Capacity, Engine
from studio.chat.sampling import Sampling
from studio.chat.stateless import Asked, Done, Failed, Results, Said, StatelessBackend, _explained, answer, forked, seconds
from studio.chat.ticket import Ticket
from studio.datasets.rendering import prompt_ids
from studio.errors import BaseUnavailable, ContextTooLong, IncompatibleAdapter, NotFound, StudioError
from studio.lora.files import AdapterWeights, adapter_sha256, encode_adapter, read_adapter
from studio.services import Studio
from tests.conftest import tiny_settings
from tests.integration.test_chat_engine import random_adapter
from tests.serving import add_adapters, serving
from tests.tiny import make_model

GREEDY = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)
LONG = replace(GREEDY, max_tokens=400)
HELLO: list[Any] = [{"role": "user", "content": "Hello, who are you?"}]


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> Iterator[Engine]:
    engine = load_engine(tiny_base, "fp32", Capacity())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def backend(tiny_base: Path) -> Iterator[StatelessBackend]:
    backend = StatelessBackend(tiny_base, "fp32", Capacity(max_batch=3))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> list[Voice]:
    """The base, two adapters and a blend of them."""
    model, parts = make_model(), []
    for seed, rank in ((1, 4), (2, 8)):
        folder = tmp_path_factory.mktemp("adapter")
        parts.append(Part(save(folder, random_adapter(model, seed, rank))))
    return [BASE, *(Voice((part,)) for part in parts), Voice((replace(parts[0], weight=0.7), replace(parts[1], weight=0.3)))]


def save(folder: Path, weights: AdapterWeights) -> AdapterSource:
    for file, content in encode_adapter(weights, "tiny", 0.0).items():
        (folder / file).write_bytes(content)

    def unread() -> AdapterWeights:
        raise AssertionError("an adapter is read where it is used")

    return AdapterSource(adapter_sha256(folder), unread, folder)


def ask(backend: StatelessBackend, voice: Voice = BASE, sampling: Sampling = GREEDY, **more: Any) -> Ticket:
    return backend.submit(prompt_ids(backend.tokenizer, HELLO), sampling, voice, **more)


def own(engine: Engine, voice: Voice, sampling: Sampling = GREEDY, **more: Any) -> tuple[Ticket, str]:
    """The same from the engine, at its end, and its text; it reads what the others are not to read."""
    parts = tuple(replace(p, source=replace(p.source, load=partial(read_adapter, p.source.folder))) for p in voice.parts)
    ticket = engine.submit(prompt_ids(engine.tokenizer, HELLO), sampling, Voice(parts), **more)
    return ticket, ticket.text()


def own_text(engine: Engine, voice: Voice) -> str:
    return own(engine, voice)[1]


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def nothing_is_left(backend: StatelessBackend) -> bool:
    return not backend.busy and not stateless._engines and not multiprocessing.active_children()


def test_visitors_on_two_adapters_at_once_are_answered_as_by_the_engine(
    backend: StatelessBackend, engine: Engine, voices: list[Voice]
) -> None:
    before = {name: tensor.clone() for name, tensor in stateless._bases[str(backend._path), "fp32"][0].state_dict().items()}
    tickets = [ask(backend, voice) for voice in voices]
    assert backend.busy
    texts = [ticket.text() for ticket in tickets]
    alone = [own(engine, voice) for voice in voices]
    assert len(set(texts)) == len(voices)
    for ticket, (known, text) in zip(tickets, alone, strict=True):
        assert ticket.finished is not None and known.finished is not None and text
        assert (ticket.finished.tokens, ticket.finished.reason) == (known.finished.tokens, "length")
        assert ticket.finished.ttft_ms > known.finished.ttft_ms  # the start of its process counts
    assert texts == [text for _, text in alone]
    eventually(lambda: nothing_is_left(backend))
    after = stateless._bases[str(backend._path), "fp32"][0].state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_quantized_base_is_inherited_too(tiny_base: Path, voices: list[Voice]) -> None:
    backend, engine = StatelessBackend(tiny_base, "nf4", Capacity()), load_engine(tiny_base, "nf4", Capacity())
    texts = [ask(backend, voice).text() for voice in voices[:2]]
    assert texts == [own_text(engine, voice) for voice in voices[:2]] and texts[0] != texts[1]
    backend.close()
    engine.close()


def test_log_probabilities_and_the_probes_distribution_come_across(backend: StatelessBackend, engine: Engine, voices: list[Voice]) -> None:
    wanted = replace(GREEDY, logprobs=3)
    told, (known, _) = ask(backend, voices[1], wanted), own(engine, voices[1], wanted)
    assert told.text() and told.logprobs == known.logprobs and len(told.logprobs) == 16
    one = replace(GREEDY, max_tokens=1)
    there, (here, _) = ask(backend, voices[2], one, wants_distribution=True), own(engine, voices[2], one, wants_distribution=True)
    there.text()
    assert there.distribution is not None and here.distribution is not None and torch.equal(there.distribution, here.distribution)


def test_what_goes_in_and_out_of_a_call_is_plain_data(backend: StatelessBackend, voices: list[Voice]) -> None:
    seen: list[Asked] = []

    def pickled(asked: Asked) -> Results:
        seen.append(pickle.loads(pickle.dumps(asked)))
        for result in answer(seen[0]):
            yield pickle.loads(pickle.dumps(result))

    given = replace(GREEDY, logprobs=0)
    call, backend.call = backend.call, pickled
    try:
        assert ask(backend, voices[3], given).text()
    finally:
        backend.call = call
        for one in stateless._engines.values():
            one.close()
        stateless._engines.clear()
    assert seen[0].adapters == tuple((p.source.sha256, str(p.source.folder), p.weight) for p in voices[3].parts)
    assert (seen[0].sampling, seen[0].capacity.max_batch, seen[0].capacity.kv_mb) == (given, 1, 0)


def test_a_process_that_is_used_again_says_the_same(backend: StatelessBackend, voices: list[Voice]) -> None:
    asked = [request(backend, voice) for voice in [*voices, *voices]]

    def all_in_one(first: Asked) -> Results:
        del first
        pids = set()
        for one in asked:
            said = list(answer(one))
            pids.add(os.getpid())
            assert isinstance(said[-1], Done) and len(stateless._engines) == 1
            yield Said("".join(part.text for part in said if isinstance(part, Said)), len(pids))
        yield said[-1]

    texts = [result.text for result in forked(all_in_one, asked[0]) if isinstance(result, Said)]
    assert texts[:4] == texts[4:] and len(set(texts)) == 4 and not stateless._engines


def request(backend: StatelessBackend, voice: Voice) -> Asked:
    adapters = tuple((part.source.sha256, str(part.source.folder), part.weight) for part in voice.parts)
    ids = tuple(prompt_ids(backend.tokenizer, HELLO))
    return Asked(str(backend._path), "fp32", Capacity(max_batch=1, kv_mb=0), ids, GREEDY, adapters, False)


def test_what_goes_wrong_in_a_call_ends_in_one_sentence(backend: StatelessBackend, voices: list[Voice], tmp_path: Path) -> None:
    missing = AdapterSource("missing", lambda: AdapterWeights(1, 1.0, False, {}), tmp_path / "nothing")
    with pytest.raises(NotFound, match=r"files of the adapter cannot be used: adapter_config\.json is missing"):
        ask(backend, Voice((Part(missing),))).text()
    name = "model.layers.0.self_attn.q_proj"
    other = save(tmp_path, AdapterWeights(4, 4.0, False, {name: (torch.ones(4, 32), torch.ones(64, 4))}))
    with pytest.raises(IncompatibleAdapter, match="layer of"):
        ask(backend, Voice((Part(other),))).text()
    with pytest.raises(ContextTooLong):
        ask(backend, sampling=replace(GREEDY, max_tokens=600))
    assert ask(backend, voices[1]).text()


def test_a_call_that_raises_or_dies_ends_in_one_sentence(backend: StatelessBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(asked: Asked) -> Engine:
        raise ZeroDivisionError("a secret path")

    monkeypatch.setattr(stateless, "_engine", broken)
    with pytest.raises(StudioError, match=r"^The reply stopped on an error of the studio itself \(ZeroDivisionError\); send it again\.$"):
        ask(backend).text()
    monkeypatch.setattr(stateless, "_engine", lambda asked: os._exit(3))
    with pytest.raises(StudioError, match="died; send it again"):
        ask(backend).text()
    eventually(lambda: nothing_is_left(backend))


def test_cancel_frees_the_process_and_what_was_said_stands(backend: StatelessBackend, voices: list[Voice]) -> None:
    ticket = ask(backend, voices[1], LONG)
    eventually(lambda: ticket.token_count > 3)
    ticket.cancel()
    assert ticket.text() and ticket.finished is not None and ticket.finished.reason == "cancelled" and 3 < ticket.finished.tokens < 400
    eventually(lambda: nothing_is_left(backend))


def test_a_call_shows_signs_of_life_so_that_it_can_be_stopped_while_it_says_nothing(backend: StatelessBackend) -> None:
    held = threading.Event()

    class Silent(Ticket):
        def listen(self, heard: Callable[[], None]) -> None:
            held.set()

    pieces = stateless._pieces(Silent([1], GREEDY))
    assert next(pieces) == Said() and held.is_set()


def test_closing_ends_those_who_are_answered_and_gives_the_base_back(tiny_base: Path) -> None:
    backend = StatelessBackend(tiny_base, "bf16", Capacity(max_batch=1))
    tickets = [ask(backend, sampling=LONG) for _ in range(2)]  # one of them waits
    eventually(lambda: tickets[0].token_count > 0)
    backend.close()
    for ticket in tickets:
        with pytest.raises(BaseUnavailable, match="was closed"):
            ticket.text()
    with pytest.raises(BaseUnavailable, match="was closed"):
        ask(backend)
    assert (str(tiny_base), "bf16") not in stateless._bases and nothing_is_left(backend)


def test_a_process_that_has_computed_with_several_threads_can_be_forked(backend: StatelessBackend, engine: Engine) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.ones(400, 400).matmul(torch.ones(400, 400)).sum() == 400**3  # OpenMP's workers are there now

        def several(asked: Asked) -> Results:
            torch.set_num_threads(2)
            assert float(torch.ones(400, 400).matmul(torch.ones(400, 400)).sum()) == 400**3
            yield from answer(asked)

        asked = request(backend, BASE)
        said = "".join(result.text for result in forked(several, asked) if isinstance(result, Said))
    finally:
        torch.set_num_threads(threads)
    assert said == own_text(engine, BASE)


def test_the_visitor_of_a_request_is_known_in_its_call(backend: StatelessBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor, seen = contextvars.ContextVar("visitor", default="nobody"), list[str]()  # as Gradio's request is, by which quotas are counted

    def call(asked: Asked) -> Results:
        seen.append(visitor.get())
        yield from forked(answer, asked)

    monkeypatch.setattr(backend, "call", call)
    for name in ("anna", "bert"):
        token = visitor.set(name)
        assert ask(backend).text()
        visitor.reset(token)
    assert seen == ["anna", "bert"]


class GradioError(Exception):
    """As Gradio's `Error` is."""

    def __init__(self, title: str, message: str) -> None:
        super().__init__(message)
        self.title, self.message = title, message


@pytest.mark.parametrize(
    ("title", "message", "says"),
    [
        ("ZeroGPU quota exceeded", "You have exceeded your free ZeroGPU quota. Try again in 1:02:03. ", "1:02:03); try again later"),
        ("ZeroGPU illegal duration", "The requested GPU duration (60s) is larger than the maximum allowed", "ask for a shorter reply"),
        ("ZeroGPU queue timeout", "No GPU after 60s. <a href='x'>Subscribe</a>", "60s. Subscribe); send it again in a minute"),
        ("ZeroGPU worker error", "GPU task aborted", "for which 20 seconds were asked; send it again, or ask for a shorter one"),
        ("ZeroGPU worker error", "OutOfMemoryError", "(OutOfMemoryError); send it again"),
    ],
)  # fmt: skip
def test_what_zerogpu_raises_is_one_sentence(backend: StatelessBackend, title: str, message: str, says: str) -> None:
    def call(asked: Asked) -> Results:
        yield Said("He", 1)
        raise GradioError(title, message)

    kept, backend.call = backend.call, call
    ticket = ask(backend)
    try:
        with pytest.raises(StudioError) as caught:
            ticket.text()
    finally:
        backend.call = kept
    assert says in str(caught.value) and "\n" not in str(caught.value) and ticket.token_count == 1
    plain = ValueError("ZeroGPU")
    assert _explained(plain, 1) is plain


def test_zerogpu_is_asked_for_as_long_as_a_reply_may_take(backend: StatelessBackend) -> None:
    asked = request(backend, BASE)
    assert seconds(asked) == 20 and seconds(replace(asked, sampling=replace(GREEDY, max_tokens=400))) == 40
    assert seconds(replace(asked, sampling=replace(GREEDY, max_tokens=30_000))) == 120


def test_only_the_real_decorator_is_zerogpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not stateless.IS_ZEROGPU  # the package is here, and gives functions back as they are
    fake: Any = ModuleType("spaces")
    monkeypatch.setattr(stateless, "spaces", fake)
    assert stateless._decorated() is None  # an empty folder of this name

    def decorate(call: Any, duration: Any) -> Any:
        def decorated(asked: Asked) -> Results:
            yield from call(asked)

        assert duration is seconds
        decorated.zerogpu = None  # type: ignore[attr-defined]
        return decorated

    fake.GPU = decorate
    assert stateless._decorated() is not None


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The package's own wrapper of generators, where only GPUs and the service that lends them are left out; what it asks for."""
    asked: list[str] = []
    fake: Any = ModuleType("spaces.zero.torch")
    for name in ("enter_mode", "unpatch", "init", "move"):
        setattr(fake, name, lambda *args, **options: None)
    fake.size = lambda: 0
    monkeypatch.setitem(sys.modules, "spaces.zero.torch", fake)
    wrappers = importlib.import_module("spaces.zero.wrappers")
    api = importlib.import_module("spaces.zero.api")

    def schedule(duration: Any, **options: Any) -> Any:
        asked.append(f"{duration.seconds} s")
        return api.ScheduleResponse(idle=True, nvidiaIndex=0, nvidiaUUID="gpu", allowToken="token")

    monkeypatch.setattr(wrappers.client, "schedule", schedule)
    monkeypatch.setattr(wrappers.client, "allow", lambda token: None)
    monkeypatch.setattr(wrappers.client, "release", lambda token, fail=False, **options: asked.append("failed" if fail else "released"))
    monkeypatch.setattr(stateless, "spaces", ModuleType("spaces"))
    yield asked
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    for name in ("spaces.zero.wrappers", "spaces.zero.client"):
        sys.modules.pop(name, None)


def test_the_wrapper_of_zerogpu_itself_streams_stops_and_fails_as_ours_does(
    backend: StatelessBackend, engine: Engine, voices: list[Voice], lent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap = sys.modules["spaces.zero.wrappers"].generator_function_wrapper
    monkeypatch.setattr(backend, "call", wrap(answer, seconds, None))
    pieces = list(ask(backend, voices[1]))
    again = ask(backend, voices[2])  # the process is used again
    assert (again.text(), "".join(pieces)) == (own_text(engine, voices[2]), own_text(engine, voices[1])) and len(pieces) > 5
    assert lent == ["20 s", "released"] * 2 and len(multiprocessing.active_children()) == 1
    ticket = ask(backend, voices[1], LONG)
    eventually(lambda: ticket.token_count > 3)
    ticket.cancel()
    ticket.text()
    assert ticket.finished is not None and ticket.finished.reason == "cancelled" and ticket.finished.tokens < 400
    missing = AdapterSource("missing", lambda: AdapterWeights(1, 1.0, False, {}), Path("/nothing"))
    with pytest.raises(NotFound, match="files of the adapter cannot be used"):
        ask(backend, Voice((Part(missing),))).text()
    assert not stateless._engines and set(lent) == {"20 s", "40 s", "released"}
    ticket = ask(backend, voices[1], LONG)
    eventually(lambda: ticket.token_count > 3)
    for child in multiprocessing.active_children():
        child.kill()  # as when the time is over
    with pytest.raises(StudioError, match="ZeroGPU ended the reply, for which 40 seconds were asked"):
        ticket.text()
    assert lent[-1] == "failed"


def test_the_chat_and_its_http_api_speak_through_it(tmp_path: Path, tiny_base: Path) -> None:
    studio = Studio(tiny_settings(tmp_path / "home", backend="stateless"))
    studio.bases.fetch(str(tiny_base))
    add_adapters(studio)
    studio.open_chat(studio.default_base(), print)
    assert studio.chat.takes_memory
    asked: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 8, "extra_body": {"ignore_eos": True}}
    with serving(studio) as served:
        texts = []
        for name in ("base", "wizard", "wizard:0.5+pirate:0.5"):
            stream = served.client().chat.completions.create(model=name, stream=True, **asked)
            texts.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))
    assert len(set(texts)) == 3 and all(texts)
    assert texts[1] == studio.reply(HELLO, "wizard", temperature=0.0, max_tokens=8, ignore_eos=True).text
    assert studio.probe(HELLO, "wizard").total_variation > 0.01
    studio.close()
    assert not stateless._bases.get((str(studio.bases.path(studio.bases.get("tiny"))), "fp32"))
    assert Failed("NotFound", "x") == pickle.loads(pickle.dumps(Failed("NotFound", "x"))) and "spaces" in sys.modules


def test_losses_of_given_rows_are_refused_in_a_sentence(backend: StatelessBackend) -> None:
    with pytest.raises(StudioError, match=r"computes no losses of given rows; leave loss out, or set STUDIO_BACKEND=engine"):
        backend.score([])
