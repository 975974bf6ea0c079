"""One function a form: from the columns of a row to its conversation."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from studio.datasets.forms.conversation import TEXT, Conversation
from studio.datasets.forms.faults import Fault, described
from studio.datasets.forms.turns import (
    EXACT,
    OPENAI,
    SHAREGPT,
    Dialect,
    Findings,
    check_order,
    note_other_keys,
    read_text,
    read_turns,
    role_key_of,
    turn_list,
)

Row = Mapping[str, Any]
Columns = Mapping[str, str]
SUMMARISE = "Summarise:"
_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def _field(row: Row, column: str) -> Any:
    if column not in row:
        raise Fault("missing", column, "this field is missing", "add it or delete the row")
    return row[column]


def _text(row: Row, column: str) -> str:
    return read_text(_field(row, column), column)


def _optional_text(row: Row, columns: Columns, role: str) -> str:
    """The text of a role that a form may have; null and blanks are the same as no column."""
    column = columns.get(role)
    value = None if column is None else row.get(column)
    if column is None or value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return read_text(value, column)


def _exchange(question: str, answer: str, row: Row, columns: Columns, found: Findings) -> Conversation:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return _with_system(turns, row, columns, found)


def _with_system(conversation: Conversation, row: Row, columns: Columns, found: Findings) -> Conversation:
    """Put the text of the system column first. A conversation that has a system turn keeps it, and the row its column."""
    system = _optional_text(row, columns, "system")
    if not system:
        return conversation
    if conversation[0]["role"] in ("system", TEXT):
        found.note("system column")
        found.extra[columns["system"]] = row[columns["system"]]
        return conversation
    return [{"role": "system", "content": system}, *conversation]


def _turns(row: Row, column: str, dialect: Dialect, found: Findings) -> Conversation:
    turns = turn_list(_field(row, column), column, found)
    conversation = read_turns(turns, column, dialect, found)
    check_order(conversation, lambda i: f"{column}[{i}].{role_key_of(turns[i], dialect)}", column)
    return conversation


def _read_messages(row: Row, columns: Columns, found: Findings) -> Conversation:
    column = columns["messages"]
    turns = row.get(column)
    if isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], dict) and turns[0].get("role") == TEXT:
        note_other_keys(turns[0], ("role", "content"), found)
        return [{"role": TEXT, "content": read_text(turns[0].get("content"), f"{column}[0].content")}]
    return _turns(row, column, OPENAI, found)


def _read_conversations(row: Row, columns: Columns, found: Findings) -> Conversation:
    return _with_system(_turns(row, columns["conversations"], SHAREGPT, found), row, columns, found)


def _read_lines(row: Row, columns: Columns, found: Findings) -> Conversation:
    column = columns["conversation"]
    lines = turn_list(_field(row, column), column, found)
    texts = [read_text(_scalar(line, found), f"{column}[{i}]") for i, line in enumerate(lines)]
    if len(texts) > 1 and len(texts) % 2:  # nobody said whose line it is, so it is no answer that is missing
        found.note("unanswered")
        texts.pop()
    conversation = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    check_order(conversation, lambda i: f"{column}[{i}]", column)
    return _with_system(conversation, row, columns, found)


def _side(row: Row, column: str, role: str, found: Findings) -> tuple[Conversation, list[str]]:
    """One side of a pair: a text becomes one turn of `role`; a list is read as turns. With the path of each turn."""
    value = _field(row, column)
    if isinstance(value, dict):  # a single turn
        value = [value]
    if not isinstance(value, list):
        return [{"role": role, "content": read_text(value, column)}], [column]
    turns = turn_list(value, column, found)
    conversation = read_turns(turns, column, SHAREGPT, found)
    return conversation, [f"{column}[{i}].{role_key_of(turn, SHAREGPT)}" for i, turn in enumerate(turns)]


def _read_prompt(row: Row, columns: Columns, found: Findings) -> Conversation:
    prompt, places = _side(row, columns["prompt"], "user", found)
    completion, further = _side(row, columns["completion"], "assistant", found)
    conversation = prompt + completion
    check_order(conversation, (places + further).__getitem__, columns["completion"])
    return _with_system(conversation, row, columns, found)


def _read_preference(row: Row, columns: Columns, found: Findings) -> Conversation:
    rejected, column = columns["rejected"], columns.get("prompt")
    if rejected in row:
        found.extra[rejected] = row[rejected]
    found.note("rejected")
    conversation, places = _side(row, columns["chosen"], "assistant", found)
    if conversation[0]["role"] != "assistant":  # the list has its prompt inside
        if column in row:
            found.note("own prompt")
            found.extra[str(column)] = row[str(column)]
    elif column is not None:
        prompt, before = _side(row, column, "user", found)
        conversation, places = prompt + conversation, before + places
    elif isinstance(row[columns["chosen"]], str):
        conversation = _read_transcript(conversation[0]["content"], columns["chosen"], found)
        places = [columns["chosen"]] * len(conversation)
        if conversation[0]["role"] == TEXT:
            return _with_system(conversation, row, columns, found)
    check_order(conversation, places.__getitem__, columns["chosen"])
    return _with_system(conversation, row, columns, found)


def _read_transcript(text: str, column: str, found: Findings) -> Conversation:
    """A text with the marks Human: and Assistant: before its turns, as Anthropic's HH has it; without them, a passage."""
    before, *marked = _SPEAKER.split(text)
    if before or len(marked) < 4:
        found.note("passage")
        return [{"role": TEXT, "content": text}]
    found.note("transcript")
    speakers = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(marked[::2], marked[1::2], strict=True)
    return [{"role": speakers[speaker], "content": read_text(words, column)} for speaker, words in pairs]


