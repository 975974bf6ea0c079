"""The forms that a row may have, and the one form that it becomes: a conversation.

A conversation is an optional system turn, then user and assistant turns in alternation, ending with the assistant.

| form | fields |
|---|---|
| messages | `messages`: list of {role, content} |
| prompt-completion | `prompt`, `completion` |
| instruction | `instruction`, `output`, and `input` where it is not empty |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from studio.datasets.rows import RowError, SourceRow
from studio.errors import InvalidInput

Turn = dict[str, str]
Conversation = list[Turn]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Form:
    """A form: its name, the fields that a row must have, those that it may have, and how it is read."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[dict[str, Any], int], Conversation]


def find_form(columns: list[str], wanted: str = "auto") -> Form:
    """The form whose required fields are all among the columns.

    Raises:
        InvalidInput: none fits, or `wanted` is unknown; the message lists the columns that are there.
    """
    if wanted != "auto":
        if wanted not in FORMS:
            raise InvalidInput(f"There is no format {wanted!r}; choose auto, {', '.join(FORMS)}.")
        candidates = [FORMS[wanted]]
    else:
        candidates = list(FORMS.values())
    for form in candidates:
        if all(field in columns for field in form.required):
            return form
    needs = ", or ".join(" and ".join(form.required) for form in candidates)
    there = ", ".join(columns) or "none"
    raise InvalidInput(f"The file's columns are {there}; it needs {needs}. Rename columns, or map a role to a column.")


def read_mapping(pairs: list[str]) -> dict[str, str]:
    """Parse `ROLE=COLUMN` pairs into {column: role}.

    Raises:
        InvalidInput: a pair has another shape or an unknown role.
    """
    roles = sorted({field for form in FORMS.values() for field in form.required + form.optional})
    mapping = {}
    for pair in pairs:
        role, equals, column = pair.partition("=")
        if not equals or not column or role not in roles:
            raise InvalidInput(f"The mapping {pair!r} is not ROLE=COLUMN with a role among {', '.join(roles)}.")
        mapping[column] = role
    return mapping


def rename_columns(row: SourceRow, mapping: Mapping[str, str]) -> dict[str, Any]:
    """The row as a dict with mapped columns renamed to their roles.

    Raises:
        RowError: the row is not an object.
    """
    if not isinstance(row.value, dict):
        got = type(row.value).__name__
        raise RowError(row.line, "", f"this row is a {got}, not an object with named fields", "write it as {…}")
    # Mapped columns last, so that they win over a column that has the role's own name.
    items = sorted(row.value.items(), key=lambda item: item[0] in mapping)
    return {mapping.get(key, key): value for key, value in items}


def _text(row: dict[str, Any], field: str, line: int) -> str:
    if field not in row:
        raise RowError(line, field, "this field is missing", "add it or delete the row")
    value = row[field]
    if not isinstance(value, str):
        raise RowError(line, field, f"this is {_kind(value)}, not text", "put the text in quotes")
    if not value.strip():
        raise RowError(line, field, "this is empty", "write the text or delete the row")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(line, field, "this holds half of a character (a lone surrogate)", "write the whole character") from None
    return value.strip()


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _read_prompt(row: dict[str, Any], line: int) -> Conversation:
    return [
        {"role": "user", "content": _text(row, "prompt", line)},
        {"role": "assistant", "content": _text(row, "completion", line)},
    ]


def _read_instruction(row: dict[str, Any], line: int) -> Conversation:
    question = _text(row, "instruction", line)
    if row.get("input") not in (None, ""):
        question += "\n\n" + _text(row, "input", line)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": _text(row, "output", line)}]


def _read_messages(row: dict[str, Any], line: int) -> Conversation:
    turns = row.get("messages")
    if isinstance(turns, str):  # a cell of a CSV
        try:
            turns = orjson.loads(turns)
        except orjson.JSONDecodeError:
            raise RowError(line, "messages", "this cell is not JSON", 'write [{"role": …, "content": …}, …]') from None
    if not isinstance(turns, list) or not turns:
        raise RowError(line, "messages", f"this is {_kind(turns)}, or empty", "write a list of turns")
    conversation = [_read_turn(turn, f"messages[{i}]", line) for i, turn in enumerate(turns)]
    _check_order(conversation, line)
    return conversation


def _read_turn(turn: object, field: str, line: int) -> Turn:
    if not isinstance(turn, dict):
        raise RowError(line, field, f"this turn is {_kind(turn)}, not an object", "write it with role and content")
    role = turn.get("role")
    if role not in ROLES:
        raise RowError(line, f"{field}.role", f"the role is {role!r}", f"use {', '.join(ROLES)}")
    if turn.get("tool_calls"):
        raise RowError(line, f"{field}.tool_calls", "tool calls cannot be trained here", "delete the row")
    return {"role": role, "content": _text({f"{field}.content": turn.get("content")}, f"{field}.content", line)}


def _check_order(conversation: Conversation, line: int) -> None:
    first = 1 if conversation[0]["role"] == "system" else 0
    for index, turn in enumerate(conversation[first:]):
        expected = ("user", "assistant")[index % 2]
        if turn["role"] != expected:
            where = f"messages[{first + index}].role"
            raise RowError(line, where, f"{turn['role']!r} stands where {expected!r} is due", "let user and assistant take turns")
    if conversation[-1]["role"] != "assistant":
        raise RowError(line, "messages", "the conversation has no assistant turn at its end", "add the answer")


FORMS = {
    form.name: form
    for form in (
        Form("messages", ("messages",), (), _read_messages),
        Form("prompt-completion", ("prompt", "completion"), (), _read_prompt),
        Form("instruction", ("instruction", "output"), ("input",), _read_instruction),
    )
}
