"""Lists of turns as OpenAI and ShareGPT write them: their roles, their contents, their order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from studio.datasets.forms.conversation import Conversation, Turn
from studio.datasets.forms.faults import Fault, described, excerpt


@dataclass(slots=True)
class Findings:
    """What was found in one row beside its conversation: (what was adapted, detail), and fields to keep."""

    notes: list[tuple[str, str]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def note(self, what: str, detail: str = "") -> None:
        """Remember what was adapted, once a row."""
        if (what, detail) not in self.notes:
            self.notes.append((what, detail))


@dataclass(frozen=True)
class Dialect:
    """How turns are written: the keys that hold the role and the content, and what each role is called here."""

    role: tuple[str, ...]
    content: tuple[str, ...]
    roles: dict[str, str]


_OURS = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
OPENAI = Dialect(("role",), ("content",), _OURS)
SHAREGPT = Dialect(
    ("from", "role"),
    ("value", "content"),
    _OURS | {"human": "user"} | dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
)
TOOL_ROLES = frozenset({"tool", "function", "function_call", "function_response", "observation", "tool_call", "tool_response", "ipython"})
TOOL_KEYS = ("tool_calls", "function_call")
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
EXACT = 2.0**63  # below it JSON keeps every digit of a whole number
_AFTER = {"system": "user", "user": "assistant", "assistant": "user"}


def plain_turns(turns: list[Any]) -> Conversation | None:
    """Turns that need no second look, copied; None where anything is out of the ordinary, which `read_turns` then explains."""
    conversation: Conversation = []
    due = "user"
    try:
        for turn in turns:
            role, content = turn["role"], turn["content"]
            if type(content) is not str or len(turn) != 2:
                return None
            content = content.strip()
            if not content:
                return None
            if not content.isascii():
                content.encode()
            if role == due:
                conversation.append({"role": due, "content": content})
                due = _AFTER[due]
            elif role == "system" and not conversation:
                conversation.append({"role": "system", "content": content})
            else:
                return None
    except (KeyError, TypeError, UnicodeEncodeError):
        return None
    return conversation if due == "user" and len(conversation) > 1 else None


def turn_list(value: object, field: str, found: Findings) -> list[Any]:
    """The list in a field, out of JSON where it is the cell of a table."""
    if isinstance(value, str) and value.strip():
        value = _parse_cell(value, field)
        found.note("json")
    if value is None:
        raise Fault("missing", field, "this is null, not a list of turns", "write the turns or delete the row", value)
    if isinstance(value, str) or value == []:
        raise Fault("empty", field, f"this is {described(value)} without a turn", "write a list of turns or delete the row", value)
    if not isinstance(value, list):
        raise Fault("not a list", field, f"this is {described(value)}, not a list", "write a list of turns", value)
    return value


def _parse_cell(cell: str, field: str) -> object:
    try:
        return orjson.loads(cell)
    except orjson.JSONDecodeError:
        fix = "write double quotes, as json.dumps does" if "'" in cell[:4] else 'write [{"role": …, "content": …}, …]'
        raise Fault("not JSON", field, "this cell is not JSON", fix, cell) from None


def read_turns(turns: list[Any], field: str, dialect: Dialect, found: Findings) -> Conversation:
    """The turns, each checked by itself; `check_order` checks them together."""
    return [_read_turn(turn, f"{field}[{i}]", dialect, found) for i, turn in enumerate(turns)]


def _read_turn(turn: object, field: str, dialect: Dialect, found: Findings) -> Turn:
    if not isinstance(turn, dict):
        keys = f"{dialect.role[0]} and {dialect.content[0]}"
        raise Fault("not a list", field, f"this turn is {described(turn)}, not an object", f"write it with {keys}", turn)
    role_key = role_key_of(turn, dialect)
    role = _read_role(turn.get(role_key), f"{field}.{role_key}", dialect, found)
    for key in TOOL_KEYS:
        if turn.get(key):
            raise Fault("tool calls", f"{field}.{key}", "tool calls cannot be trained here", "delete the row", turn[key])
    key = next((key for key in dialect.content if key in turn), dialect.content[0])
    if key not in turn:
        raise Fault("missing", f"{field}.{key}", "this field is missing", "add it or delete the row", turn)
    content = read_content(turn[key], f"{field}.{key}", found)
    if len(turn) > 2:
        _check_others(turn, (role_key, key), role, field, found)
    return {"role": role, "content": content}


def role_key_of(turn: Mapping[str, Any], dialect: Dialect) -> str:
    """The key under which this turn has its role."""
    return next((key for key in dialect.role if turn.get(key) is not None), dialect.role[0])


def _read_role(role: object, field: str, dialect: Dialect, found: Findings) -> str:
    if role is None:
        raise Fault("missing", field, "this turn has no role", f"use {', '.join(dialect.roles)}", role)
    name = role.strip().lower() if isinstance(role, str) else ""
    if name in TOOL_ROLES:
        raise Fault("tool calls", field, "what a tool gave back cannot be trained here", "delete the row", role)
    if name not in dialect.roles:
        raise Fault("unknown role", field, f"the role is {excerpt(role, 40)!r}", f"use {', '.join(dialect.roles)}", role)
    if name != role:
        found.note("capitals")
    if name == "developer":
        found.note("developer")
    return dialect.roles[name]


def _check_others(turn: dict[str, Any], known: tuple[str, str], role: str, field: str, found: Findings) -> None:
    """A turn's further keys are left out and told, but for one that says not to train it."""
    weight = turn.get("weight")
    if role == "assistant" and weight is not None and weight != 1 and "weight" not in known:
        fix = "delete the key to train this answer, or delete the row"
        raise Fault("turn weight", f"{field}.weight", "an answer is trained wholly or the row is not used", fix, weight)
    note_other_keys(turn, known, found)


