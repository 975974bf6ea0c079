"""A laid-out text as tokens, and which characters each token stands for, exactly and fast.

Byte-level tokenizers (GPT-2, Llama 3, Qwen, SmolLM) write every byte of the text into some token, so where a token stands follows from
the lengths of those before it. That is exact, is checked for each text by its whole length, and spares the offsets, which cost
a third of the time and leave out white space with some of these tokenizers. All others (SentencePiece) give their offsets.
"""

import json
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from studio.datasets.masks import Layout
from studio.datasets.templates import Span, Unrenderable
from studio.errors import InvalidInput

_UNKNOWN = -(10**9)  # the length of a token that is not made of bytes: no text's length comes out right with it


@dataclass(frozen=True)
class Encoded:
    """Token ids, and for each where it begins and ends in the text: in bytes of UTF-8 if `in_bytes`, else in characters."""

    ids: list[int]
    starts: list[int]
    ends: list[int]
    in_bytes: bool


class _ByteLengths(dict[int, int]):
    """How many bytes a token of a byte-level tokenizer stands for, looked up when it is first met."""

    def __init__(self, backend: Any, added: dict[int, str]) -> None:
        super().__init__({token: len(content.encode()) for token, content in added.items()})
        self._backend = backend

    def __missing__(self, token: int) -> int:
        name = self._backend.id_to_token(token)
        self[token] = length = len(name) if name else _UNKNOWN  # one character of its name is one byte
        return length


