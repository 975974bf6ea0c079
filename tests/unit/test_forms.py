"""Every form becomes one conversation; what does not fit is told with its field, its kind and what stands there."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.datasets.forms import FORMS, KINDS, Conversation, Fit, RowReader, choose_form, find_forms, is_passage, read_mapping, to_row
from studio.datasets.forms.faults import excerpt
from studio.datasets.forms.reader import TOLD
from studio.datasets.rows import RowError, SourceRow
from studio.errors import InvalidInput

DOCS = Path(__file__).parent.parent.parent / "docs" / "datasets.md"
characters = st.characters(exclude_categories=())  # halves of characters too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(characters, max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(characters, max_size=5), inner, max_size=3),
    max_leaves=8,
)
words = st.text(min_size=1).filter(lambda text: text.strip())


def reader(row: object, form: str = "auto", system: str = "", **mapping: str) -> RowReader:
    return RowReader(choose_form([row], form, mapping), system)


def read(row: object, form: str = "auto", **mapping: str) -> Conversation:
    return reader(row, form, **mapping)(SourceRow(7, row))[0]


def fault(row: object, form: str = "auto") -> RowError:
    """What is wrong with a row, behind a good one that shows its form."""
    name = form if form != "auto" else find_forms([row])[0].form
    fit = choose_form([row, orjson.loads(FORMS[name].example)], name)
    with pytest.raises(RowError) as caught:
        RowReader(fit)(SourceRow(7, row, "birds.jsonl"))
    error = caught.value
    assert (error.line, error.file) == (7, "birds.jsonl") and error.kind in KINDS and len(error.excerpt) <= 120
    return error


def said(*texts: str) -> Conversation:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def turns(*roles: str) -> Conversation:
    return [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]


SYSTEM = {"role": "system", "content": "Be brief."}


def is_conversation(conversation: Conversation) -> bool:
    if len(conversation) == 1 and is_passage(conversation):
        due = ["text"]
    else:
        rest = conversation[1:] if conversation[0]["role"] == "system" else conversation
        due = ["system"] * (len(conversation) - len(rest)) + ["user", "assistant"] * (len(rest) // 2)
    texts = [turn["content"] for turn in conversation]
    return [turn["role"] for turn in conversation] == due != [] and all(t and t == t.strip() and t.encode() for t in texts)


# Each form, in the shapes that people have

OPENAI_PARTS = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo "}]
SHAPES: list[tuple[str, object, Conversation]] = [
    ("messages", {"messages": [SYSTEM, *said("Hello", "Hi")]}, [SYSTEM, *said("Hello", "Hi")]),
    ("messages", {"messages": [{"role": "developer", "content": "Be brief."}, *said("Hello", "Hi")]}, [SYSTEM, *said("Hello", "Hi")]),
    ("messages", {"messages": json.dumps(said(" Hello\n", "Hi"))}, said("Hello", "Hi")),
    ("messages", {"messages": [{"role": "User", "content": OPENAI_PARTS}, said("", "Hi")[1]]}, said("Hello", "Hi")),
    ("messages", said("a list", "without a name"), said("a list", "without a name")),
    ("messages", {"messages": [{**turn, "name": None, "tool_calls": None, "weight": 1} for turn in said("a", "b")]}, said("a", "b")),
    ("conversations", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, said("a", "b")),
    ("conversations", [{"from": "user", "value": "a"}, {"from": "chatgpt", "value": "b"}], said("a", "b")),
    ("conversations", {"conversations": said("a", "b"), "system": "Be brief."}, [SYSTEM, *said("a", "b")]),
    ("conversations", {"messages": [{"from": "human", "value": "a"}, {"from": "model", "value": "b"}]}, said("a", "b")),
    ("conversations", {"conversation": [{"from": "system", "value": "Be brief."}, *said("a", "b")]}, [SYSTEM, *said("a", "b")]),
    ("prompt-completion", {"prompt": " a ", "completion": "b"}, said("a", "b")),
    ("prompt-completion", {"Prompt": "a", "Response": "b", "system_prompt": "Be brief."}, [SYSTEM, *said("a", "b")]),
    ("prompt-completion", {"input": "a", "output": "b"}, said("a", "b")),
    ("prompt-completion", {"prompt": said("a"), "completion": [said("a", "b")[1]]}, said("a", "b")),
    ("prompt-completion", {"prompt": [SYSTEM, *said("a", "b", "c")], "completion": "d"}, [SYSTEM, *said("a", "b", "c", "d")]),
    ("instruction", {"instruction": "Sum up.", "input": "Long.", "output": "Short."}, said("Sum up.\n\nLong.", "Short.")),
    ("instruction", {"instruction": "Sum up.", "input": " ", "output": "Short.", "text": "both"}, said("Sum up.", "Short.")),
    ("instruction", {"instruction": "a", "context": None, "response": "b", "category": "c"}, said("a", "b")),
    ("question-answer", {"question": "Who?", "passage": "I.", "answer": "I"}, said("Who?\n\nI.", "I")),
    (
        "question-answer",
        {"question": "Who?", "context": "I.", "answers": {"text": ["I", "me"], "answer_start": [0, 0]}},
        said("Who?\n\nI.", "I"),
    ),
    ("question-answer", {"question": "Who?", "best_answer": "I", "correct_answers": ["I", "me"]}, said("Who?", "I")),
    ("question-answer", {"question": "Who?", "answer": ["I", "me"]}, said("Who?", "I")),
    ("question-answer", {"question": "Who?", "answer": {"value": "I", "aliases": ["me"]}}, said("Who?", "I")),
    ("question-answer", {"question": "Is it?", "answer": True}, said("Is it?", "yes")),
    ("question-answer", {"question": "Is it?", "answer": False}, said("Is it?", "no")),
    ("question-answer", {"question": "How many?", "answer": 12}, said("How many?", "12")),
    ("question-answer", {"question": "How many?", "answer": [0.5]}, said("How many?", "0.5")),
    ("question-answer", {"system_prompt": "Be brief.", "question": "a", "response": "b"}, [SYSTEM, *said("a", "b")]),
    ("summary", {"id": 1, "document": "Long.", "summary": "Short."}, said("Summarise:\n\nLong.", "Short.")),
    ("summary", {"article": "Long.", "highlights": "Short."}, said("Summarise:\n\nLong.", "Short.")),
    ("summary", {"text": "Long.", "summary": "Short."}, said("Summarise:\n\nLong.", "Short.")),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, said("a", "b")),
    ("preference", {"system": "Be brief.", "question": "a", "chosen": "b", "rejected": "c"}, [SYSTEM, *said("a", "b")]),
    ("preference", {"prompt": said("a"), "chosen": [said("", "b")[1]], "rejected": [said("", "c")[1]]}, said("a", "b")),
    ("preference", {"prompt": "a", "chosen": said("a", "b"), "rejected": said("a", "c")}, said("a", "b")),
    ("preference", {"chosen": said("a", "b"), "rejected": said("a", "c")}, said("a", "b")),
    ("preference", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, said("a", "b")),
    ("preference", {"chosen": "Human: a", "rejected": "c"}, [{"role": "text", "content": "Human: a"}]),
    ("prompt-completion", {"prompt": "[1]", "completion": json.dumps(said("a", "b"))}, said("[1]", json.dumps(said("a", "b")))),
    ("conversations", {"": "a column without a name", "conversations": [SYSTEM, *said("a", "b")]}, [SYSTEM, *said("a", "b")]),
    ("preference", {"chosen": "b", "rejected": "c"}, [{"role": "text", "content": "b"}]),
    (
        "preference",
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        said("a", "b"),
    ),
    ("conversation", {"conversation": ["a", "b", "c", "d"]}, said("a", "b", "c", "d")),
    ("conversation", ["How many?", 3], said("How many?", "3")),
    ("conversation", ["a", "b", "c"], said("a", "b")),
    ("conversation", {"dialog": '["a", "b"]'}, said("a", "b")),
    ("text", {"text": " A passage. ", "label": 0}, [{"role": "text", "content": "A passage."}]),
    ("text", {"Content": "A passage."}, [{"role": "text", "content": "A passage."}]),
]


@pytest.mark.parametrize(("form", "row", "conversation"), SHAPES)
def test_the_form_of_a_row_is_found_and_read(form: str, row: object, conversation: Conversation) -> None:
    fit = choose_form([row])
    assert (fit.form, fit.share) == (form, 1.0)
    assert read(row) == conversation and is_conversation(conversation)


def test_each_form_reads_its_own_example_by_itself() -> None:
    assert {form for form, _, _ in SHAPES} == set(FORMS)
    for name, form in FORMS.items():
        row = orjson.loads(form.example)
        fit = choose_form([row])
        assert (fit.form, fit.share) == (name, 1.0) and "\n" not in form.example
        assert set(fit.mapping) >= set(form.required) and is_conversation(read(row))
        assert all(role.help and role.aliases[0] == role.name for role in form.roles)


@given(words, words)
def test_a_prompt_and_its_completion_become_two_turns(prompt: str, completion: str) -> None:
    assert read({"prompt": prompt, "completion": completion, "id": 3}) == said(prompt.strip(), completion.strip())


@given(st.booleans(), st.integers(1, 5))
def test_messages_keep_their_order_with_or_without_a_system_turn(system: bool, exchanges: int) -> None:
    expected = turns(*(["system"] if system else []), *["user", "assistant"] * exchanges)
    assert read({"messages": expected}) == expected
    assert read({"messages": orjson.dumps(expected).decode()}) == expected


# What is wrong

HALF = "\ud83d"
FAULTS: list[tuple[str, object, str, str, str]] = [
    ("messages", {"messages": "not json"}, "not JSON", "messages", "this cell is not JSON"),
    ("messages", {"messages": str(said("a", "b"))}, "not JSON", "messages", "write double quotes"),
    ("messages", {"messages": []}, "empty", "messages", "this is a list without a turn"),
    ("messages", {"messages": " "}, "empty", "messages", "this is text without a turn"),
    ("messages", {"messages": None}, "missing", "messages", "this is null"),
    ("messages", {}, "missing", "messages", "this field is missing"),
    ("messages", {"messages": {"role": "user"}}, "not a list", "messages", "this is an object, not a list"),
    ("messages", {"messages": ["hello"]}, "not a list", "messages[0]", "this turn is text, not an object"),
    ("messages", {"messages": [{"role": "bot", "content": "x"}]}, "unknown role", "messages[0].role", "the role is 'bot'; use system,"),
    ("messages", {"messages": [{"role": ["user"], "content": "x"}]}, "unknown role", "messages[0].role", "the role is"),
    ("messages", {"messages": [{"content": "x"}]}, "missing", "messages[0].role", "this turn has no role"),
    ("messages", {"messages": [{"role": "user"}]}, "missing", "messages[0].content", "this field is missing"),
    ("messages", {"messages": [{"role": "user", "content": None}]}, "missing", "messages[0].content", "this is null, not text"),
    ("messages", {"messages": [{"role": "user", "content": 3}]}, "not text", "messages[0].content", "this is a number, not text"),
    ("messages", {"messages": [{"role": "user", "content": " \n"}]}, "empty", "messages[0].content", "this is empty"),
    ("messages", {"messages": [{"role": "user", "content": []}]}, "empty", "messages[0].content", "this is empty"),
    ("messages", {"messages": [{"role": "user", "content": HALF}]}, "half a character", "messages[0].content", "half of a character"),
    (
        "messages",
        {"messages": [{"role": "user", "content": [OPENAI_PARTS[0], {"type": "image_url", "image_url": {"url": "x"}}]}]},
        "not text",
        "messages[0].content[1]",
        "this part is of the type 'image_url', and only text can be trained",
    ),
    ("messages", {"messages": [{"role": "user", "content": ["x"]}]}, "not text", "messages[0].content[0]", "this part is text, and"),
    ("messages", {"messages": [{"role": "tool", "content": "x"}]}, "tool calls", "messages[0].role", "what a tool gave back"),
    (
        "messages",
        {"messages": [*said("a"), {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        "tool calls",
        "messages[1].tool_calls",
        "tool calls cannot be trained here",
    ),
    (
        "messages",
        {"messages": [*said("a"), {"role": "assistant", "content": "b", "weight": 0}]},
        "turn weight",
        "messages[1].weight",
        "an answer is trained wholly",
    ),
    ("messages", {"messages": turns("user")}, "no answer", "messages", "no assistant turn at its end"),
    ("messages", {"messages": turns("system")}, "no answer", "messages", "no assistant turn at its end"),
    ("messages", {"messages": turns("user", "assistant", "user")}, "no answer", "messages", "no assistant turn at its end"),
    ("messages", {"messages": turns("assistant")}, "turn order", "messages[0].role", "'assistant' stands where 'user' is due"),
    ("messages", {"messages": turns("user", "user", "assistant")}, "turn order", "messages[1].role", "'user' stands where 'assistant'"),
    (
        "messages",
        {"messages": turns("user", "assistant", "assistant")},
        "turn order",
        "messages[2].role",
        "'assistant' stands where 'user'",
    ),
    ("messages", {"messages": turns("user", "system", "assistant")}, "turn order", "messages[1].role", "move it to the beginning"),
    ("messages", {"messages": turns("system", "system", "user", "assistant")}, "turn order", "messages[1].role", "'system' stands where"),
    (
        "conversations",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]},
        "turn order",
        "conversations[1].from",
        "'user' stands where 'assistant' is due",
    ),
    ("conversations", {"conversations": [{"from": "observation", "value": "a"}]}, "tool calls", "conversations[0].from", "what a tool"),
    ("conversations", {"conversations": [{"from": "human"}]}, "missing", "conversations[0].value", "this field is missing"),
    ("prompt-completion", {"prompt": "p", "completion": ""}, "empty", "completion", "this is empty; write the text or delete the row"),
    ("prompt-completion", {"prompt": "p"}, "missing", "completion", "this field is missing; add it or delete the row"),
    ("prompt-completion", {"prompt": 3, "completion": "c"}, "not text", "prompt", "this is a number, not text; put the text in quotes"),
    ("prompt-completion", {"prompt": True, "completion": "c"}, "not text", "prompt", "this is true or false, not text"),
    ("prompt-completion", {"prompt": said("a", "b"), "completion": "c"}, "turn order", "completion", "'assistant' stands where 'user'"),
    ("prompt-completion", {"prompt": said("a"), "completion": said("b")}, "turn order", "completion[0].role", "'user' stands where"),
    ("instruction", {"instruction": "i", "output": None}, "missing", "output", "this is null, not text"),
    ("instruction", {"instruction": "i", "input": 5, "output": "o"}, "not text", "input", "this is a number, not text"),
    ("question-answer", {"question": "q", "answer": []}, "empty", "answer", "this is a list without an answer"),
    ("question-answer", {"question": "q", "answer": {"text": []}}, "empty", "answer.text", "this is a list without an answer"),
    ("question-answer", {"question": "q", "answer": {"a": 1}}, "not text", "answer", "this is an object without a text"),
    ("question-answer", {"question": "q", "answer": math.nan}, "not text", "answer", "this is a number, not text"),
    ("question-answer", {"question": "q", "answer": [None]}, "missing", "answer[0]", "this is null"),
    ("summary", {"document": "", "summary": "s"}, "empty", "document", "this is empty"),
    ("preference", {"prompt": None, "chosen": "b", "rejected": "c"}, "missing", "prompt", "this is null"),
    ("preference", {"chosen": said("a"), "rejected": "c"}, "no answer", "chosen", "no assistant turn at its end"),
    ("conversation", {"conversation": ["a"]}, "no answer", "conversation", "no assistant turn at its end"),
    ("conversation", {"conversation": ["a", {}]}, "not text", "conversation[1]", "this is an object, not text"),
    ("text", {"text": "\t"}, "empty", "text", "this is empty"),
    ("text", {"text": "a", "id": 1 << 70}, "extra value", "id", "this cannot be kept beside the row"),
    ("text", {"text": "a", "note": HALF}, "extra value", "note", "this cannot be kept beside the row"),
    ("text", {"text": "a", 5: "b"}, "extra value", "5", "the name of this column is a number, not text"),
    ("text", [1, 2], "not an object", "", "this row is a list, not an object with named fields; write it as {…}"),
    ("text", "hello", "not an object", "", "this row is text, not an object"),
    ("text", None, "not an object", "", "this row is null, not an object"),
]


@pytest.mark.parametrize(("form", "row", "kind", "field", "problem"), FAULTS)
def test_what_is_wrong_is_told_with_its_kind_its_field_and_its_mend(form: str, row: object, kind: str, field: str, problem: str) -> None:
    error = fault(row, form)
    assert (error.kind, error.field) == (kind, field)
    assert problem in f"{error.problem}; {error.fix}"


def test_each_kind_of_fault_occurs_and_says_what_it_means() -> None:
    assert {kind for _, _, kind, _, _ in FAULTS} == set(KINDS)
    assert all(meaning and "\n" not in meaning for meaning in KINDS.values())


def test_the_field_is_named_as_in_the_file() -> None:
    row = {"Frage": "q", "Antwort": ""}
    with pytest.raises(RowError, match=r"line 7, field 'Antwort': this is empty"):
        read(row, prompt="Frage", completion="Antwort")


@pytest.mark.parametrize(
    ("chosen", "kind"),
    [
        ("Human: a\n\nAssistant: \n\nHuman: b", "empty"),
        ("Human: a\n\nHuman: b", "turn order"),
        ("Human: a\n\nAssistant: b\n\nHuman: c", "no answer"),
    ],
)
def test_a_marked_text_is_held_to_the_same_rules(chosen: str, kind: str) -> None:
    with pytest.raises(RowError, match="line 7, field 'chosen'") as caught:
        read({"chosen": chosen, "rejected": "c"})
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb\x00c\x7f", "a�b�c�"),
        ("x" * 200, "x" * 119 + "…"),
        (["a", {"b": 1}], '["a",{"b":1}]'),
        (HALF, "�"),
        ([HALF], "['\\ud83d']"),
        (b"ab", "b'ab'"),
        ("left\u202eright", "left�right"),
    ],
)
def test_an_excerpt_is_one_line_of_what_can_be_shown(value: object, shown: str) -> None:
    assert excerpt(value) == shown


def test_an_error_shows_what_stands_there() -> None:
    assert fault({"messages": [{"role": "robot\n", "content": "x"}]}).excerpt == "robot�"
    assert fault({"messages": [{"role": "user", "content": {"a": 1}}]}).excerpt == '{"a":1}'
    assert fault({"messages": [{"role": "user", "content": "good " * 9 + HALF}]}).excerpt.endswith("good �")


# Which form


def forms(row: dict[str, Any]) -> list[str]:
    return [fit.form for fit in find_forms([row])]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"messages": said("a", "b"), "prompt": "a", "chosen": said("a", "b"), "rejected": said("a", "c")}, ["messages", "preference"]),
        ({"instruction": "a", "input": "b", "output": "c", "text": "d"}, ["instruction", "prompt-completion", "text"]),
        ({"question": "a", "answer": "b", "text": "c"}, ["question-answer", "prompt-completion", "text"]),
        ({"text": "a", "summary": "b"}, ["summary", "text"]),
        ({"prompt": "a", "response": "b", "chosen": "b", "rejected": "c"}, ["preference", "prompt-completion"]),
        ({"conversation": ["a", "b"]}, ["conversation"]),
        ({"prompt": "a", "label": 1}, []),
    ],
)
def test_of_several_forms_the_likeliest_is_first(row: dict[str, Any], found: list[str]) -> None:
    fits = forms(row)
    assert fits[: len(found)] == found and bool(fits) == bool(found)


def test_a_form_says_which_share_of_the_rows_it_reads() -> None:
    rows: list[Any] = [{"prompt": "p", "completion": "c"}] * 6 + [{"prompt": "p", "completion": ""}, {"prompt": "p"}, None, [1]]
    fit = choose_form(rows)
    assert fit == Fit("prompt-completion", {"prompt": "prompt", "completion": "completion"}, 0.6)
    many = rows[:1] * 1000 + [{}] * 1000
    assert choose_form(many).share == 1.0


def test_columns_that_fit_no_form_are_listed_beside_what_is_needed() -> None:
    with pytest.raises(InvalidInput) as caught:
        choose_form([{"colour": "red", "size": 1}])
    message = str(caught.value)
    assert "columns are colour, size" in message and "map a role to a column" in message and len(message) < 600
    assert all(" and ".join(form.required) in message for form in FORMS.values())
    with pytest.raises(InvalidInput, match="columns are question; it needs prompt and completion"):
        choose_form([{"question": "q"}], "prompt-completion")
    with pytest.raises(InvalidInput, match="no format 'alpaca'; choose auto, messages, conversations, prompt-completion"):
        choose_form([{"prompt": "p"}], "alpaca")
    wide = {f"column {i}": "x" * 100 for i in range(500)} | {"y" * 500: 1}
    with pytest.raises(InvalidInput, match=r"column 19, …; it needs"):
        choose_form([wide])


@pytest.mark.parametrize(("rows", "what"), [([[1]], "a list"), (["x", None], "text"), ([], "missing")])
def test_rows_that_have_no_columns_are_told(rows: list[object], what: str) -> None:
    with pytest.raises(InvalidInput, match=f"The first row is {what}, not an object with named fields; write each row as"):
        choose_form(rows)
    assert find_forms(rows) == []


def test_a_form_that_was_guessed_by_other_names_must_read_a_row() -> None:
    rows = [{"section": "x", "dialogue": "Doctor: Hello.\nPatient: Hi."}]
    with pytest.raises(
        InvalidInput, match=r"as conversations \(conversations=dialogue\) no row can be read: this cell is not JSON. Choose"
    ):
        choose_form(rows)
    assert choose_form(rows, mapping={"text": "dialogue"}).form == "text"
    assert choose_form([{"messages": "oops"}]) == Fit("messages", {"messages": "messages"}, 0.0)  # its own name: rows are told one by one


# Roles by hand


def test_a_mapping_reads_roles_from_other_columns() -> None:
    mapping = read_mapping(["prompt=question", "completion=the=answer"])
    assert mapping == {"prompt": "question", "completion": "the=answer"}
    row = {"question": "q", "the=answer": "a", "id": 1}
    assert choose_form([row], mapping=mapping).form == "prompt-completion"
    assert reader(row, **mapping)(SourceRow(1, row)) == (said("q", "a"), {"id": 1})


def test_a_mapped_column_wins_over_one_that_has_the_roles_own_name() -> None:
    row = {"prompt": "p", "question": "q", "completion": "c"}
    assert reader(row, prompt="question")(SourceRow(1, row)) == (said("q", "c"), {"prompt": "p"})
    row = {"instruction": "i", "input": "x", "output": "o"}
    assert reader(row, "instruction", input="")(SourceRow(1, row)) == (said("i", "o"), {"input": "x"})


@pytest.mark.parametrize("pair", ["prompt", "prompt=", "=question", "speaker=question"])
def test_a_mapping_of_another_shape_is_refused_with_the_roles(pair: str) -> None:
    with pytest.raises(InvalidInput, match="is not ROLE=COLUMN with a role among answer, chosen, completion, context, conversation, "):
        read_mapping([pair])


@pytest.mark.parametrize(
    ("form", "mapping", "message"),
    [
        ("auto", {"prompt": "colour"}, "mapping prompt=colour names no column of the file, which has a, b; choose one of them"),
        (
            "auto",
            {"prompt": "a", "completion": "a"},
            "column 'a' is mapped to prompt and to completion; give each role a column of its own",
        ),
        ("auto", {"prompt": "a", "answer": "b"}, r"No form has the role\(s\) prompt, answer together: messages has messages; "),
        ("text", {"prompt": "a"}, r"No form has the role\(s\) prompt together: text has text. Map the roles of one form"),
        ("auto", {"prompt": "a"}, "columns are a, b; it needs prompt and completion, or chosen and rejected. Rename"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_told(form: str, mapping: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        choose_form([{"a": "x", "b": "y"}], form, mapping)


def test_a_role_has_one_column() -> None:
    with pytest.raises(InvalidInput, match="The role prompt is mapped to 'a' and to 'b'; give it one column"):
        read_mapping(["prompt=a", "prompt=b"])


# What is adapted is told


def notices(rows: Sequence[object], form: str = "auto", system: str = "") -> str:
    read = RowReader(choose_form(rows, form), system)
    for row in rows:
        read(SourceRow(1, row))
    return " ".join(read.notices)


DEVELOPER = {"role": "developer", "content": "x"}
NOTICES: list[tuple[str, object, str]] = [
    ("developer", {"messages": [DEVELOPER, *said("a", "b")]}, "which are system turns here"),
    ("capitals", {"messages": [{"role": "USER", "content": "a"}, said("a", "b")[1]]}, "write roles with capitals"),
    ("parts", {"messages": [{"role": "user", "content": OPENAI_PARTS}, said("a", "b")[1]]}, "parts of text, which were joined"),
    ("json", {"messages": json.dumps(said("a", "b"))}, "as JSON in a cell"),
    ("bare", ["a", "b"], "are lists without a name"),
    ("unanswered", ["a", "b", "c"], "end with a line that nothing answers"),
    ("first answer", {"question": "q", "answer": ["a", "b"]}, "its first text is trained"),
    ("yes or no", {"question": "q", "answer": True}, "which was written as yes or no"),
    ("digits", {"question": "q", "answer": 3}, "which was written in digits"),
    ("rejected", {"prompt": "a", "chosen": "b", "rejected": "c"}, "the chosen one is trained"),
    ("own prompt", {"prompt": "a", "chosen": said("a", "b"), "rejected": "c"}, "the prompt inside their turns"),
    ("passage", {"chosen": "b", "rejected": "c"}, "trained whole, as a passage"),
    ("transcript", {"chosen": "Human: a\n\nAssistant: b", "rejected": "c"}, "the marks Human: and Assistant: in one text"),
    ("long number", {"prompt": "a", "completion": "b", "id": 1e20}, "a number beyond 64 bits beside the conversation"),
    ("system column", {"conversations": [SYSTEM, *said("a", "b")], "system": "s"}, "have no use for their column of system prompts"),
    ("system beside", {"messages": said("a", "b"), "system": "s"}, "a column system beside their messages, which is not used"),
]


@pytest.mark.parametrize(("what", "row", "sentence"), NOTICES)
def test_what_is_adapted_is_counted_in_a_sentence(what: str, row: object, sentence: str) -> None:
    told = notices([row, row, row])
    assert re.search(rf"\b3 row\(s\)[^.]*{sentence}", told) and TOLD[what].format(n="3") in told


def test_a_number_of_which_digits_are_lost_is_no_answer() -> None:
    """JSON's reader makes a float of a whole number beyond 64 bits."""
    for value, kept in ((2**63 - 1, True), (orjson.loads("12345678901234567890123"), False), (1e300, False)):
        row = {"question": "q", "answer": value}
        if kept:
            assert reader(row)(SourceRow(1, row))[0][1]["content"] == str(value)
        else:
            with pytest.raises(RowError, match="this is a number, not text; put the text in quotes"):
                RowReader(choose_form([{"question": "q", "answer": "a"}]))(SourceRow(1, row))


