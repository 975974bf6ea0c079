"""A conversation as tokens of one base, with a mask of the tokens that are trained.

The base's own chat template writes the text. Trained are the assistant's words and the mark that ends its turn;
never the prompt, the system turn, or the template's scaffolding.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from studio.datasets.forms import Conversation
from studio.errors import InvalidInput


@dataclass(frozen=True)
class Example:
    """One row for the trainer. `trained[i]` says whether token i is predicted in the loss. Both have length T.

    `prompt` is what the first answer answers, for people to read.
    """

    token_ids: list[int]
    trained: list[bool]
    prompt: str = ""


@dataclass(frozen=True)
class Rendered:
    """All examples of a dataset, and what had to be done to rows that are too long."""

    examples: list[Example]
    truncated: int
    dropped: int

    @property
    def notices(self) -> list[str]:
        """What a person should know before the training starts."""
        told = []
        if self.truncated:
            told.append(f"{self.truncated} row(s) are longer than max_length and were cut off at it.")
        if self.dropped:
            told.append(f"{self.dropped} row(s) do not fit max_length and were left out.")
        return told


def render(tokenizer: Any, conversation: Conversation) -> Example:
    """Apply the chat template and mark the assistant's tokens.

    A turn's span is what the template adds when the turn is appended to everything before it, so no knowledge of
    the template is needed as long as it does not rewrite earlier turns.

    Raises:
        InvalidInput: the base has no chat template, or one that rewrites earlier turns.
    """
    if not tokenizer.chat_template:
        raise InvalidInput("This base has no chat template, so it cannot be taught a conversation; choose an instruct model.")
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    spans = []
    for index, turn in enumerate(conversation):
        if turn["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(conversation[:index], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(conversation[: index + 1], tokenize=False)
        if not (after.startswith(before) and text.startswith(after.rstrip())):
            raise InvalidInput("The chat template of this base rewrites earlier turns; train it on rows of a single exchange.")
        spans.append((len(before), len(after.rstrip())))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    trained = [any(start <= begin < end for start, end in spans) and begin < stop for begin, stop in encoded["offset_mapping"]]
    first = next((i for i, turn in enumerate(conversation) if turn["role"] == "assistant"), 0)
    return Example(list(encoded["input_ids"]), trained, conversation[first - 1]["content"] if first else "")


def prompt_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """The conversation as the base's chat template writes it, up to where the assistant begins."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def render_all(
    tokenizer: Any, conversations: Iterable[Conversation], max_length: int, over_length: Literal["truncate", "drop"]
) -> Rendered:
    """Render every conversation; rows over `max_length` tokens are cut or dropped as the user chose.

    A cut row whose answer lies wholly behind the limit trains nothing, so it is dropped in both cases.
    """
    examples, truncated, dropped = [], 0, 0
    for conversation in conversations:
        example = render(tokenizer, conversation)
        if len(example.token_ids) > max_length:
            example = Example(example.token_ids[:max_length], example.trained[:max_length], example.prompt)
            # The first token is never predicted, so it cannot be the only trained one.
            if over_length == "drop" or not any(example.trained[1:]):
                dropped += 1
                continue
            truncated += 1
        examples.append(example)
    return Rendered(examples, truncated, dropped)
