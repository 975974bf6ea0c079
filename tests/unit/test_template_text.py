"""The text of a conversation is that of transformers' own call, errors included, with and without its compiled templates."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from studio.bases.template_text import Turns, text_writer
from tests.templates import FAMILIES, tokenizer_of

marks = st.sampled_from(sorted({token for family in FAMILIES.values() for token in family.special}))
words = st.lists(st.text(max_size=12) | marks | st.sampled_from(["<think>", "</think>", "\n\n", " ", "{{ x }}"]), max_size=5).map("".join)
turns = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": words})
COMPILED = "_compile_jinja_template"


def written(write: Any, conversation: Turns, prompt: bool) -> tuple[str, str]:
    """The text, or the error as text; and that the turns are as they were."""
    before = [dict(turn) for turn in conversation]
    try:
        said = ("text", write(conversation, prompt))
    except Exception as error:
        said = (type(error).__name__, str(error))
    assert conversation == before
    return said


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(conversation=st.lists(turns, max_size=5), prompt=st.booleans())
@example(conversation=[], prompt=True)
@example(conversation=[{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], prompt=False)
@example(conversation=[{"role": "assistant", "content": " <think>a</think> b "}], prompt=False)
def test_the_text_is_that_of_transformers(name: str, conversation: Turns, prompt: bool) -> None:
    tokenizer = tokenizer_of(name)

    def own(conversation: Turns, prompt: bool) -> str:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt))

    assert written(text_writer(tokenizer), conversation, prompt) == written(own, conversation, prompt)


def test_transformers_still_has_the_name_that_makes_it_fast() -> None:
    assert callable(getattr(chat_template_utils, COMPILED, None)), "text_writer has gone back to the slow way; find the new name"


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_the_text_is_the_same_where_transformers_has_not_that_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of(name)
    conversation = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    fast = text_writer(tokenizer)(conversation, False)
    compiled = getattr(chat_template_utils, COMPILED)
    monkeypatch.delattr(chat_template_utils, COMPILED)
    slow = text_writer(tokenizer)
    monkeypatch.setattr(chat_template_utils, COMPILED, compiled, raising=False)  # transformers' own call needs it still
    called = []
    apply = tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *given, **options: called.append(1) or apply(*given, **options))
    assert slow(conversation, False) == fast and called


def test_a_template_that_cannot_be_compiled_is_told_when_it_is_asked() -> None:
    tokenizer = tokenizer_of("qwen2.5")
    broken = type("Broken", (), {"get_chat_template": lambda self: "{% if %}", "special_tokens_map": tokenizer.special_tokens_map})()
    write = text_writer(broken)
    assert written(write, [{"role": "user", "content": "x"}], False)[0] == "TemplateSyntaxError"
