"""From a row to its conversation: the hot path, one call a row."""

from collections import Counter
from typing import Any

import orjson

from studio.datasets.forms.catalog import Fit
from studio.datasets.forms.conversation import MESSAGES, TEXT, Conversation, is_passage
from studio.datasets.forms.faults import Fault, described, excerpt
from studio.datasets.forms.shapes import READERS, fields_of
from studio.datasets.forms.turns import EXACT, Findings, plain_turns
from studio.datasets.rows import SourceRow
from studio.errors import InvalidInput

TOLD = {
    "developer": "{n} row(s) have turns of the role developer, which are system turns here.",
    "capitals": "{n} row(s) write roles with capitals or blanks, which were overlooked.",
    "parts": "{n} row(s) have contents in parts of text, which were joined as they stand.",
    "json": "{n} row(s) have their turns as JSON in a cell, which was read.",
    "bare": "{n} row(s) are lists without a name, which were taken for the conversation.",
    "unanswered": "{n} row(s) end with a line that nothing answers, which was left out.",
    "first answer": "{n} row(s) have a list or an object as the answer: its first text is trained, the whole is kept beside the row.",
    "yes or no": "{n} row(s) have true or false where text is due, which was written as yes or no.",
    "digits": "{n} row(s) have a number where text is due, which was written in digits.",
    "rejected": "{n} row(s) have a chosen and a rejected side: the chosen one is trained, the rejected one is kept beside the row.",
    "own prompt": "{n} row(s) have the prompt inside their turns too; the column of the prompt is kept beside the row.",
    "passage": "{n} row(s) have no prompt, so the chosen text is trained whole, as a passage.",
    "transcript": "{n} row(s) have the marks Human: and Assistant: in one text, which was read as turns.",
    "long number": "{n} row(s) have a number beyond 64 bits beside the conversation, of which the first 16 digits or so are kept.",
    "system column": "{n} row(s) have no use for their column of system prompts, which is kept beside the row.",
    "system beside": "{n} row(s) have a column system beside their messages, which is not used; the form conversations uses it.",
    "system added": "The system prompt was put before {n} row(s).",
    "system own": "{n} row(s) have a system prompt of their own and keep it.",
    "system passage": "{n} row(s) are passages, which take no system prompt.",
}
MANY_KEYS = 20


class RowReader:
    """Reads the rows of one form.

    Args:
        fit: the form and which column has which role. system: a system prompt for all conversations that have none.

    Raises:
        InvalidInput: the system prompt holds half of a character.
    """

    def __init__(self, fit: Fit, system: str = "") -> None:
        self.form = fit.form
        self._columns, self._used = fit.mapping, frozenset(fit.mapping.values())
        self._read = READERS[fit.form]
        self._plain = fit.mapping["messages"] if fit.form == "messages" else ""
        own = {MESSAGES, TEXT} if fit.form in ("text", "preference") else {MESSAGES}
        self._reserved = tuple(sorted(own))
        self._counts: Counter[tuple[str, str]] = Counter()
        self._system = system.strip()
        try:
            self._system.encode()
        except UnicodeEncodeError:
            raise InvalidInput("The system prompt holds half of a character (a lone surrogate); type it again.") from None

    @property
    def plain_column(self) -> str:
        """The column of turns where a row with nothing else, written as OpenAI does, is taken as it stands; else empty."""
        return "" if self._system else self._plain

    def __call__(self, row: SourceRow) -> tuple[Conversation, dict[str, Any]]:
        """The row's conversation and its extra fields: the columns that have no role here.

        Raises:
            RowError: with the row's line and file, the field, one of `KINDS`, and what to do.
        """
        value, conversation = row.value, None
        if self._plain and type(value) is dict:
            turns = value.get(self._plain)
            if type(turns) is list:
                conversation = plain_turns(turns)
            if conversation is not None and len(value) == 1:
                return (self._with_system(conversation) if self._system else conversation), {}
        try:
            return self._read_whole(value, conversation)
        except Fault as fault:
            raise fault.at(row.line, row.file) from None

    def _read_whole(self, value: object, conversation: Conversation | None) -> tuple[Conversation, dict[str, Any]]:
        found = Findings()
        fields = fields_of(value)
        if fields is not value:
            found.note("bare")
        conversation = conversation or self._read(fields, self._columns, found)
        extra = self._extra(fields, found)
        if self._plain and extra.get("system") and conversation[0]["role"] != "system":
            found.note("system beside")
        # Only now is the row accepted; what was adapted in a refused one is not counted.
        for note in found.notes:
            self._count(note)
        return (self._with_system(conversation) if self._system else conversation), extra

    def _count(self, note: tuple[str, str]) -> None:
        if note[0] == "turn key" and note not in self._counts and len(self._counts) > MANY_KEYS:
            note = ("turn key", "others")
        self._counts[note] += 1

    def _with_system(self, conversation: Conversation) -> Conversation:
        if is_passage(conversation):
            self._counts["system passage", ""] += 1
            return conversation
        if conversation[0]["role"] == "system":
            self._counts["system own", ""] += 1
            return conversation
        self._counts["system added", ""] += 1
        return [{"role": "system", "content": self._system}, *conversation]

    def _extra(self, fields: dict[str, Any], found: Findings) -> dict[str, Any]:
        extra = {name: value for name, value in fields.items() if name not in self._used}
        if found.extra:
            extra |= found.extra
        for name, value in extra.items():
            kind = type(value)
            if kind is float:
                if not -EXACT < value < EXACT:
                    found.note("long number")
            elif not ((kind is str and value.isascii()) or value is None or kind is bool):
                _check_storable(name, value)
            if type(name) is not str or not name.isascii():
                _check_storable(name, name)
        for name in self._reserved:
            if name in extra:
                free = name + "_"
                while free in fields:
                    free += "_"
                extra = {free if key == name else key: value for key, value in extra.items()}
                found.note("renamed", f"{name} {free}")
        return extra

    @property
    def notices(self) -> list[str]:
        """What was adapted so far, counted, in sentences."""
        told = [text.format(n=f"{self._counts[what, '']:,}") for what, text in TOLD.items() if self._counts[what, ""]]
        keys = [f"{detail} ({n:,} row(s))" for (what, detail), n in self._counts.items() if what == "turn key"]
        if keys:
            told.append(f"Keys of turns other than the role and the content were left out: {', '.join(keys)}.")
        for (what, detail), n in self._counts.items():
            if what == "renamed":
                name, _, free = detail.partition(" ")
                told.append(f"{n:,} row(s) have a column {name!r} beside the conversation, which is kept as {free!r}.")
        return told


def _check_storable(name: object, value: object) -> None:
    """Refuse what JSON cannot keep: numbers beyond 64 bits, bytes, half characters, names that are no text."""
    if not isinstance(name, str):
        raise Fault("extra value", excerpt(name), f"the name of this column is {described(name)}, not text", "rename the column", name)
    try:
        orjson.dumps(value)
    except TypeError as error:
        fix = "write it as text, or leave the column out"
        raise Fault("extra value", excerpt(name), f"this cannot be kept beside the row ({error})", fix, value) from None