def test_each_notice_has_a_row_that_gives_it() -> None:
    assert {what for what, _, _ in NOTICES} | {"system added", "system own", "system passage"} == set(TOLD)
    assert notices([{"prompt": "a", "completion": "b", "id": 3}]) == ""


def test_keys_of_turns_that_are_left_out_are_named() -> None:
    turn = {"role": "user", "content": "a", "name": "Ann", "weight": 0}
    told = notices([{"messages": [turn, said("a", "b")[1]]}] * 2 + [{"messages": [{**turn, "weight": None}, said("a", "b")[1]]}])
    assert told == "Keys of turns other than the role and the content were left out: name (3 row(s)), weight (2 row(s))."
    assert notices([{"messages": [{"role": "text", "content": "a", "name": "Ann"}]}]).endswith("were left out: name (1 row(s)).")
    many = [{"messages": [{"role": "user", "content": "a", f"key {i}": 1}, said("a", "b")[1]]} for i in range(50)]
    assert notices(many).endswith("key 20 (1 row(s)), others (29 row(s)).")


def test_a_row_that_is_refused_counts_in_no_notice() -> None:
    bad, good = {"messages": [DEVELOPER, *said("a")]}, {"messages": said("a", "b")}
    read = reader(good)
    with pytest.raises(RowError):
        read(SourceRow(1, bad))
    assert read.notices == []


