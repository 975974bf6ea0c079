"""What a base's chat template writes, and where in it each turn's content stands.

No template is known here. A template is asked once for each shape of a conversation (its roles in order) with a stand-in for every
content; what it writes around them is the skeleton of that shape. A row is rendered for real, and the skeleton filled with the row's
contents must give the very same text, character by character. Then it is certain where each content stands, also where a content
occurs twice or looks like the template's own marks.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studio.bases.marks import has_marks, marked_text
from studio.datasets.forms import Conversation
from studio.errors import InvalidInput

Span = tuple[int, int]
Slot = tuple[int, str]  # the turn's number, and which part of its content: SAID or THOUGHT
SAID, THOUGHT = "said", "thought"
# Private-use characters, of which one that a row does not hold frames the stand-ins.
_FRAMES = [chr(code) for code in range(0xE000, 0xE100)]
_THOUGHT = re.compile(r"(\s*<think>)(\s*)(.*?)(\s*</think>\s*)(.*)", re.DOTALL)


class Unrenderable(InvalidInput):
    """The base's chat template cannot write this one conversation, or not so that its answers are known in the text."""


@dataclass(frozen=True)
class Skeleton:
    """What a template writes around contents: `texts[0]`, the content of `slots[0]`, `texts[1]`, …, `texts[-1]`."""

    texts: tuple[str, ...]
    slots: tuple[Slot, ...]

    def place(self, contents: Mapping[Slot, str], text: str) -> list[Span] | None:
        """The characters of each slot's content in `text`; None where the text is not the skeleton with these contents.

        Templates may trim a content, so each may also stand there without the white space at its ends.
        """
        exact = [self.texts[0]]
        for slot, after in zip(self.slots, self.texts[1:], strict=True):
            exact += (contents[slot], after)
        if "".join(exact) == text:
            ends = _running_ends(exact)
            return [(ends[i - 1], ends[i]) for i in range(1, len(ends), 2)]
        return self._place_trimmed(contents, text) if text.startswith(self.texts[0]) else None

    def _place_trimmed(self, contents: Mapping[Slot, str], text: str) -> list[Span] | None:
        # All ways to read the text so far, by where they end; the first that reads it whole is taken.
        readings: dict[int, list[Span]] = {len(self.texts[0]): []}
        for slot, after in zip(self.slots, self.texts[1:], strict=True):
            longer: dict[int, list[Span]] = {}
            for position, spans in readings.items():
                for form in _trimmed_forms(contents[slot]):
                    end = position + len(form)
                    if text.startswith(form + after, position):
                        longer.setdefault(end + len(after), [*spans, (position, end)])
            readings = longer
        return readings.get(len(text))


def _running_ends(parts: list[str]) -> list[int]:
    ends, total = [], 0
    for part in parts:
        total += len(part)
        ends.append(total)
    return ends


def _trimmed_forms(content: str) -> list[str]:
    lines = (content.strip("\n"), content.lstrip("\n"), content.rstrip("\n"))
    return list(dict.fromkeys((content, content.strip(), content.lstrip(), content.rstrip(), *lines)))


