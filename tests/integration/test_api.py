"""The HTTP API as OpenAI's own client sees it, on a tiny base with three adapters."""

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM

from studio.datasets.rendering import prompt_ids
from studio.services import Studio
from tests.conftest import tiny_settings
from tests.serving import VOICES, Served, add_adapters, serving, tiny_files

HELLO: list[Any] = [{"role": "user", "content": "Hello, who are you?"}]
GREEDY: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
ENDLESS: dict[str, Any] = {**GREEDY, "max_tokens": 450}


@pytest.fixture(scope="module")
def served(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    studio = Studio(tiny_settings(tmp_path_factory.mktemp("api") / "home"))
    studio.bases.fetch(str(tiny_base))
    add_adapters(studio)
    with serving(studio) as served:
        yield served
    studio.close()


@pytest.fixture
def client(served: Served) -> OpenAI:
    return served.client()


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def post(served: Served, path: str, **options: Any) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", timeout=60, **options)


def test_models_are_the_base_and_its_adapters(served: Served, client: OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"base", *VOICES}
    sha = served.studio.adapters.get("wizard").sha256
    assert client.models.retrieve("wizard").model_dump()["adapter_sha256"] == sha
    assert client.models.retrieve(f"wizard@{sha[:8]}").id == f"wizard@{sha[:8]}"
    assert client.models.retrieve("wizard:0.7+pirate:0.3").id == "wizard:0.7+pirate:0.3"
    assert client.models.retrieve("base").created > 0
    with pytest.raises(openai.NotFoundError, match="There is no adapter named 'nobody'"):
        client.models.retrieve("nobody")


def test_a_reply_is_the_chats_own_with_its_stamp(served: Served, client: OpenAI) -> None:
    for name in ("base", *VOICES, "wizard:0.7+pirate:0.3"):
        reply = client.chat.completions.create(model=name, **GREEDY)
        own = served.studio.reply(HELLO, name, temperature=0.0, max_tokens=24, ignore_eos=True)
        choice = reply.choices[0]
        assert (choice.message.content, choice.message.role, choice.finish_reason) == (own.text, "assistant", "length")
        assert (reply.object, reply.model) == ("chat.completion", name)
        stamp = reply.model_dump()["studio"]
        assert set(stamp) == {"adapter", "adapter_sha256", "base", "swap_ms", "ttft_ms", "tokens_per_s"}
        assert (stamp["adapter_sha256"], stamp["base"]) == (own.stamp.adapter_sha256, "tiny")
        assert stamp["ttft_ms"] > 0 and stamp["tokens_per_s"] > 0


def test_usage_counts_tokens_and_what_was_known(served: Served, client: OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "Tell me about the sea, its waves, its ships and its birds. " * 4}]
    asked: dict[str, Any] = {**GREEDY, "messages": long, "max_tokens": 4}
    usages = [client.chat.completions.create(model="pirate", **asked).usage for _ in range(2)]
    tokens = len(prompt_ids(served.engine.tokenizer, long))
    for usage in usages:
        assert usage is not None and usage.prompt_tokens_details is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (tokens, 4, tokens + 4)
    assert usages[0].prompt_tokens_details.cached_tokens < 10  # type: ignore[union-attr,operator]
    assert tokens // 2 < usages[1].prompt_tokens_details.cached_tokens < tokens  # type: ignore[union-attr,operator]