def test_a_system_prompt_for_all_is_put_before_those_that_have_none() -> None:
    rows = [{"messages": said("a", "b")}, {"messages": [SYSTEM, *said("a", "b")]}, {"messages": said("c", "d"), "id": 1}]
    read = RowReader(choose_form(rows), " Be kind. ")
    kind = {"role": "system", "content": "Be kind."}
    got = [read(SourceRow(1, row))[0] for row in rows]
    assert got == [[kind, *said("a", "b")], [SYSTEM, *said("a", "b")], [kind, *said("c", "d")]]
    assert read.notices == ["The system prompt was put before 2 row(s).", "1 row(s) have a system prompt of their own and keep it."]
    assert notices([{"text": "a"}], system="Be kind.") == "1 row(s) are passages, which take no system prompt."
    with pytest.raises(InvalidInput, match="system prompt holds half of a character"):
        RowReader(choose_form(rows), HALF)


# Extra fields, and the way back


@pytest.mark.parametrize(
    ("row", "extra"),
    [
        ({"messages": said("a", "b"), "id": 1, "tags": ["x"], "none": None}, {"id": 1, "tags": ["x"], "none": None}),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score": 0.5}, {"score": 0.5, "rejected": "c"}),
        ({"question": "q", "answers": {"text": ["a"]}, "id": "7"}, {"id": "7", "answers": {"text": ["a"]}}),
        ({"question": "q", "answer": "a", "text": "kept"}, {"text": "kept"}),
        ({"chosen": "b", "rejected": "c", "text": "d", "text_": "e"}, {"text_": "e", "rejected": "c", "text__": "d"}),
        ({"conversations": [SYSTEM, *said("a", "b")], "system": "s"}, {"system": "s"}),
    ],
)
def test_fields_without_a_role_are_kept_beside_the_conversation(row: dict[str, Any], extra: dict[str, Any]) -> None:
    assert reader(row)(SourceRow(1, row))[1] == extra