def note_other_keys(turn: dict[str, Any], known: tuple[str, str], found: Findings) -> None:
    """Tell the keys of a turn that are left out; those that are null say nothing."""
    for key, value in turn.items():
        if key not in known and value is not None:
            found.note("turn key", excerpt(key, 40))


def read_content(value: object, field: str, found: Findings) -> str:
    """A turn's text; OpenAI's parts of text are joined as they stand."""
    if not isinstance(value, list):
        return read_text(value, field)
    found.note("parts")
    return read_text("".join(_part(part, f"{field}[{i}]") for i, part in enumerate(value)), field)


def _part(part: object, field: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and isinstance(kind, str) and kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    what = f"of the type {excerpt(kind, 40)!r}" if kind else described(part)
    raise Fault("not text", field, f"this part is {what}, and only text can be trained", "delete the part or the row", part)


def read_text(value: object, field: str) -> str:
    """A text without the blanks at its ends."""
    if type(value) is not str:
        if value is None:
            raise Fault("missing", field, "this is null, not text", "write the text or delete the row", value)
        raise Fault("not text", field, f"this is {described(value)}, not text", "put the text in quotes", value)
    text = value.strip()
    if not text:
        raise Fault("empty", field, "this is empty", "write the text or delete the row", value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            near = text[max(0, error.start - 20) : error.start + 20]
            problem = "this holds half of a character (a lone surrogate)"
            raise Fault("half a character", field, problem, "write the whole character", near) from None
    return text


def check_order(conversation: Conversation, where: Callable[[int], str], field: str) -> None:
    """Refuse what is no conversation. `where` names turn i, `field` the whole list."""
    first = 1 if conversation[0]["role"] == "system" else 0
    due = "user"
    for index in range(first, len(conversation)):
        role = conversation[index]["role"]
        if role != due:
            fix = "move it to the beginning" if role == "system" and not first else "let user and assistant take turns"
            raise Fault("turn order", where(index), f"{role!r} stands where {due!r} is due", fix, conversation[index]["content"])
        due = _AFTER[due]
    if conversation[-1]["role"] != "assistant":
        problem = "the conversation has no assistant turn at its end"
        raise Fault("no answer", field, problem, "add the answer, or delete what follows the last one", conversation[-1]["content"])