class ChatTemplate:
    """The chat template of one tokenizer.

    Raises:
        InvalidInput: the base has none.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise InvalidInput("This base has no chat template, so it cannot be taught a conversation; choose an instruct model.")
        self.tokenizer = tokenizer
        self.marked = has_marks(tokenizer.get_chat_template())
        self._skeletons: dict[Any, Skeleton | None] = {}

    def text(self, conversation: Conversation, prompt: bool = False) -> str:
        """What the template writes, or, with `prompt`, what it writes up to where the next answer begins.

        Raises:
            Unrenderable: the template refuses the conversation.
        """
        return self.text_and_marks(conversation, prompt)[0]

    def text_and_marks(self, conversation: Conversation, prompt: bool = False) -> tuple[str, list[Span]]:
        """The text and what the template's generation marks enclose, which is nothing where it has none.

        Raises:
            Unrenderable: the template refuses the conversation.
        """
        import jinja2

        try:
            if self.marked:
                return marked_text(self.tokenizer, conversation, prompt)
            return self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt), []
        # What a template can do wrong is what any expression can: it calls raise_exception, or adds text to nothing.
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200].rstrip(" .") or type(error).__name__
            raise Unrenderable(
                f"The chat template of this base refuses this conversation: “{reason}”; change its turns or choose another base."
            ) from None

    def skeleton(self, conversation: Conversation) -> Skeleton | None:
        """The skeleton of a conversation's shape, asked for once; None where no stand-in comes through."""
        shape = tuple(_shape(turn) for turn in conversation)
        if shape not in self._skeletons:
            frame = _free_frame(conversation)
            self._skeletons[shape] = self._ask([_stand_in(i, turn, frame) for i, turn in enumerate(conversation)], frame)
        return self._skeletons[shape]

    def skeleton_of_row(self, conversation: Conversation) -> Skeleton | None:
        """The skeleton of one row, in which only the answers have stand-ins: for templates that look into the other turns."""
        frame = _free_frame(conversation)
        turns = [_stand_in(i, turn, frame) if turn["role"] == "assistant" else turn for i, turn in enumerate(conversation)]
        return self._ask(turns, frame)

    def _ask(self, conversation: Conversation, frame: str) -> Skeleton | None:
        try:
            text = self.text(conversation)
        except Unrenderable:  # it may be the stand-ins that it refuses
            return None
        pieces = re.split(f"{frame}(\\d+) ({SAID}|{THOUGHT}){frame}", text)
        if any(frame in piece for piece in pieces):
            return None
        slots = zip(pieces[1::3], pieces[2::3], strict=True)
        return Skeleton(tuple(pieces[::3]), tuple((int(turn), part) for turn, part in slots))


def contents_of(conversation: Conversation) -> dict[Slot, str]:
    """What stands in each slot that a skeleton of this conversation may have."""
    contents: dict[Slot, str] = {}
    for index, turn in enumerate(conversation):
        thought = _thought(turn)
        if thought:
            contents[index, THOUGHT], contents[index, SAID] = thought[3], thought[5]
        else:
            contents[index, SAID] = turn["content"]
    return contents


def without_thought(conversation: Conversation, index: int) -> Conversation:
    """The conversation with only what is said after the thought in turn `index`."""
    said = contents_of(conversation)[index, SAID]
    return [*conversation[:index], {**conversation[index], "content": said or "."}, *conversation[index + 1 :]]


def _thought(turn: Mapping[str, str]) -> re.Match[str] | None:
    """The parts of an answer that begins with one thought in <think> tags: templates of reasoning models take it apart."""
    content = turn["content"]
    if turn["role"] != "assistant" or "</think>" not in content:
        return None
    match = _THOUGHT.fullmatch(content)
    return match if match and "think>" not in match[3] + match[5] else None


def _shape(turn: Mapping[str, str]) -> tuple[str, ...]:
    """What a skeleton depends on: roles, and contents that have no stand-in because templates ask whether they are empty."""
    thought = _thought(turn)
    if thought:
        return turn["role"], "thought" if thought[3] else "", thought[1], thought[2], thought[4]
    return (turn["role"], "") if turn["role"] == "assistant" or turn["content"].strip() else (turn["role"], "blank", turn["content"])


def _stand_in(index: int, turn: Mapping[str, str], frame: str) -> dict[str, str]:
    """The turn with its content, or the parts of it, replaced by names that a template has no reason to change."""
    thought = _thought(turn)
    said = f"{frame}{index} {SAID}{frame}"
    if thought:
        inner = f"{frame}{index} {THOUGHT}{frame}" if thought[3] else ""
        return {**turn, "content": thought[1] + thought[2] + inner + thought[4] + said}
    blank = turn["role"] != "assistant" and not turn["content"].strip()
    return dict(turn) if blank else {**turn, "content": said}


def _free_frame(conversation: Conversation) -> str:
    held = {character for turn in conversation for character in turn["content"] if "\ue000" <= character <= "\ue0ff"}
    return next((frame for frame in _FRAMES if frame not in held), _FRAMES[0])