def test_a_stream_says_the_same_in_pieces(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="wizard", **GREEDY)
    chunks = list(client.chat.completions.create(model="wizard", stream=True, stream_options={"include_usage": True}, **GREEDY))
    assert chunks[0].choices[0].delta.role == "assistant"
    *spoken, end, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in spoken) == whole.choices[0].message.content
    assert len(spoken) > 10 and all(chunk.usage is None for chunk in chunks[:-1])
    assert end.choices[0].finish_reason == "length" and end.model_dump()["studio"]["adapter"] == "wizard"
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 24
    assert last.model_dump()["studio"]["adapter_sha256"] == whole.model_dump()["studio"]["adapter_sha256"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_ends_with_done_as_events(served: Served) -> None:
    body = {"model": "base", "messages": HELLO, "max_tokens": 3, "stream": True}
    reply = post(served, "/v1/chat/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = reply.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert "usage" not in json.loads(events[-1].removeprefix("data: ")) and "studio" in json.loads(events[-1].removeprefix("data: "))


def test_the_same_seed_draws_the_same_and_n_draws_several(client: OpenAI) -> None:
    drawn: dict[str, Any] = {"model": "pirate", "messages": HELLO, "max_tokens": 16, "temperature": 1.2, "extra_body": {"ignore_eos": True}}
    first, again, other = (client.chat.completions.create(seed=seed, n=3, **drawn) for seed in (7, 7, 99))
    texts = [[choice.message.content for choice in reply.choices] for reply in (first, again, other)]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage is not None and first.usage.completion_tokens == 48 and first.usage.prompt_tokens < 48
    heard = ["", "", ""]
    for chunk in client.chat.completions.create(seed=7, n=3, stream=True, **drawn):
        heard[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert heard == texts[0]
    unseeded = client.chat.completions.create(n=2, **drawn)
    assert unseeded.choices[0].message.content != unseeded.choices[1].message.content


def expected_logprobs(served: Served, prompt: list[int], said: list[str]) -> torch.Tensor:
    """Log-probabilities by transformers of greedy tokens behind a prompt, (tokens, V)."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny_files(served.studio)))
    with torch.no_grad():
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=len(said), do_sample=False, eos_token_id=None)
        return torch.log_softmax(model(whole).logits[0, len(prompt) - 1 : -1].float(), dim=-1)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_chat_are_those_of_transformers(served: Served, client: OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "base", "logprobs": True, "top_logprobs": 5, **GREEDY}
    if stream:
        found = [token for chunk in client.chat.completions.create(stream=True, **asked) for token in _content(chunk.choices[0])]
    else:
        reply = client.chat.completions.create(**asked)
        found = _content(reply.choices[0])
        octets = b"".join(bytes(token.bytes) for token in found)
        assert octets.decode(errors="replace").rstrip("\ufffd") == reply.choices[0].message.content
    assert len(found) == 24
    wanted = expected_logprobs(served, prompt_ids(served.engine.tokenizer, HELLO), found)
    for token, row in zip(found, wanted, strict=True):
        top = row.topk(5)
        assert math.isclose(token.logprob, float(top.values[0]), abs_tol=1e-4)
        assert [one.logprob for one in token.top_logprobs] == pytest.approx(top.values.tolist(), abs=1e-4)
        assert token.token == token.top_logprobs[0].token == served.engine.tokenizer.decode(top.indices[:1])


def _content(choice: Any) -> list[Any]:
    return choice.logprobs.content if choice.logprobs else []


def test_completions_continue_a_text_or_tokens_without_a_template(served: Served, client: OpenAI) -> None:
    tokenizer = served.engine.tokenizer
    text = "The sea is"
    asked: dict[str, Any] = {"model": "base", "temperature": 0, "max_tokens": 12, "logprobs": 2, "extra_body": {"ignore_eos": True}}
    by_text = client.completions.create(prompt=text, **asked)
    by_tokens = client.completions.create(prompt=tokenizer(text)["input_ids"], **asked)
    assert by_text.choices[0].text == by_tokens.choices[0].text and by_text.object == "text_completion"
    told = by_text.choices[0].logprobs
    assert told is not None and told.tokens is not None and told.top_logprobs is not None and told.text_offset is not None
    wanted = expected_logprobs(served, tokenizer(text)["input_ids"], told.tokens)
    assert told.token_logprobs == pytest.approx(wanted.max(dim=1).values.tolist(), abs=1e-4)
    assert all(1 <= len(top) <= 2 for top in told.top_logprobs) and told.text_offset[1] == len(told.tokens[0])
    assert by_text.usage is not None and by_text.usage.prompt_tokens == len(tokenizer(text)["input_ids"])
    chunks = list(client.completions.create(prompt=text, stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in chunks) == by_text.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length" and chunks[-1].model_dump()["studio"]["base"] == "tiny"
    both = client.completions.create(prompt=[text, "Why"], n=2, **asked)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text == by_text.choices[0].text != both.choices[2].text


def test_a_stop_text_ends_a_reply_and_is_no_part_of_it(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="wizard", **GREEDY).choices[0].message.content
    assert whole is not None
    stop = whole[8:11]
    for given in (stop, ["never said", stop]):
        reply = client.chat.completions.create(model="wizard", stop=given, **GREEDY).choices[0]
        assert (reply.message.content, reply.finish_reason) == (whole[: whole.index(stop)], "stop")


@pytest.mark.parametrize("start", [0, 5, 9, 14])
def test_tokens_of_a_stop_text_are_not_among_the_logprobs(client: OpenAI, start: int) -> None:
    asked: dict[str, Any] = {"model": "wizard", "logprobs": True, **GREEDY}
    whole = client.chat.completions.create(**asked).choices[0]
    text, tokens = str(whole.message.content), [bytes(token.bytes) for token in _content(whole)]
    stop = text[start : start + 4]
    at = text.index(stop)
    assert "\ufffd" not in text[: at + 4]
    said = next(count for count in range(len(tokens)) if len(b"".join(tokens[:count])) >= len(text[:at].encode()))
    reply = client.chat.completions.create(stop=stop, **asked).choices[0]
    assert (reply.message.content, reply.finish_reason) == (text[:at], "stop")
    assert [bytes(token.bytes) for token in _content(reply)] == tokens[:said]
    told, heard = list[bytes](), ""
    for chunk in client.chat.completions.create(stop=stop, stream=True, **asked):
        heard += chunk.choices[0].delta.content or ""
        told += [bytes(token.bytes) for token in _content(chunk.choices[0])]
        assert len(b"".join(told)) >= len(heard.encode())  # a text never comes before its tokens
    assert (heard, told) == (text[:at], tokens[:said])


def test_tokens_that_might_have_begun_a_stop_text_are_told_in_the_end(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "wizard", "logprobs": True, **GREEDY, "max_tokens": 10}
    whole = client.chat.completions.create(**asked).choices[0]
    text = str(whole.message.content)
    for stream in (False, True):
        found = client.chat.completions.create(stop=text[-3:] + "\0", stream=stream, **asked)
        choices = [chunk.choices[0] for chunk in found] if stream else [found.choices[0]]
        assert [token.token for choice in choices for token in _content(choice)] == [token.token for token in _content(whole)]


def test_options_reach_the_sampler(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "base", "messages": HELLO, "max_completion_tokens": 20, "seed": 3, "temperature": 2}
    plain = client.chat.completions.create(**asked, extra_body={"ignore_eos": True})
    greedy = client.chat.completions.create(**asked, extra_body={"ignore_eos": True, "top_k": 1})
    narrow = client.chat.completions.create(**asked, top_p=0.01, extra_body={"ignore_eos": True, "top_k": -1})
    assert greedy.choices[0].message.content == narrow.choices[0].message.content != plain.choices[0].message.content
    again = client.chat.completions.create(model="base", frequency_penalty=2, presence_penalty=2, **{**GREEDY, "max_tokens": 60})
    without = client.chat.completions.create(model="base", **{**GREEDY, "max_tokens": 60})
    assert again.choices[0].message.content != without.choices[0].message.content
    assert plain.usage is not None and plain.usage.completion_tokens == 20


def test_a_chat_without_a_length_has_what_the_context_leaves(served: Served, client: OpenAI) -> None:
    reply = client.chat.completions.create(model="base", messages=HELLO, temperature=0, extra_body={"ignore_eos": True})
    assert reply.usage is not None and reply.usage.total_tokens == served.engine.context
    short = client.completions.create(model="base", prompt="Hello", extra_body={"ignore_eos": True})
    assert short.usage is not None and short.usage.completion_tokens == 16


def test_parts_of_text_and_other_roles_are_read(served: Served, client: OpenAI) -> None:
    parts: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "you!"}]},
    ]
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello, you!"}]
    reply = client.chat.completions.create(model="base", **{**GREEDY, "messages": parts})
    assert reply.choices[0].message.content == served.studio.reply(plain, "base", temperature=0.0, max_tokens=24, ignore_eos=True).text


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 9}, "temperature is 9", ""),
    ({"temperature": "hot"}, "field temperature is 'hot'", "temperature"),
    ({"max_tokens": 0}, "max_tokens is 0", ""),
    ({"n": 1000}, "field n is 1000", "n"),
    ({"messages": []}, "field messages", "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool'", "messages.0.role"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "not the user's", "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "'image_url'", "messages.0.content"),
    ({"tools": [{"type": "function"}]}, "field tools cannot be used", "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format cannot be used", "response_format"),
    ({"logit_bias": {"3": 1}}, "logit_bias cannot be used", "logit_bias"),
    ({"top_logprobs": 3}, "needs logprobs", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 50}, "logprobs is 50", ""),
    ({"stop": [""]}, "option stop", ""),
    ({"model": "wizard:9+pirate"}, "weight of 'wizard'", ""),
    ({"messages": [{"role": "user", "content": "word " * 2000}]}, "context is 512", ""),
    ({"max_tokens": 512}, "context is 512", ""),
]


@pytest.mark.parametrize(("changes", "sentence", "param"), BAD)
def test_what_cannot_be_done_is_refused_in_a_sentence(served: Served, changes: dict[str, Any], sentence: str, param: str) -> None:
    reply = post(served, "/v1/chat/completions", json={"model": "base", "messages": HELLO, **changes})
    error = reply.json()["error"]
    assert reply.status_code == 400 and sentence in error["message"] and error["message"].endswith("."), error
    assert (error["type"], error["param"]) == ("invalid_request_error", param or None)
    assert (error["code"] == "context_length_exceeded") == ("context" in sentence)


@pytest.mark.parametrize(
    "changes", [{"prompt": ""}, {"prompt": []}, {"prompt": [[]]}, {"prompt": [0, 600]}, {"prompt": [-1]}, {"prompt": 5}, {"echo": True}]
)
def test_completions_refuse_what_is_no_prompt(served: Served, changes: dict[str, Any]) -> None:
    reply = post(served, "/v1/completions", json={"model": "base", "prompt": "Hi", **changes})
    assert reply.status_code == 400 and reply.json()["error"]["message"].endswith("."), reply.text


def test_unknown_fields_and_nulls_are_left_alone(served: Served) -> None:
    odd = {"model": "base", "messages": HELLO, "max_tokens": 2, "new_thing": {"a": 1}, "tools": None, "stop": None, "store": True}
    assert post(served, "/v1/chat/completions", json=odd).status_code == 200


def test_bodies_and_addresses_that_are_none(served: Served) -> None:
    for content in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}'):
        reply = post(served, "/v1/chat/completions", content=content)
        assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"
    assert post(served, "/v1/completions", content=b" " * (9 << 20)).status_code == 413
    assert post(served, "/v1/embeddings", json={}).status_code == 404
    assert httpx.get(f"{served.url}/v1/chat/completions").status_code == 405
    assert post(served, "/v1/models").json()["error"]["code"] == "method_not_allowed"


def test_an_unknown_model_is_404(client: OpenAI) -> None:
    for name in ("nobody", "wizard@ffffff", "wizard+nobody", "BASE"):
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model=name, **GREEDY)
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_an_adapter_whose_files_are_gone_has_a_status_in_a_stream_too(served: Served, client: OpenAI) -> None:
    studio = served.studio
    record = studio.adapters.get("wizard")
    studio.adapters.records.add(replace(record, id="gone", name="gone", sha256="9" * 64))
    try:
        with pytest.raises(openai.NotFoundError, match="cannot be used"):
            client.chat.completions.create(model="gone", stream=True, **GREEDY)
    finally:
        studio.adapters.records.remove("gone")


def test_a_base_that_is_put_aside_is_503(served: Served, client: OpenAI) -> None:
    client.chat.completions.create(model="base", **GREEDY)
    eventually(lambda: served.studio.chat.put_aside("a training needs the memory"))
    with pytest.raises(openai.InternalServerError, match="put aside") as refused:
        client.chat.completions.create(model="base", **GREEDY)
    assert refused.value.status_code == 503 and refused.value.response.headers["retry-after"]
    served.studio.chat.bring_back()
    assert client.chat.completions.create(model="base", **GREEDY).choices


def test_many_clients_with_different_adapters_get_what_each_gets_alone(client: OpenAI) -> None:
    names = ["base", *VOICES]
    alone = {name: client.chat.completions.create(model=name, **GREEDY).choices[0].message.content for name in names}
    assert len(set(alone.values())) == len(names)

    def ask(number: int) -> tuple[str, str]:
        name = names[number % len(names)]
        if number % 3:
            return name, client.chat.completions.create(model=name, **GREEDY).choices[0].message.content or ""
        chunks = client.chat.completions.create(model=name, stream=True, **GREEDY)
        return name, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(24) as pool:
        heard = list(pool.map(ask, range(48)))
    assert [(name, text) for name, text in heard if text != alone[name]] == []


def test_waiting_requests_hold_no_thread(served: Served, client: OpenAI) -> None:
    client.chat.completions.create(model="base", **GREEDY)
    with ThreadPoolExecutor(80) as pool:
        futures = [pool.submit(client.chat.completions.create, model="wizard", **{**ENDLESS, "max_tokens": 100}) for _ in range(80)]
        eventually(lambda: len(served.engine._rows) == served.engine.capacity.max_batch)
        client.models.list()  # needs one of the server's 40 threads
        done = sum(future.done() for future in futures)
        assert len({future.result().choices[0].message.content for future in futures}) == 1
    assert done < 40


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_rows(served: Served, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, url = served.engine, f"{served.url}/v1/chat/completions"
    eventually(lambda: not engine.busy)
    step = engine._step
    monkeypatch.setattr(engine, "_step", lambda: (time.sleep(0.005), step()))  # ten seconds of work, on however slow a machine
    body = {"model": "wizard", "messages": HELLO, "max_tokens": 480, "ignore_eos": True, "stream": stream, "n": 64}
    if stream:
        with httpx.stream("POST", url, json=body, timeout=60) as reply:
            assert next(reply.iter_text()) and reply.status_code == 200
            eventually(lambda: len(engine._rows) + len(engine._waiting) > 16)
            tickets = [row.ticket for row in engine._rows] + engine._waiting
    else:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx.post, url, json=body, timeout=1)
            eventually(lambda: len(engine._rows) + len(engine._waiting) > 16)
            tickets = [row.ticket for row in engine._rows] + engine._waiting
            with pytest.raises(httpx.ReadTimeout):
                asked.result()
    eventually(lambda: not engine.busy)
    assert len(tickets) > 16
    left = [ticket.finished.reason for ticket in tickets if ticket.finished is not None]
    assert len(left) == len(tickets) and left.count("cancelled") > len(left) * 3 // 4
