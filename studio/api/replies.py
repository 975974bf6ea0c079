"""Replies and the chunks of streams in OpenAI's form. What only the studio knows stands in the field `studio`."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.api.asked import Asked, AskedChat
from studio.chat.sampling import TokenLogprob
from studio.chat.stamp import Stamp
from studio.chat.tokens import TokenTexts

LOWEST = -9999.0  # JSON has no -inf; OpenAI's clients know this number


@dataclass
class Choice:
    """One answer so far. `said` are its log-probabilities, where they are asked for; `offset` counts its characters."""

    index: int
    texts: TokenTexts
    text: str = ""
    said: list[TokenLogprob] = field(default_factory=list)
    offset: int = 0
    stamp: Stamp | None = None


class Form:
    """The JSON of one request's answers.

    Args:
        asked: the request. per_prompt: answers to each prompt.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked, self._is_chat = asked, isinstance(asked, AskedChat)
        self._has_logprobs = asked.wished_logprobs is not None
        self._id, self._created = f"{asked.id_prefix}-{secrets.token_hex(12)}", int(time.time())

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The reply of a request that does not stream."""
        shown = [self._choice(one, {"message": {"role": "assistant", "content": one.text, "refusal": None}}) for one in choices]
        return {**self._head(self._asked.object_name), "choices": shown, **self._ending(choices)}

    def opening(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """The first chunk of each answer of a chat says who speaks."""
        if not self._is_chat:
            return []
        return [self._chunk(one, {"role": "assistant", "content": ""}) for one in choices]

    def piece(self, choice: Choice, text: str, said: list[TokenLogprob]) -> dict[str, Any]:
        """A chunk with some text."""
        new = Choice(choice.index, choice.texts, text, said, choice.offset)
        choice.offset += len(text)
        return self._chunk(new, {"content": text})

    def end(self, choice: Choice) -> dict[str, Any]:
        """An answer's last chunk."""
        last = Choice(choice.index, choice.texts, offset=choice.offset, stamp=choice.stamp)
        assert choice.stamp is not None
        return {**self._chunk(last, {}), "studio": studio_field(choice.stamp)}

    def usage(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """The stream's last chunk, where it was asked for."""
        if not self._asked.stream_options.include_usage:
            return []
        return [{**self._head(self._asked.chunk_name), "choices": [], **self._ending(choices)}]

    def _head(self, name: str) -> dict[str, Any]:
        return {"id": self._id, "object": name, "created": self._created, "model": self._asked.model}

    def _ending(self, choices: Sequence[Choice]) -> dict[str, Any]:
        stamps = [choice.stamp for choice in choices if choice.stamp is not None]
        return {"usage": usage(stamps, self._asked.n), "studio": studio_field(stamps[0])}

    def _chunk(self, choice: Choice, delta: dict[str, Any]) -> dict[str, Any]:
        usage_so_far = {"usage": None} if self._asked.stream_options.include_usage else {}
        return {**self._head(self._asked.chunk_name), "choices": [self._choice(choice, {"delta": delta})], **usage_so_far}

    def _choice(self, choice: Choice, speech: dict[str, Any]) -> dict[str, Any]:
        reason = choice.stamp.reason if choice.stamp else None
        told = {"index": choice.index, "finish_reason": reason, "logprobs": self._logprobs(choice)}
        return {**told, **speech} if self._is_chat else {**told, "text": choice.text}

    def _logprobs(self, choice: Choice) -> dict[str, Any] | None:
        if not self._has_logprobs or (choice.stamp is not None and not choice.said and not choice.text):
            return None
        return _of_chat(choice) if self._is_chat else _of_text(choice)


def usage(stamps: Sequence[Stamp], per_prompt: int) -> dict[str, Any]:
    """Tokens of all answers; each prompt counts once, whoever computed it."""
    prompts = stamps[::per_prompt]
    asked, said = sum(stamp.prompt_tokens for stamp in prompts), sum(stamp.tokens for stamp in stamps)
    cached = sum(stamp.reused_tokens for stamp in prompts)
    return {
        "prompt_tokens": asked,
        "completion_tokens": said,
        "total_tokens": asked + said,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def studio_field(stamp: Stamp) -> dict[str, Any]:
    """Who made a reply, and how fast."""
    return {
        "adapter": stamp.adapter,
        "adapter_sha256": stamp.adapter_sha256,
        "base": stamp.base,
        "swap_ms": round(stamp.swap_ms, 3),
        "ttft_ms": round(stamp.ttft_ms, 3),
        "tokens_per_s": round(stamp.tokens_per_s, 2),
    }


def _of_chat(choice: Choice) -> dict[str, Any]:
    def told(token_id: int, logprob: float) -> dict[str, Any]:
        text, octets = choice.texts.of(token_id)
        return {"token": text, "logprob": max(logprob, LOWEST), "bytes": octets}

    content = [{**told(one.token_id, one.logprob), "top_logprobs": [told(*pair) for pair in one.top]} for one in choice.said]
    return {"content": content, "refusal": None}


def _of_text(choice: Choice) -> dict[str, Any]:
    tokens = [choice.texts.of(one.token_id)[0] for one in choice.said]
    starts, at = [], choice.offset
    for token in tokens:
        starts.append(at)
        at += len(token)
    top = [{choice.texts.of(token_id)[0]: max(logprob, LOWEST) for token_id, logprob in reversed(one.top)} for one in choice.said]
    return {
        "tokens": tokens,
        "token_logprobs": [max(one.logprob, LOWEST) for one in choice.said],
        "top_logprobs": top,
        "text_offset": starts,
    }
