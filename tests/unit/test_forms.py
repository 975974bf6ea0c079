"""Every form becomes one conversation; what does not fit is told with its field."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.datasets.forms import FORMS, Conversation, find_form, read_mapping, rename_columns
from studio.datasets.rows import RowError, SourceRow
from studio.errors import InvalidInput

words = st.text(min_size=1).filter(lambda text: text.strip())


def read(row: dict[str, Any], line: int = 7) -> Conversation:
    return find_form(list(row)).read(row, line)


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]


@given(words, words)
def test_a_prompt_and_its_completion_become_two_turns(prompt: str, completion: str) -> None:
    conversation = read({"prompt": prompt, "completion": completion, "id": 3})
    assert conversation == [{"role": "user", "content": prompt.strip()}, {"role": "assistant", "content": completion.strip()}]


def test_an_instruction_takes_its_input_along_where_there_is_one() -> None:
    assert read({"instruction": "Sum up.", "input": "Long.", "output": "Short."})[0]["content"] == "Sum up.\n\nLong."
    for nothing in (None, ""):
        assert read({"instruction": "Sum up.", "input": nothing, "output": "Short."})[0]["content"] == "Sum up."
    assert read({"instruction": "Sum up.", "output": "Short."})[1] == {"role": "assistant", "content": "Short."}


@given(st.booleans(), st.integers(1, 5))
def test_messages_keep_their_order_with_or_without_a_system_turn(system: bool, exchanges: int) -> None:
    expected = turns(*(["system"] if system else []), *["user", "assistant"] * exchanges)
    assert read({"messages": expected}) == expected
    assert read({"messages": orjson.dumps(expected).decode()}) == expected  # a cell of a CSV


def test_fields_that_are_not_the_forms_are_ignored() -> None:
    assert read({"messages": [{**turn, "name": "x", "tool_calls": None} for turn in turns("user", "assistant")]}) == turns(
        "user", "assistant"
    )


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("not json", "this cell is not JSON"),
        ([], "this is a list, or empty"),
        (None, "this is null, or empty"),
        ({"role": "user"}, "this is an object, or empty"),
        (["hello"], r"'messages\[0\]': this turn is str, not an object"),
        ([{"role": "bot", "content": "x"}], r"'messages\[0\].role': the role is 'bot'; use system, user, assistant"),
        ([{"content": "x"}], "the role is None"),
        ([{"role": ["user"], "content": "x"}], "the role is"),
        ([{"role": "user", "content": None}], r"'messages\[0\].content': this is null, not text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "this is a list, not text"),
        ([{"role": "user", "content": " \n"}], "this is empty"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "tool calls cannot be trained"),
        (turns("user"), "no assistant turn at its end"),
        (turns("system"), "no assistant turn at its end"),
        (turns("user", "assistant", "user"), "no assistant turn at its end"),
        (turns("assistant"), "'assistant' stands where 'user' is due"),
        (turns("user", "user", "assistant"), r"'messages\[1\].role': 'user' stands where 'assistant' is due"),
        (turns("user", "system", "assistant"), "'system' stands where 'assistant' is due"),
        (turns("system", "system", "user", "assistant"), r"messages\[1\].role': 'system' stands where 'user' is due"),
    ],
)
def test_messages_that_are_no_conversation_are_told_with_their_place(messages: object, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        read({"messages": messages})
    assert caught.value.line == 7 and "line 7, field 'messages" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "field", "words"),
    [
        ({"prompt": "p", "completion": ""}, "completion", "this is empty; write the text or delete the row"),
        ({"prompt": 3, "completion": "c"}, "prompt", "this is a number, not text; put the text in quotes"),
        ({"prompt": True, "completion": "c"}, "prompt", "this is true or false, not text"),
        ({"instruction": "i", "output": None}, "output", "this is null, not text"),
        ({"instruction": "i", "input": 5, "output": "o"}, "input", "this is a number, not text"),
    ],
)
def test_a_field_that_is_no_text_is_told_by_its_name(row: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        read(row)
    assert f"line 7, field {field!r}" in str(caught.value)


def test_a_field_that_a_later_row_lacks_is_told() -> None:
    with pytest.raises(RowError, match="line 9, field 'completion': this field is missing; add it or delete the row"):
        FORMS["prompt-completion"].read({"prompt": "p"}, 9)


def test_a_row_that_is_no_object_is_told() -> None:
    with pytest.raises(RowError, match="line 2: this row is a list, not an object with named fields"):
        rename_columns(SourceRow(2, ["p", "c"]), {})


def test_the_form_is_found_by_its_columns_and_conversations_come_first() -> None:
    assert find_form(["prompt", "completion", "messages"]).name == "messages"
    assert find_form(["prompt", "completion", "messages"], "prompt-completion").name == "prompt-completion"
    assert {find_form(list(form.required)).name for form in FORMS.values()} == set(FORMS)


def test_columns_that_fit_no_form_are_listed_beside_what_is_needed() -> None:
    with pytest.raises(InvalidInput) as caught:
        find_form(["question", "answer"])
    message = str(caught.value)
    assert "columns are question, answer" in message and "map a role to a column" in message
    assert all(field in message for form in FORMS.values() for field in form.required)
    with pytest.raises(InvalidInput, match="columns are question; it needs prompt and completion"):
        find_form(["question"], "prompt-completion")
    with pytest.raises(InvalidInput, match="no format 'alpaca'; choose auto, messages, prompt-completion, instruction"):
        find_form(["prompt"], "alpaca")


def test_a_mapping_reads_roles_from_other_columns() -> None:
    mapping = read_mapping(["prompt=question", "completion=the=answer"])
    row = rename_columns(SourceRow(1, {"question": "q", "the=answer": "a", "id": 1}), mapping)
    assert read(row) == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_a_mapped_column_wins_over_one_that_has_the_roles_own_name() -> None:
    mapping = read_mapping(["prompt=question"])
    for value in ({"question": "q", "prompt": "p", "completion": "c"}, {"prompt": "p", "question": "q", "completion": "c"}):
        assert rename_columns(SourceRow(1, value), mapping)["prompt"] == "q"


@pytest.mark.parametrize("pair", ["prompt", "prompt=", "=question", "speaker=question"])
def test_a_mapping_of_another_shape_is_refused_with_the_roles(pair: str) -> None:
    with pytest.raises(InvalidInput, match="is not ROLE=COLUMN with a role among completion, input, instruction, messages, output, prompt"):
        read_mapping([pair])