def _read_instruction(row: Row, columns: Columns, found: Findings) -> Conversation:
    question = _text(row, columns["instruction"])
    given = _optional_text(row, columns, "input")
    answer = _text(row, columns["output"])
    return _exchange(f"{question}\n\n{given}" if given else question, answer, row, columns, found)


def _read_question(row: Row, columns: Columns, found: Findings) -> Conversation:
    question = _text(row, columns["question"])
    context = _optional_text(row, columns, "context")
    answer = _read_answer(_field(row, columns["answer"]), columns["answer"], found)
    return _exchange(f"{question}\n\n{context}" if context else question, answer, row, columns, found)


def _read_answer(value: object, column: str, found: Findings) -> str:
    """The first of several answers, as lists, SQuAD's {"text": […]} or TriviaQA's {"value": …} have them."""
    first, field = value, column
    while isinstance(first, list | dict):
        if isinstance(first, dict):
            key = next((key for key in ("text", "value") if key in first), None)
            if key is None:
                raise Fault("not text", field, "this is an object without a text", "put the answer there as text", first)
            first, field = first[key], f"{field}.{key}"
        elif first:
            first, field = first[0], f"{field}[0]"
        else:
            raise Fault("empty", field, "this is a list without an answer", "write the answer or delete the row", value)
    if first is not value:
        found.note("first answer")
        found.extra[column] = value
    return read_text(_scalar(first, found), field)


def _scalar(value: object, found: Findings) -> object:
    """Numbers as their digits, true and false as yes and no; anything else as it is."""
    if isinstance(value, bool):
        found.note("yes or no")
        return "yes" if value else "no"
    # A float beyond 64 bits may have been a whole number of which JSON's reader kept the first digits alone.
    if (isinstance(value, int) and abs(value) < 10**1000) or (isinstance(value, float) and abs(value) < EXACT):
        found.note("digits")
        return str(value)
    return value


def _read_summary(row: Row, columns: Columns, found: Findings) -> Conversation:
    document, summary = _text(row, columns["document"]), _text(row, columns["summary"])
    return _exchange(f"{SUMMARISE}\n\n{document}", summary, row, columns, found)


def _read_passage(row: Row, columns: Columns, _found: Findings) -> Conversation:
    return [{"role": TEXT, "content": _text(row, columns["text"])}]


READERS: dict[str, Callable[[Row, Columns, Findings], Conversation]] = {
    "messages": _read_messages,
    "conversations": _read_conversations,
    "prompt-completion": _read_prompt,
    "instruction": _read_instruction,
    "question-answer": _read_question,
    "summary": _read_summary,
    "preference": _read_preference,
    "conversation": _read_lines,
    "text": _read_passage,
}


def fields_of(value: object) -> dict[str, Any]:
    """The row's named fields. A bare list of turns, or of texts that take turns, is taken for its own only field.

    Raises:
        Fault: the row is neither.
    """
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value:
        if all(isinstance(item, dict) for item in value):
            return {"conversations" if "from" in value[0] else "messages": value}
        if any(isinstance(item, str) for item in value) and not any(isinstance(item, list | dict) for item in value):
            return {"conversation": value}
    raise Fault("not an object", "", f"this row is {described(value)}, not an object with named fields", "write it as {…}", value)