class Encoder:
    """Encodes texts of one tokenizer as the tokenizer itself does, without adding special tokens.

    Raises:
        InvalidInput: the tokenizer cannot say where its tokens stand.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InvalidInput(
                "The tokenizer of this base does not say where its tokens stand in the text; choose a base that has a tokenizer.json."
            )
        self.tokenizer, self.backend = tokenizer, tokenizer._tokenizer
        self.added = {token: content.content for token, content in tokenizer.added_tokens_decoder.items()}
        self.special = {token for token, content in tokenizer.added_tokens_decoder.items() if content.special}
        kinds = _kinds(self.backend)
        self._composes = kinds["normalizer"] == {"NFC"}
        byte_level = "ByteLevel" in kinds["pre_tokenizer"] and kinds["normalizer"] <= {"NFC"}
        self._lengths = _ByteLengths(self.backend, self.added) if byte_level else None

    def encode_all(self, texts: list[str]) -> list[Encoded]:
        """Encode many texts at once, on all cores."""
        # The tokenizer's own call takes back padding, truncation and splitting of special tokens, which a file may have set.
        self.tokenizer("", add_special_tokens=False)
        if self._lengths is None:
            return [_by_offsets(found) for found in self.backend.encode_batch(texts, add_special_tokens=False)]
        found = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [self._by_lengths(text, encoding.ids) for text, encoding in zip(texts, found, strict=True)]

    def encode(self, layout: Layout) -> Encoded:
        """Encode one text in which some stretches that look like special tokens are plain text."""
        ids: list[int] = []
        places: list[Span] = []
        done = 0
        for start, end in [*layout.plain, (len(layout.text), len(layout.text))]:
            found, found_places = self._encode_piece(layout.text[done:start], done > 0)
            ids += found
            places += [(done + begin, done + stop) for begin, stop in found_places]
            as_text = self._encode_as_text(layout.text[start:end])
            ids += as_text
            places += [(start, end)] * len(as_text)
            done = end
        return Encoded(ids, [begin for begin, _ in places], [stop for _, stop in places], in_bytes=False)

    def _encode_piece(self, piece: str, follows: bool) -> tuple[list[int], list[Span]]:
        """Encode a piece of a text that may follow another piece, with places in characters of the piece."""
        if not piece:
            return [], []
        if follows and self._lengths is None:  # a space would be put before it, as before the first word of a text
            [line, whole] = self.encode_all(["\n", "\n" + piece])
            if whole.ids[: len(line.ids)] == line.ids:
                behind = slice(len(line.ids), None)
                starts, ends = whole.starts[behind], whole.ends[behind]
                return whole.ids[behind], [(max(begin, 1) - 1, max(stop, 1) - 1) for begin, stop in zip(starts, ends, strict=True)]
        [whole] = self.encode_all([piece])
        return whole.ids, character_places(piece, whole)

    def _encode_as_text(self, text: str) -> list[int]:
        """The text of a special token as the tokens of its characters."""
        if not text:
            return []
        line, whole = self._without_added("\n"), self._without_added("\n" + text)
        ids = whole[len(line) :] if line and whole[: len(line)] == line else self._without_added(text)
        if self.backend.token_to_id(text) in ids:
            raise Unrenderable(f"A turn holds the text {text!r}, which this base always reads as a special token; take it out of the turn.")
        return ids

    def _without_added(self, text: str) -> list[int]:
        backend = self.backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer is not None else [text]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    def _by_lengths(self, text: str, ids: list[int]) -> Encoded:
        lengths = self._lengths
        assert lengths is not None  # asked by `encode_all`
        ends = list(accumulate(map(lengths.__getitem__, ids)))
        size = len(text) if text.isascii() else len(text.encode())
        if (ends[-1] if ends else 0) != size or (self._composes and not unicodedata.is_normalized("NFC", text)):
            return _by_offsets(self.backend.encode(text, add_special_tokens=False))
        return Encoded(ids, [0, *ends[:-1]] if ends else [], ends, in_bytes=True)


def trained_tokens(encoded: Encoded, text: str, spans: list[Span], special: set[int]) -> list[bool]:
    """Which tokens hold characters of the spans.

    A token that begins before a span, because it ends the template's header and begins the answer, is trained if it shows
    anything of the answer: white space alone or a special token of the header does not count.
    """
    trained = [False] * len(encoded.ids)
    in_bytes = encoded.in_bytes and not text.isascii()
    for span in spans:
        start, end = (len(text[:at].encode()) for at in span) if in_bytes else span
        first, last = bisect_right(encoded.ends, start), bisect_left(encoded.starts, end)
        while first < last and encoded.starts[first] < start:
            shared = text.encode()[start : encoded.ends[first]] if in_bytes else text[start : encoded.ends[first]]
            if shared.strip() and encoded.ids[first] not in special:
                break
            first += 1
        if first < last:
            trained[first:last] = [True] * (last - first)
    return trained


def character_places(text: str, encoded: Encoded) -> list[Span]:
    """For each token the characters that it stands for, those of which it holds only a part among them."""
    if not encoded.in_bytes or text.isascii():
        return list(zip(encoded.starts, encoded.ends, strict=True))
    # For each byte the number of its character, and one more at the end.
    character = [i for i, one in enumerate(text) for _ in range(len(one.encode()))]
    return [(character[begin], character[stop - 1] + 1) for begin, stop in zip(encoded.starts, encoded.ends, strict=True)]


def _by_offsets(encoding: Any) -> Encoded:
    """The tokenizer's own offsets, in which white space that a token leaves out is given to it again."""
    starts, ends, reached = [], [], 0
    for start, end in encoding.offsets:
        # An offset never lies before the end of the token before it, but where tokens share a character.
        starts.append(min(start, reached) if start == end else start)
        ends.append(max(end, reached))
        reached = ends[-1]
    return Encoded(encoding.ids, starts, ends, in_bytes=False)


def _kinds(backend: Any) -> dict[str, set[str]]:
    """The types of a tokenizer's normalizer and pre-tokenizer, and of all that they are made of."""
    kinds: dict[str, set[str]] = {}
    for part in ("normalizer", "pre_tokenizer"):
        step = getattr(backend, part)
        described = json.loads(step.__getstate__()) if step is not None else {}
        kinds[part] = set(_types(described)) - {"Sequence"}
    return kinds


def _types(described: Any) -> Iterator[str]:
    if isinstance(described, list):
        for one in described:
            yield from _types(one)
    elif isinstance(described, dict):
        if "type" in described:
            yield described["type"]
        for one in described.values():
            if isinstance(one, list | dict):
                yield from _types(one)
