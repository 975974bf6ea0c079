"""Trained are the assistant's words and the mark that ends its turn, and nothing else, whatever the template writes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from studio.datasets.forms import Conversation
from studio.datasets.rendering import Example, render, render_all
from studio.errors import InvalidInput
from tests.tiny import CHATML, make_tokenizer

END = "<|im_end|>"
TOKENIZER = make_tokenizer()
words = st.text(min_size=1, max_size=40).map(str.strip).filter(bool)

REWRITES = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and not loop.last %}…{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a model.<|im_end|>\n{% endif %}" + CHATML


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def talk(*contents: str, system: str = "") -> Conversation:
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def trained_text(example: Example, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> str:
    return tokenizer.decode([t for t, trained in zip(example.token_ids, example.trained, strict=True) if trained])


def whole_text(example: Example) -> str:
    return TOKENIZER.decode(example.token_ids)


def test_only_the_assistants_words_and_its_end_mark_are_trained() -> None:
    conversation = talk("Hello there", "Good day!", "Who are you?", "The assistant.\nA user of words.", system="You are polite.")
    example = render(TOKENIZER, conversation)
    assert trained_text(example) == f"Good day!{END}The assistant.\nA user of words.{END}"
    assert whole_text(example) == TOKENIZER.apply_chat_template(conversation, tokenize=False)
    assert len(example.token_ids) == len(example.trained)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=3), st.just("") | words)
def test_any_conversation_trains_exactly_the_answers(exchanges: list[tuple[str, str]], system: str) -> None:
    conversation = talk(*(text for exchange in exchanges for text in exchange), system=system)
    example = render(TOKENIZER, conversation)
    assert trained_text(example) == "".join(answer + END for _, answer in exchanges)
    assert whole_text(example) == TOKENIZER.apply_chat_template(conversation, tokenize=False)


def test_the_same_words_of_the_user_are_not_trained() -> None:
    example = render(TOKENIZER, talk("yes", "yes", "yes", "yes"))
    assert trained_text(example) == f"yes{END}yes{END}"
    assert example.trained.count(True) < example.trained.count(False)


def test_a_system_turn_that_the_template_adds_is_not_trained() -> None:
    tokenizer = with_template(WITH_DEFAULT_SYSTEM)
    example = render(tokenizer, talk("Hello", "Good day!"))
    assert "You are a model." in tokenizer.decode(example.token_ids)
    assert trained_text(example, tokenizer) == f"Good day!{END}"


def test_a_template_that_rewrites_earlier_turns_is_refused_for_several_exchanges_alone() -> None:
    tokenizer = with_template(REWRITES)
    with pytest.raises(InvalidInput, match="rewrites earlier turns; train it on rows of a single exchange"):
        render(tokenizer, talk("Hello", "Good day!", "Who?", "Me."))
    assert trained_text(render(tokenizer, talk("Hello", "Good day!"))) == f"Good day!{END}"


def test_a_base_without_a_template_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no chat template"):
        render(with_template(None), talk("Hello", "Good day!"))


def test_rows_that_fit_are_left_alone() -> None:
    conversation = talk("Hello", "Good day!")
    example = render(TOKENIZER, conversation)
    for over_length in ("truncate", "drop"):
        rendered = render_all(TOKENIZER, [conversation], len(example.token_ids), over_length)
        assert (rendered.examples, rendered.truncated, rendered.dropped, rendered.notices) == ([example], 0, 0, [])


def test_longer_rows_are_cut_or_dropped_as_chosen_and_told() -> None:
    short, long = talk("Hi", "Yes"), talk("Hi", "a long answer " * 40)
    limit = 30
    assert len(render(TOKENIZER, short).token_ids) <= limit < len(render(TOKENIZER, long).token_ids)
    cut = render_all(TOKENIZER, [short, long, short], limit, "truncate")
    assert [len(e.token_ids) for e in cut.examples][1] == limit and (cut.truncated, cut.dropped) == (1, 0)
    assert cut.examples[1].token_ids == render(TOKENIZER, long).token_ids[:limit]
    assert END not in trained_text(cut.examples[1]) and trained_text(cut.examples[1]).startswith("a long answer")
    assert cut.notices == ["1 row(s) are longer than max_length and were cut off at it."]
    dropped = render_all(TOKENIZER, [short, long, short], limit, "drop")
    assert dropped.examples == [render(TOKENIZER, short)] * 2 and (dropped.truncated, dropped.dropped) == (0, 1)
    assert dropped.notices == ["1 row(s) do not fit max_length and were left out."]


@pytest.mark.parametrize("over_length", ["truncate", "drop"])
def test_a_row_whose_answer_lies_behind_the_limit_is_dropped(over_length: str) -> None:
    behind = talk("a long question " * 40, "Yes")
    rendered = render_all(TOKENIZER, [behind], 30, over_length)  # type: ignore[arg-type]
    assert (rendered.examples, rendered.truncated, rendered.dropped) == ([], 0, 1)


def test_a_cut_at_each_length_keeps_a_row_only_where_a_trained_token_is_left() -> None:
    conversation = talk("Hello there", "Good day!")
    whole = render(TOKENIZER, conversation)
    first = whole.trained.index(True)
    for limit in range(1, len(whole.token_ids)):
        rendered = render_all(TOKENIZER, [conversation], limit, "truncate")
        assert len(rendered.examples) == (1 if limit > first else 0)
