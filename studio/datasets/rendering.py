"""A conversation as tokens of one base, with a mask of the tokens that are trained.

The base's own chat template writes the text. Trained are the assistant's words and the mark that ends its turn;
never the prompt, the system turn, or the template's scaffolding. A plain passage is trained whole and needs no template.

`templates` renders, `masks` finds the trained characters, `tokens` makes tokens of them, `pieces` shows them to people.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from studio.datasets.forms import Conversation
from studio.datasets.masks import Layout, Masker
from studio.datasets.templates import Span, Unrenderable
from studio.datasets.tokens import Encoded, Encoder, character_places, trained_tokens
from studio.errors import InvalidInput

__all__ = ["Example", "Rendered", "Renderer", "Unrenderable", "is_passage", "prompt_ids", "render", "render_all", "render_many"]

Given = TypeVar("Given")
Made = TypeVar("Made")
LaidOut = tuple[Conversation, Layout | InvalidInput]
PASSAGE = "text"  # the role of the only turn of a plain passage
# What is tokenized at once: enough to keep all cores at work, and some tens of megabytes.
CHUNK_ROWS = 512
CHUNK_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class Example:
    """One row for the trainer. `trained[i]` says whether token i is predicted in the loss. Both have length T.

    `prompt` is what the first answer answers, for people to read. `text` and `places`, the characters of it that each token
    stands for, are there for people too, and only where `render` made the example.
    """

    token_ids: list[int]
    trained: list[bool]
    prompt: str = ""
    text: str = field(default="", compare=False, repr=False)
    places: list[Span] = field(default_factory=list, compare=False, repr=False)


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
    """Apply the chat template and mark the assistant's tokens; of a plain passage, mark all.

    Raises:
        InvalidInput: the base has no chat template. Unrenderable: its template refuses this conversation.
    """
    renderer = Renderer(tokenizer)
    layout = renderer.lay_out(conversation)
    encoded = renderer.encode(layout)
    example = renderer.example(conversation, layout, encoded)
    places = character_places(layout.text, encoded)
    if not is_passage(conversation):
        return replace(example, text=layout.text, places=places)
    before, after = renderer.frame(encoded.ids)
    head, tail = (tokenizer.decode(ids) for ids in (before, after))
    moved = [(start + len(head), end + len(head)) for start, end in places]
    end = len(head) + len(layout.text)
    places = [(0, len(head))] * len(before) + moved + [(end, end + len(tail))] * len(after)
    return replace(example, text=head + layout.text + tail, places=places)


def render_many(tokenizer: Any, conversations: Iterable[Conversation]) -> Iterator[Example]:
    """Render conversations in order, many at once. Each example equals that of `render`.

    Raises:
        InvalidInput, Unrenderable: as `render`, when the row's turn has come.
    """
    renderer = Renderer(tokenizer)
    for chunk in _chunks((conversation, renderer.attempt(conversation)) for conversation in conversations):
        for example in renderer.examples(chunk):
            if isinstance(example, InvalidInput):
                raise example
            yield example


def prompt_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """The conversation as the base's chat template writes it, up to where the assistant begins.

    Raises:
        InvalidInput, Unrenderable: as `render`.
    """
    renderer = Renderer(tokenizer)
    return renderer.encode(renderer.masker.lay_out_prompt(messages)).ids


def render_all(
    tokenizer: Any, conversations: Iterable[Conversation], max_length: int, over_length: Literal["truncate", "drop"]
) -> Rendered:
    """Render every conversation; rows over `max_length` tokens are cut or dropped as the user chose.

    A cut row whose answer lies wholly behind the limit trains nothing, so it is dropped in both cases.

    Raises:
        InvalidInput: the base has no chat template. Unrenderable: its template refuses a row, whose number is told.
    """
    examples, truncated, dropped = [], 0, 0
    try:
        for example in render_many(tokenizer, conversations):
            if len(example.token_ids) <= max_length:
                examples.append(example)
                continue
            cut = Example(example.token_ids[:max_length], example.trained[:max_length], example.prompt)
            # The first token is never predicted, so it cannot be the only trained one.
            if over_length == "drop" or not any(cut.trained[1:]):
                dropped += 1
                continue
            truncated += 1
            examples.append(cut)
    except Unrenderable as error:
        row, reason = len(examples) + dropped + 1, str(error)
        raise Unrenderable(f"Row {row} of the dataset cannot be trained: {reason[0].lower()}{reason[1:]}") from None
    return Rendered(examples, truncated, dropped)


def is_passage(conversation: Conversation) -> bool:
    """Whether this is a plain passage instead of a conversation: one turn with the role `text`."""
    return len(conversation) == 1 and conversation[0]["role"] == PASSAGE


def _attempt(step: Callable[[Given], Made], given: Given) -> Made | InvalidInput:
    try:
        return step(given)
    except InvalidInput as reason:
        return reason


def _chunks(rows: Iterable[LaidOut]) -> Iterator[list[LaidOut]]:
    waiting: list[LaidOut] = []
    characters = 0
    for conversation, layout in rows:
        waiting.append((conversation, layout))
        characters += len(layout.text) if isinstance(layout, Layout) else 0
        if len(waiting) >= CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield waiting
            waiting, characters = [], 0
    yield waiting


class Renderer:
    """Renders conversations for one tokenizer. What is asked of it and its template is asked once for all rows.

    Args:
        tokenizer: a fast one of transformers.

    Raises:
        InvalidInput: the tokenizer cannot say where its tokens stand.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer)
        self._masker: Masker | None = None
        bos = tokenizer.bos_token_id
        self.bos = [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []
        self.eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def render_each(self, conversations: list[Conversation]) -> list[Example | InvalidInput]:
        """Render all at once; in the place of one that cannot be rendered stands the reason.

        All are tokenized together, so there should not be many more than `CHUNK_ROWS`.
        """
        return list(self.examples([(conversation, self.attempt(conversation)) for conversation in conversations]))

    @property
    def masker(self) -> Masker:
        """Of the chat template. Raises InvalidInput where there is none."""
        if self._masker is None:  # plain passages need no template
            self._masker = Masker(self.tokenizer)
        return self._masker

    def lay_out(self, conversation: Conversation) -> Layout:
        """The text, and what of it is trained. Raises as `render` does."""
        if is_passage(conversation):
            return Layout(conversation[0]["content"], [], [])
        return self.masker.lay_out(conversation)

    def attempt(self, conversation: Conversation) -> Layout | InvalidInput:
        """As `lay_out`, but a reason is handed out, not raised."""
        return _attempt(self.lay_out, conversation)

    def encode(self, layout: Layout) -> Encoded:
        """One layout as tokens. Raises Unrenderable: it holds the text of a special token that cannot be written as text."""
        return self.encoder.encode(layout) if layout.plain else self.encoder.encode_all([layout.text])[0]

    def examples(self, rows: list[LaidOut]) -> Iterator[Example | InvalidInput]:
        """Encode all at once, but for the few whose contents hold the text of special tokens."""
        layouts = [layout for _, layout in rows if isinstance(layout, Layout)]
        together = iter(self.encoder.encode_all([layout.text for layout in layouts if not layout.plain]))
        for conversation, layout in rows:
            if isinstance(layout, InvalidInput):
                yield layout
                continue
            encoded = _attempt(self.encode, layout) if layout.plain else next(together)
            yield encoded if isinstance(encoded, InvalidInput) else self.example(conversation, layout, encoded)

    def example(self, conversation: Conversation, layout: Layout, encoded: Encoded) -> Example:
        """The tokens with their mask."""
        if is_passage(conversation):
            before, after = self.frame(encoded.ids)
            ids = [*before, *encoded.ids, *after]
            return Example(ids, [True] * len(ids))
        first = next((i for i, turn in enumerate(conversation) if turn["role"] == "assistant"), 0)
        prompt = conversation[first - 1]["content"] if first else ""
        return Example(encoded.ids, trained_tokens(encoded, layout.text, layout.trained, self.encoder.special), prompt)

    def frame(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """The tokens before and behind a passage: the beginning and the end of a text, where it does not have them itself."""
        return ([] if ids[:1] == self.bos else self.bos), ([] if ids[-1:] == self.eos else self.eos)
