"""The chat on a vLLM server, as far as its contract goes: a server with vLLM's endpoints and errors, on our own engine."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from storage.records import BaseRecord
from studio.chat.bank import BASE, Part, Voice
from studio.chat.engine import AdapterSource
from studio.chat.sampling import Sampling, TokenLogprob
from studio.chat.ticket import Ticket
from studio.chat.vllm import Folders, VllmBackend, _logprobs, request_body
from studio.chat.vllm_server import VllmServer
from studio.datasets.rendering import prompt_ids
from studio.errors import BaseUnavailable, ContextTooLong, InvalidInput, NotFound, StudioError
from studio.evaluation.plan import Plan
from studio.lora.files import AdapterWeights, adapter_sha256, encode_adapter, read_adapter
from studio.services import Studio
from tests.conftest import tiny_settings
from tests.serving import VOICES, add_adapters, serving
from tests.vllm_server import CONTEXT, VllmLike, vllm_serving

HELLO: list[Any] = [{"role": "user", "content": "Hello, who are you?"}]
GREEDY = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)
RECORD = BaseRecord("base1", "tiny", "somewhere", "f" * 64, 1, 0.0, {})


@pytest.fixture(scope="module")
def server(tiny_base: Path) -> Iterator[VllmLike]:
    like = VllmLike(tiny_base)
    yield like
    like.engine.close()


@pytest.fixture(scope="module")
def url(server: VllmLike) -> Iterator[str]:
    with vllm_serving(server) as url:
        yield url


@pytest.fixture
def like(server: VllmLike, url: str) -> VllmLike:
    server.reset()
    return server


@pytest.fixture(scope="module")
def sources(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterSource]:
    """Adapters on disk, none like another."""
    studio = Studio(tiny_settings(tmp_path_factory.mktemp("vllm") / "home"))
    studio.bases.fetch(str(tiny_base))
    add_adapters(studio)
    found = [studio.adapters.get(name) for name in VOICES]
    studio.close()
    return [AdapterSource(r.sha256, lambda r=r: read_adapter(studio.adapters.path(r)), studio.adapters.path(r)) for r in found]


Make = Callable[..., VllmBackend]


@pytest.fixture
def make(like: VllmLike, url: str, tiny_base: Path) -> Iterator[Make]:
    """Makes backends; `home` and `there` are those of `Folders`."""
    made: list[VllmBackend] = []

    def make(
        key: str = "", model: str = "", home: Path = Path("/"), there: str = "", limit: int = 8, base: BaseRecord = RECORD
    ) -> VllmBackend:
        made.append(VllmBackend(VllmServer(url, key), RECORD, tiny_base, model, Folders(home, there), limit))
        return made[-1]

    yield make
    for one in made:
        one.close()


def voice(source: AdapterSource | None, weight: float = 1.0) -> Voice:
    return Voice((Part(source, weight),)) if source else BASE


def ids(backend: VllmBackend, text: str = "Hello") -> list[int]:
    return prompt_ids(backend.tokenizer, [{"role": "user", "content": text}])


def ask(backend: VllmBackend, source: AdapterSource | None = None, sampling: Sampling = GREEDY) -> Ticket:
    return backend.submit(ids(backend), sampling, voice(source))


def own(like: VllmLike, backend: VllmBackend, source: AdapterSource | None, sampling: Sampling = GREEDY) -> Ticket:
    """The same from our engine, at its end."""
    ticket = like.engine.submit(ids(backend), sampling, voice(source))
    ticket.text()
    return ticket


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_base_and_each_adapter_answer_as_our_engine_does(like: VllmLike, make: Make, sources: list[AdapterSource]) -> None:
    backend = make()
    tickets = [ask(backend, source) for source in [None, *sources] * 2]
    texts = [ticket.text() for ticket in tickets]
    assert texts[:4] == texts[4:] and len(set(texts)) == 4
    assert texts[:4] == [like.engine.submit(ids(backend), GREEDY, voice(one)).text() for one in [None, *sources]]
    assert set(like.loaded) == {source.sha256 for source in sources}
    assert [path for path, _ in like.said].count("/v1/load_lora_adapter") == 1 + len(sources)  # the first one only asks whether it may
    done = tickets[1].finished
    assert done is not None and (done.tokens, done.prompt_tokens, done.reason) == (16, len(ids(backend)), "length")
    assert done.swap_ms > 0 and done.ttft_ms > 0 and done.tokens_per_s > 0
    assert tickets[0].finished is not None and tickets[0].finished.swap_ms == 0
    assert not backend.busy and not backend.is_local


def test_every_option_is_named_as_vllm_calls_it() -> None:
    drawn = Sampling(40, 0.5, 0.8, 3, 7, 0.1, -0.2, ("a", "b"), 5, False)
    assert request_body(Ticket([5, 6], drawn), "m", [1, 2]) == {
        "model": "m", "prompt": [5, 6], "max_tokens": 40, "temperature": 0.5, "top_p": 0.8, "top_k": 3, "min_p": 0.0, "seed": 7,
        "repetition_penalty": 1.0, "presence_penalty": 0.1, "frequency_penalty": -0.2, "stop": ["a", "b"], "stop_token_ids": [1, 2],
        "ignore_eos": False, "logprobs": 5, "return_tokens_as_token_ids": True, "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }  # fmt: skip
    greedy = request_body(Ticket([5], replace(GREEDY, temperature=1e-9)), "m", [1])
    assert (greedy["temperature"], greedy["top_k"], greedy["ignore_eos"], greedy["stop_token_ids"]) == (0.0, -1, True, [])
    assert "seed" not in greedy and "logprobs" not in greedy


def test_seeds_stops_and_log_probabilities_are_the_engines(like: VllmLike, make: Make, sources: list[AdapterSource]) -> None:
    backend = make()
    whole = ask(backend, sources[0]).text()
    stop = whole[len(whole) // 2 :][:2]
    stopped = ask(backend, sources[0], replace(GREEDY, stop=(stop,)))
    assert stopped.text() == whole[: whole.index(stop)] and stopped.finished is not None and stopped.finished.reason == "stop"
    for wanted in (replace(GREEDY, logprobs=4), replace(GREEDY, temperature=1.0, seed=3, logprobs=0, presence_penalty=0.5, top_k=50)):
        told = ask(backend, sources[0], wanted)
        assert told.text() and told.token_count == 16
        known = own(like, backend, sources[0], wanted)  # not beside it: the last bits depend on who is in the batch
        assert told.logprobs == known.logprobs and len(told.logprobs) == 16 and len(told.logprobs[0].top) == wanted.logprobs


def test_the_token_that_ends_a_reply_is_none_of_its_log_probabilities() -> None:
    told = {
        "tokens": ["token_id:4", "token_id:1"],
        "token_logprobs": [-1.5, -0.1],
        "top_logprobs": [{"token_id:4": -1.5, "token_id:9": -0.3, "token_id:8": -2.0}, {"token_id:1": -0.1}],
    }
    first = TokenLogprob(4, -1.5, ((9, -0.3), (4, -1.5)))
    assert _logprobs(told, 2, True) == [first] and _logprobs(told, 0, False)[1] == TokenLogprob(1, -0.1, ())
    with pytest.raises(BaseUnavailable, match=r"0\.6\.3"):
        _logprobs({**told, "tokens": ["the", "end"]}, 2, False)


def test_above_a_number_the_least_recently_used_is_unloaded_but_none_that_is_pinned_or_in_use(
    like: VllmLike, make: Make, sources: list[AdapterSource]
) -> None:
    backend = make(limit=2)
    a, b, c = sources
    for source in (a, b, a, c):
        ask(backend, source).text()
    assert set(like.loaded) == {a.sha256, c.sha256} == set(backend.adapters.loaded)
    backend.pin({a.sha256})
    ask(backend, c).text()
    ask(backend, b).text()
    assert set(like.loaded) == {a.sha256, b.sha256}
    backend.pin(set())
    like.pause_s = 0.02  # so that they last as long as this takes
    long = ask(backend, a, replace(GREEDY, max_tokens=300)), ask(backend, b, replace(GREEDY, max_tokens=300))
    eventually(lambda: all(ticket.token_count for ticket in long))
    ask(backend, c, replace(GREEDY, max_tokens=2)).text()
    assert set(like.loaded) == {a.sha256, b.sha256, c.sha256}  # both were in use
    for ticket in long:
        ticket.cancel()


def test_a_server_that_was_started_anew_gets_the_adapter_again_once(like: VllmLike, make: Make, sources: list[AdapterSource]) -> None:
    backend = make()
    text = ask(backend, sources[0]).text()
    like.loaded.clear()
    assert ask(backend, sources[0]).text() == text and sources[0].sha256 in like.loaded
    like.loaded.clear()
    like.forgets = True
    with pytest.raises(BaseUnavailable, match="forgets the adapter"):
        ask(backend, sources[0]).text()
    like.served = "other"
    with pytest.raises(BaseUnavailable, match="does not serve 'tiny' any more"):
        ask(backend).text()


def test_an_adapter_that_is_loaded_already_is_used(like: VllmLike, make: Make, sources: list[AdapterSource]) -> None:
    like.loaded[sources[1].sha256] = sources[1].folder
    assert ask(make(), sources[1]).text() and like.said[-2] == ("/v1/load_lora_adapter", 400)


def test_a_container_sees_the_home_elsewhere(like: VllmLike, make: Make, sources: list[AdapterSource]) -> None:
    home = sources[0].folder.parent.parent
    like.mounted["/studio"] = home
    with pytest.raises(BaseUnavailable, match="STUDIO_VLLM_HOME"):
        ask(make(home=home, there="/elsewhere"), sources[0]).text()
    assert ask(make(home=home, there="/studio/"), sources[0]).text() == own_text(like, sources[0])


def own_text(like: VllmLike, source: AdapterSource | None) -> str:
    prompt = prompt_ids(like.engine.tokenizer, [{"role": "user", "content": "Hello"}])
    return like.engine.submit(prompt, GREEDY, voice(source)).text()


def test_what_vllm_does_not_serve_is_refused_with_what_to_do(like: VllmLike, make: Make, sources: list[AdapterSource]) -> None:
    backend, ours = make(), "set STUDIO_BACKEND=engine"
    with pytest.raises(InvalidInput, match=ours):
        backend.submit([5], GREEDY, Voice((Part(sources[0]), Part(sources[1]))))
    with pytest.raises(InvalidInput, match=ours):
        backend.submit([5], GREEDY, voice(sources[0], 0.5))
    with pytest.raises(InvalidInput, match=ours):
        backend.submit([5], GREEDY, wants_distribution=True)
    for kind in ("dora", "prefix"):
        weights = AdapterWeights(4, 4.0, False, {}, kind=kind)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match=ours):
            ask(backend, AdapterSource(kind, lambda weights=weights: weights)).text()
    with pytest.raises(ContextTooLong, match=f"context is {CONTEXT}"):
        backend.submit([5] * CONTEXT, GREEDY)

    def gone() -> AdapterWeights:
        raise NotFound("The files are gone.")

    with pytest.raises(NotFound, match="gone"):
        ask(backend, AdapterSource("gone", gone)).text()
    like.max_rank = 2
    with pytest.raises(InvalidInput, match=r"LoRA rank 4 is greater than max_lora_rank 2\); start it with a higher --max-lora-rank\."):
        ask(backend, sources[0]).text()
    assert not like.asked and not backend.adapters.loaded and not backend.busy


def test_what_is_wrong_with_a_server_is_said_at_the_start(like: VllmLike, make: Make, tiny_base: Path, url: str) -> None:
    like.served, like.root = "org/Other", "/models/other"
    with pytest.raises(BaseUnavailable, match=r"serves 'org/Other', and the chat's base is 'tiny'; .*STUDIO_VLLM_MODEL"):
        make()
    assert make(model="org/Other").context == CONTEXT
    with pytest.raises(BaseUnavailable, match="not the 'mine' of STUDIO_VLLM_MODEL"):
        make(model="mine")
    like.root = "/studio/bases/base1/"  # as it is served from the studio's home
    assert make()._model == "org/Other"
    like.allows_loading = False
    with pytest.raises(BaseUnavailable, match="--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        make()
    like.key = "geheim"
    with pytest.raises(BaseUnavailable, match="refuses the key; set STUDIO_VLLM_KEY") as caught:
        make(key="falsch")
    assert "falsch" not in str(caught.value)
    nobody = VllmServer("http://127.0.0.1:9", "falsch")
    with pytest.raises(BaseUnavailable, match=r"127\.0\.0\.1:9 does not answer") as caught:
        VllmBackend(nobody, RECORD, tiny_base, "", Folders(Path("/")), 1)
    assert "falsch" not in str(caught.value)
    with pytest.raises(BaseUnavailable, match="does not answer as vLLM does"):
        VllmServer(f"{url}/nothing", "").models()


@pytest.mark.parametrize(
    ("fault", "says"),
    [("cut", "broke the connection off"), ("end", "broke the connection off"), ("event", r"broke the reply off \(EngineCore encountered")],
)
def test_where_a_stream_breaks_off_what_was_said_stands(like: VllmLike, make: Make, fault: str, says: str) -> None:
    backend, said = make(), list[str]()
    like.fault = fault
    ticket = ask(backend)
    with pytest.raises(BaseUnavailable, match=says):
        for piece in ticket:
            said.append(piece)
    like.fault = ""
    assert "".join(said) and own_text(like, None).startswith("".join(said)) and ticket.token_count >= 4
    assert ask(backend).text() == own_text(like, None) and not backend.busy


def test_a_text_may_hold_every_kind_of_line_end() -> None:
    text = "a\u2028b\x85c\x0bd\r"
    body = f": comment\r\n\r\ndata: {json.dumps({'choices': [], 'text': text}, ensure_ascii=False)}\r\n\r\ndata: [DONE]\r\n\r\n".encode()

    async def chunks() -> list[dict[str, Any]]:
        async def pieces() -> AsyncIterator[bytes]:
            for byte in body:
                yield bytes([byte])

        transport = httpx.MockTransport(lambda request: httpx.Response(200, content=pieces()))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return [chunk async for chunk in VllmServer("http://x", "").complete(client, {})]

    assert asyncio.run(chunks()) == [{"choices": [], "text": text}]


def test_errors_and_silence_end_in_one_sentence(like: VllmLike, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make()
    like.fault = "400"
    with pytest.raises(InvalidInput, match=r"refuses the request \(max_tokens is too large\)\."):
        ask(backend).text()
    like.fault = "500"
    with pytest.raises(BaseUnavailable, match=r"answers with an error \(500\)"):
        ask(backend).text()
    like.fault = "silence"
    monkeypatch.setattr("studio.chat.vllm_server.SILENCE_S", 0.3)
    with pytest.raises(BaseUnavailable, match="said nothing for"):
        ask(backend).text()


def test_cancel_closes_the_connection(like: VllmLike, make: Make) -> None:
    backend, like.pause_s = make(), 0.02
    ticket = ask(backend, sampling=replace(GREEDY, max_tokens=370))
    eventually(lambda: ticket.token_count > 3)
    ticket.cancel()
    assert ticket.text() and ticket.finished is not None and ticket.finished.reason == "cancelled" and ticket.finished.tokens < 370
    eventually(lambda: like.stopped == 1 and not like.engine.busy and not backend.busy)
    early = ask(backend, sampling=replace(GREEDY, max_tokens=370))
    early.cancel()  # perhaps before it was sent
    early.text()
    assert early.finished is not None and early.finished.reason == "cancelled"


def test_closing_ends_those_who_wait_and_takes_nobody_new(like: VllmLike, make: Make) -> None:
    backend = make()
    ticket = ask(backend, sampling=replace(GREEDY, max_tokens=370))
    backend.close()
    with pytest.raises(BaseUnavailable, match="was closed"):
        ticket.text()
    with pytest.raises(BaseUnavailable, match="was closed"):
        ask(backend)
    ticket.cancel()
    assert not backend.busy


@pytest.fixture
def studio(tmp_path: Path, tiny_base: Path, like: VllmLike, url: str) -> Iterator[Studio]:
    like.key = "geheim"
    settings = tiny_settings(tmp_path / "home", backend="vllm", vllm_url=f"{url}/v1", vllm_key="geheim")
    studio = Studio(settings)
    studio.bases.fetch(str(tiny_base))
    add_adapters(studio)
    yield studio
    studio.close()


def test_the_chat_and_its_http_api_speak_through_it(like: VllmLike, studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    record = studio.adapters.get("wizard")
    reply = studio.reply(HELLO, "wizard", temperature=0.0, max_tokens=12, ignore_eos=True)
    assert (reply.stamp.adapter_sha256, reply.stamp.base, reply.stamp.tokens) == (record.sha256, "tiny", 12) and reply.stamp.swap_ms > 0
    with serving(studio) as served:
        client = served.client()
        asked: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
        whole = client.chat.completions.create(model="wizard", logprobs=True, top_logprobs=2, n=2, **asked)
        assert [choice.message.content for choice in whole.choices] == [reply.text] * 2 and whole.choices[0].finish_reason == "length"
        assert whole.choices[0].logprobs is not None and len(whole.choices[0].logprobs.content or []) == 12
        assert whole.usage is not None and whole.usage.completion_tokens == 24
        chunks = list(client.chat.completions.create(model="base", stream=True, stream_options={"include_usage": True}, **asked))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == studio.reply(HELLO, "base", temperature=0.0, max_tokens=12, ignore_eos=True).text != reply.text
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 12
        with pytest.raises(openai.BadRequestError, match="STUDIO_BACKEND=engine"):
            client.chat.completions.create(model="wizard:0.5", **asked)
        like.fault = "500"
        with pytest.raises(openai.InternalServerError, match="answers with an error") as refused:
            client.chat.completions.create(model="base", **asked)
        assert refused.value.status_code == 503
    assert set(like.keys) == {"Bearer geheim"} and "geheim" not in caplog.text


def test_other_weights_under_the_same_name_are_loaded_under_another(like: VllmLike, studio: Studio) -> None:
    asked: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
    before, old = studio.reply(HELLO, "wizard", **asked).text, studio.adapters.get("wizard")
    studio.adapters.remove("wizard")
    weights = read_adapter(studio.adapters.path(studio.adapters.get("pirate")))
    folder = studio.adapters.folder / "again"
    folder.mkdir()
    for file, content in encode_adapter(replace(weights, alpha=weights.alpha / 2), "tiny", 0.0).items():
        (folder / file).write_bytes(content)
    studio.adapters.records.add(replace(old, id="again", sha256=adapter_sha256(folder)))
    assert studio.reply(HELLO, "wizard", **asked).text != before
    assert set(like.loaded) == {old.sha256, adapter_sha256(folder)}


def test_the_page_opens_and_says_what_is_wrong_and_a_training_puts_nothing_aside(like: VllmLike, studio: Studio) -> None:
    said: list[str] = []
    like.allows_loading = False
    studio.open_chat(studio.default_base(), said.append)
    assert len(said) == 1 and "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in said[0]
    like.allows_loading = True
    studio.open_chat(studio.default_base(), said.append)
    assert len(said) == 1 and studio.chat.base is not None and not studio.chat.takes_memory
    assert (studio.status().quantization, studio.status().quantization_cost) == ("on a vLLM server", "")
    with pytest.raises(StudioError, match="STUDIO_BACKEND=engine"):
        studio.probe(HELLO, "wizard")


def test_an_evaluation_writes_answers_and_says_that_there_are_no_losses(studio: Studio, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"What is {i}?", "completion": f"It is {i}."}) for i in range(3)))
    studio.datasets.add([path], "rows")
    refused = studio.evaluations.finish(studio.evaluations.add("rows", ["wizard"], Plan(metrics=("loss", "f1"))).id).record
    assert refused.state == "failed" and "A vLLM server is not asked for the losses" in refused.reason
    answers = Plan(metrics=("chrf",), max_tokens=8)
    found = studio.evaluations.finish(studio.evaluations.add("rows", ["base", "wizard"], answers).id)
    assert found.record.state == "done" and found.done == 6 and not any(voice.errors for voice in found.voices)
    asked = [{"role": "user", "content": "What is 0?"}]
    [first, second] = studio.evaluations.read(found.record.id, 0, 1)[0][1]
    assert first.answer == studio.reply(asked, "base", max_tokens=8, temperature=0.0).text != second.answer
