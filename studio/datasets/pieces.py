"""An example's tokens as readable pieces of text, for people who want to see what is trained."""

from dataclasses import dataclass
from typing import Any

from studio.datasets.rendering import Example
from studio.datasets.templates import Span
from studio.datasets.tokens import Encoder, character_places


@dataclass(frozen=True)
class Piece:
    """One token as text, or the several tokens that only together make a character.

    `trained`: the loss counts it. `cut`: it lies beyond max_length. `special`: a special token such as <|im_end|>. `tokens`:
    how many there are in it.
    """

    text: str
    trained: bool
    cut: bool
    special: bool
    tokens: int = 1


def pieces(tokenizer: Any, example: Example, max_length: int) -> list[Piece]:
    """The tokens of an example as pieces whose texts, joined, are the rendered text.

    That is exact for an example that `render` made, which holds its text. From the tokens alone, as `render_many` and
    `render_all` hand them out, it is as exact as the tokenizer's decoding.
    """
    text, places = (example.text, example.places) if example.places else _read_back(tokenizer, example.token_ids)
    special = {token for token, content in tokenizer.added_tokens_decoder.items() if content.special}
    found: list[Piece] = []
    done, first, last = 0, 0, len(places) - 1
    for index, (_, end) in enumerate(places):
        # A character that the next token goes on with is not complete.
        complete = min(end, places[index + 1][0]) if index < last else len(text)
        if complete <= done and index < last:
            continue
        tokens = range(first, index + 1)
        found.append(
            Piece(
                text[done:complete],
                any(example.trained[i] and 0 < i < max_length for i in tokens),
                index >= max_length,
                any(example.token_ids[i] in special for i in tokens),
                len(tokens),
            )
        )
        done, first = max(complete, done), index + 1
    return found


def _read_back(tokenizer: Any, ids: list[int]) -> tuple[str, list[Span]]:
    """The text of tokens, and the characters of each."""
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    [encoded] = Encoder(tokenizer).encode_all([text])
    if encoded.ids == ids:
        return text, character_places(text, encoded)
    # The text has another shortest way into tokens, so it is read token by token; a broken character ends with the token after it.
    ends = [len(tokenizer.decode(ids[: i + 1], clean_up_tokenization_spaces=False).rstrip("�")) for i in range(len(ids))]
    return text, list(zip([0, *ends[:-1]], ends, strict=True))