def test_a_column_that_is_named_like_the_conversations_own_is_kept_under_another_name() -> None:
    row = {"text": "a", "messages": "m"}
    read = reader(row, "text")
    conversation, extra = read(SourceRow(1, row))
    assert extra == {"messages_": "m"}
    assert read.notices == ["1 row(s) have a column 'messages' beside the conversation, which is kept as 'messages_'."]
    assert to_row(conversation, extra) == {"text": "a", "messages_": "m"}


contents = words.map(str.strip).filter(lambda text: bool(text.strip()))
exchanges = st.lists(st.tuples(contents, contents), min_size=1, max_size=3).map(
    lambda pairs: said(*[text for pair in pairs for text in pair])
)
with_system = st.tuples(contents, exchanges).map(lambda pair: [{"role": "system", "content": pair[0]}, *pair[1]])
passages = contents.map(lambda text: [{"role": "text", "content": text}])
names = st.text(max_size=6) | st.sampled_from(["text", "messages_", "system", "prompt", "completion", "Messages", "conversation", "role"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(exchanges | with_system | passages, st.dictionaries(names, values, max_size=4))
def test_a_row_that_is_written_and_read_again_is_the_same(conversation: Conversation, extra: dict[str, Any]) -> None:
    if is_passage(conversation):
        extra.pop("text", None)
    row = orjson.loads(orjson.dumps(to_row(conversation, extra)))
    form = "text" if is_passage(conversation) else "auto"
    assert reader(row, form)(SourceRow(1, row)) == (conversation, extra)


@given(st.sampled_from([row for _, row, _ in SHAPES]))
def test_what_any_form_gave_is_written_and_read_again(row: object) -> None:
    conversation, extra = reader(row)(SourceRow(1, row))
    again = to_row(conversation, extra)
    assert choose_form([again]).form == ("text" if is_passage(conversation) else "messages")
    assert reader(again)(SourceRow(1, again)) == (conversation, extra)


def rows_like(name: str) -> st.SearchStrategy[object]:
    """Rows with the columns of a form, and turns that are nearly right."""
    role = st.sampled_from(["user", "assistant", "system", "developer", "human", "gpt", "tool", "x"])
    turn = st.fixed_dictionaries({"role": role, "content": JSON | words}, optional={"weight": JSON, "from": role, "value": JSON | words})
    value = JSON | words | st.lists(turn | JSON, max_size=4)
    columns = {alias: value for role in FORMS[name].roles for alias in role.aliases[:2]}
    return st.fixed_dictionaries({}, optional=columns | {"extra": JSON}) | value


@given(st.sampled_from(sorted(FORMS)).flatmap(lambda name: st.tuples(st.just(name), rows_like(name))))
def test_anything_at_all_gives_a_conversation_or_a_row_error(sample: tuple[str, object]) -> None:
    name, row = sample
    example = orjson.loads(FORMS[name].example)
    fit = choose_form([example, row, {role.aliases[0]: None for role in FORMS[name].roles}], name)
    read = RowReader(fit, "Be kind.")
    try:
        conversation, extra = read(SourceRow(7, row, "a.jsonl"))
    except RowError as error:
        assert error.kind in KINDS and (error.line, error.file) == (7, "a.jsonl")
        assert error.problem and error.fix and error.excerpt.encode() is not None and str(error).encode()
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", error.excerpt)
    else:
        assert is_conversation(conversation) and orjson.dumps(to_row(conversation, extra))
        assert all(sentence.endswith(".") for sentence in read.notices)


def test_the_documentation_names_every_form_every_role_and_every_kind() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in FORMS)
    assert all(f"`{alias}`" in text for form in FORMS.values() for role in form.roles for alias in role.aliases)
    assert all(f"| {kind} | {meaning} |" in text for kind, meaning in KINDS.items())
