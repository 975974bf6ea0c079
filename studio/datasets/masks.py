"""Which characters of a rendered conversation are trained: the assistant's words and the mark that ends its turn.

Asked in this order, and the first that is certain is taken: the template's own generation marks; the skeleton of the conversation's
shape; the skeleton of the row; what the template adds when the turn is appended. Where none is certain, the row is refused.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from studio.datasets.forms import Conversation
from studio.datasets.templates import SAID, THOUGHT, ChatTemplate, Skeleton, Span, Unrenderable, contents_of, without_thought


@dataclass(frozen=True)
class Layout:
    """A conversation's text, the characters in it that are trained, and those that are plain text though they look like marks."""

    text: str
    trained: list[Span]
    plain: list[Span]


class Masker:
    """Finds what is trained, for one tokenizer.

    Raises:
        InvalidInput: the base has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.template = ChatTemplate(tokenizer)
        self.eos = tokenizer.eos_token or ""
        added = tokenizer.added_tokens_decoder.values()
        # Some tokenizers hold runs of white space as added tokens; those end nothing.
        self._added = [token.content for token in added if token.content.strip()]
        self._special = [token.content for token in added if token.special and token.content]
        self._initials = {content[0] for content in self._special}

    def lay_out(self, conversation: Conversation) -> Layout:
        """Render one conversation and find what is trained in it.

        Raises:
            Unrenderable: the template refuses it, or it is not certain where its answers stand.
        """
        text, marks = self.template.text_and_marks(conversation)
        spans = self._by_marks(conversation, text, marks) if marks else self._by_skeleton(conversation, text)
        if spans is None:
            spans = self._by_appending(conversation, text)
        return Layout(text, spans, self._plain_spans(conversation, text, prompt=False))

    def lay_out_prompt(self, conversation: Conversation) -> Layout:
        """The text up to where the next answer begins; nothing of it is trained.

        Raises:
            Unrenderable: the template refuses the conversation.
        """
        text = self.template.text(conversation, prompt=True)
        return Layout(text, [], self._plain_spans(conversation, text, prompt=True))

    def _by_marks(self, conversation: Conversation, text: str, marks: list[Span]) -> list[Span]:
        """The template's marks, with the end mark of a turn where they stop before it."""
        ends = [end for _, end in self._by_skeleton(conversation, text) or []]
        spans = []
        for start, end in marks:
            after = text[end:]
            closing = next((known for known in ends if known > end and self._is_mark(text[end:known])), None)
            if closing is None and not ends and not self._ends_with_mark(text[start:end]):
                closing = end + len(self._first_mark(after))
            spans.append((start, closing or end))
        return spans

    def _by_skeleton(self, conversation: Conversation, text: str) -> list[Span] | None:
        skeleton = self.template.skeleton(conversation)
        spans = skeleton and self._fill(skeleton, conversation, text)
        if not spans:
            skeleton = self.template.skeleton_of_row(conversation)
            spans = skeleton and self._fill(skeleton, conversation, text)
        return spans or None

    def _fill(self, skeleton: Skeleton, conversation: Conversation, text: str) -> list[Span] | None:
        answers = [i for i, turn in enumerate(conversation) if turn["role"] == "assistant"]
        said = [turn for turn, part in skeleton.slots if part == SAID and turn in answers]
        places = skeleton.place(contents_of(conversation), text) if said == answers else None
        if places is None:
            return None
        spans, last = [], self._last_mark(skeleton.texts[-1])
        for at, (turn, part) in enumerate(skeleton.slots):
            if turn not in answers or part == THOUGHT:
                continue
            start, end = places[at]
            begins = at
            if at and skeleton.slots[at - 1] == (turn, THOUGHT):
                begins = at - 1
            start = places[begins][0] - self._opening(skeleton.texts[begins], conversation, turn, begins < at)
            mark = self._middle_mark(skeleton, at + 1, last) if at + 1 < len(skeleton.slots) else last
            spans.append((start, end + len(mark)))
        return spans

    def _opening(self, before: str, conversation: Conversation, turn: int, has_thought: bool) -> int:
        """How many characters before a slot are still the answer's own: its <think> tag, or its empty thought.

        An empty thought that the template writes by itself, also where the answer has none, is the template's.
        """
        pattern = r"\s*<think>\s*\Z" if has_thought else r"<think>\s*</think>\s*\Z"
        match = re.search(pattern, before) if "<think>" in conversation[turn]["content"] else None
        if not match:
            return 0
        if not has_thought:
            bare = without_thought(conversation, turn)
            skeleton = self.template.skeleton(bare)
            if skeleton is None or (turn, SAID) not in skeleton.slots:
                return 0
            if re.search(pattern, skeleton.texts[skeleton.slots.index((turn, SAID))]):
                return 0
        return len(match[0].lstrip())

    def _last_mark(self, tail: str) -> str:
        """What ends the last turn: all up to its first added token, or all of it where it has none."""
        match = self._any_added.search(tail)
        return tail[: match.end()] if match else tail.rstrip()

    def _middle_mark(self, skeleton: Skeleton, at: int, last: str) -> str:
        """What ends a turn that another follows: as the last turn ends, or with a token that does not open the next turn."""
        after = skeleton.texts[at]
        if last and after.startswith(last):
            return last
        mark = self._first_mark(after)
        # Not the last turn's mark: then it is one if it is the end of a sequence, or if it ends the user's turns as well.
        return mark if mark.strip() in (self.eos, self._mark_of_users) else ""

    @cached_property
    def _mark_of_users(self) -> str:
        """What ends a user's turn; asked of plain words, since a row's own turns may be blank."""
        skeleton = self.template.skeleton([{"role": "user", "content": "."}, {"role": "assistant", "content": "."}])
        at = skeleton.slots.index((0, SAID)) if skeleton and (0, SAID) in skeleton.slots else -1
        return self._first_mark(skeleton.texts[at + 1]).strip() if skeleton and at >= 0 else ""

    def _first_mark(self, after: str) -> str:
        """The added token with which a text begins, and the white space before it."""
        match = self._any_added.search(after)
        return after[: match.end()] if match and not after[: match.start()].strip() else ""

    def _is_mark(self, text: str) -> bool:
        return self._first_mark(text) == text

    def _ends_with_mark(self, text: str) -> bool:
        return text.rstrip().endswith(tuple(self._added))

    @cached_property
    def _any_added(self) -> re.Pattern[str]:
        return _any_of(self._added)

    @cached_property
    def _any_special(self) -> re.Pattern[str]:
        return _any_of(self._special)

    def _by_appending(self, conversation: Conversation, text: str) -> list[Span]:
        """What the template adds when each answer is appended to all before it, less what it writes before the words."""
        spans = []
        for index, turn in enumerate(conversation):
            if turn["role"] != "assistant":
                continue
            before = self.template.text(conversation[:index], prompt=True)
            after = self.template.text(conversation[: index + 1])
            if not (after.startswith(before) and text.startswith(after.rstrip())):
                raise _uncertain(conversation)
            added = after[len(before) :]
            words = turn["content"].strip()
            start = max(added.find(words), 0) if words else 0
            tail = added[start + len(words) :] if added.startswith(words, start) else ""
            end = start + len(words) + len(self._last_mark(tail)) if tail else len(added.rstrip())
            spans.append((len(before) + start, len(before) + end))
        return spans

    def _plain_spans(self, conversation: Conversation, text: str, prompt: bool) -> list[Span]:
        """Where contents hold the text of special tokens, such as <|im_end|>, that must not become these tokens.

        Found by writing the conversation once more with each such text in brackets that no row holds.
        """
        contents = [turn["content"] for turn in conversation]
        if not any(initial in content for initial in self._initials for content in contents):
            return []
        if not any(self._any_special.search(content) for content in contents):
            return []
        opened, closed = _free_pair(text)
        bracketed = [
            {**turn, "content": self._any_special.sub(lambda found: opened + found[0] + closed, turn["content"])} for turn in conversation
        ]
        written = self.template.text(bracketed, prompt)
        if written.replace(opened, "").replace(closed, "") != text:
            raise Unrenderable(
                "A turn holds the text of a special token, and the chat template of this base treats it as more than text; "
                "take it out of the turn."
            )
        return list(_bracketed_spans(written, opened, closed))


def _any_of(contents: list[str]) -> re.Pattern[str]:
    longest_first = sorted(set(contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _free_pair(text: str) -> tuple[str, str]:
    free = (chr(code) for code in range(0xE100, 0xF8FF) if chr(code) not in text)
    return next(free), next(free)


def _bracketed_spans(written: str, opened: str, closed: str) -> Iterable[Span]:
    """The brackets' insides, in characters of the text without brackets."""
    places = [match.start() - i for i, match in enumerate(re.finditer(f"[{opened}{closed}]", written))]
    return list(pairwise(places))[::2]


def _uncertain(conversation: Conversation) -> Unrenderable:
    if sum(turn["role"] == "assistant" for turn in conversation) > 1:
        return Unrenderable("The chat template of this base rewrites earlier turns; train it on rows of a single exchange.")
    return Unrenderable(
        "The chat template of this base changes this answer, so its words are not known in the text; "
        "change the answer or choose another base."
    )
