"""Single tokens of a base as text and as bytes, for those who are told of probabilities."""

from typing import Any

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def _byte_level() -> dict[str, int]:
    """The byte that each character of a byte-level BPE stands for (Radford et al. 2019, GPT-2's encoder)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


BYTES = _byte_level()


class TokenTexts:
    """What each token stands for; half a character has bytes and no text of its own.

    Args:
        tokenizer: of the base.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int] | None]] = {}

    def of(self, token_id: int) -> tuple[str, list[int] | None]:
        """(text, its bytes in UTF-8); the bytes are None where the tokenizer does not tell those of half a character."""
        if token_id not in self._known:
            self._known[token_id] = self._read(token_id)
        return self._known[token_id]

    def _read(self, token_id: int) -> tuple[str, list[int] | None]:
        text: str = self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        name = str(self._tokenizer.convert_ids_to_tokens(token_id))
        if UNKNOWN in text:
            return text, self._half(name)
        if name.startswith(SPACE) and not text.startswith(" "):  # a first token loses its space when it is decoded alone
            text = f" {text}"
        return text, list(text.encode())

    def _half(self, name: str) -> list[int] | None:
        if len(name) == len("<0xFF>") and name.startswith("<0x"):
            return [int(name[3:5], 16)]
        found = [BYTES.get(char) for char in name]
        return None if None in found else [byte for byte in found if byte is not None]
