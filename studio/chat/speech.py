"""From a reply's tokens to its text, piece by piece: whole characters only, and nothing of a stop text."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class Speech:
    """The text of one reply as its tokens come.

    Args:
        tokenizer: of the base; a fast one decodes token by token. stops: texts that end the reply.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._fast = getattr(tokenizer, "_tokenizer", None)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held = ""  # may be the beginning of a stop text
        self._ids: list[int] = []  # of a tokenizer that cannot stream
        self._said = 0
        self.length = 0  # characters of all tokens so far
        self.told = 0  # of those that were given away
        self.is_stopped = False

    def add(self, token_id: int) -> str:
        """The text that a token completes; empty where it completes none."""
        new = self._decoded(token_id)
        text, self.length = self._held + new, self.length + len(new)
        for stop in self._stops:
            if (at := text.find(stop)) >= 0:
                self.is_stopped, text = True, text[:at]
        count = 0 if self.is_stopped else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - count :]
        self.told += len(text) - count
        return text[: len(text) - count]

    def rest(self) -> str:
        """What was held back and is no stop text after all."""
        held, self._held = self._held, ""
        self.told += len(held)
        return held

    def _decoded(self, token_id: int) -> str:
        if self._fast is not None:
            return self._stream.step(self._fast, token_id) or ""
        self._ids.append(token_id)
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith("\ufffd"):  # a character may need several tokens
            return ""
        new, self._said = text[self._said :], len(text)
        return new


def _overlap(text: str, stop: str) -> int:
    """The longest end of the text that a stop text begins with, shorter than the whole of it."""
    return next((count for count in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:count])), 0)
