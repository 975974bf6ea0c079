"""Whatever a base's template looks like: its very tokens, and trained exactly the answers with their end marks."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example as given_example
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from studio.datasets import rendering
from studio.datasets.forms import Conversation
from studio.datasets.pieces import pieces
from studio.datasets.rendering import Example, Unrenderable, prompt_ids, render, render_all, render_many
from studio.errors import InvalidInput
from tests.templates import CHATML_TOKENS, FAMILIES, tokenizer_of
from tests.tiny import CHATML

WITH_SYSTEM = [name for name, family in FAMILIES.items() if family.system]
EXCHANGES = ["Hello there", "Good day!\n\nHow are you?", "Fine. 🎉 Who are you?", "The assistant — naïve,\n  but kind. 😀"]
plain = st.text(min_size=1, max_size=30).map(str.strip).filter(bool)
marks = st.sampled_from(sorted({token for family in FAMILIES.values() for token in family.special}))
# Words between marks, roles and white space: what could be taken for the end of a turn or the start of another.
tricky = st.lists(st.one_of(plain, marks, st.sampled_from(["assistant\n", "\n\n", " ", "user"])), min_size=1, max_size=5).map("".join)


def talk(*contents: str, system: str | None = None) -> Conversation:
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def expected(name: str, answers: list[str]) -> str:
    family = FAMILIES[name]
    middle = family.end if family.middle_end is None else family.middle_end
    ends = [middle] * (len(answers) - 1) + [family.end]
    return "".join((answer.strip() if family.trims else answer) + end for answer, end in zip(answers, ends, strict=True))


def trained_text(tokenizer: Any, example: Example) -> str:
    """The characters of the trained tokens, from the text itself: decoding drops a space at the start."""
    return "".join(piece.text for piece in pieces(tokenizer, example, 10**6) if piece.trained)


def oracle(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> list[int]:
    return list(tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False))


def same_words(found: str, wanted: str) -> bool:
    """Equal but for a space that SentencePiece joins to a word: it stands before the first word of an answer."""
    return found == wanted or found.replace(" ", "") == wanted.replace(" ", "")


@pytest.mark.parametrize("turns", [2, 4])
@pytest.mark.parametrize(("name", "system"), [(name, None) for name in FAMILIES] + [(name, "You are polite.") for name in WITH_SYSTEM])
def test_the_tokens_are_the_templates_and_the_answers_are_trained(name: str, turns: int, system: str | None) -> None:
    tokenizer = tokenizer_of(name)
    conversation = talk(*EXCHANGES[:turns], system=system)
    example = render(tokenizer, conversation)
    assert example.token_ids == oracle(tokenizer, conversation)
    assert same_words(trained_text(tokenizer, example), expected(name, EXCHANGES[1:turns:2]))
    assert "".join(piece.text for piece in pieces(tokenizer, example, 9)) == tokenizer.apply_chat_template(conversation, tokenize=False)
    assert list(render_many(tokenizer, [conversation] * 3)) == [example] * 3


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=30, deadline=None)
@given(contents=st.lists(st.tuples(tricky, tricky), min_size=1, max_size=3), system=st.none() | tricky)
@given_example(contents=[("yes", "yes"), ("yes", "yes")], system="yes")
@given_example(contents=[("\n\n", "0"), ("\n\n", "0")], system=None)
@given_example(contents=[("<|im_end|>\n<|im_start|>assistant\nno", "a<|im_end|>b"), ("[/INST] no</s>", "<end_of_turn>")], system="")
@given_example(contents=[("x", "\n\nanswer "), ("\n", " \nanswer\n")], system="  ")
def test_nothing_in_a_turn_moves_the_mask(name: str, contents: list[tuple[str, str]], system: str | None) -> None:
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    conversation = talk(*(text for exchange in contents for text in exchange), system=system if family.system else None)
    example = render(tokenizer, conversation)
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    assert "".join(piece.text for piece in pieces(tokenizer, example, 9)) == text
    wanted = expected(name, [answer for _, answer in contents])
    assert "".join(trained_text(tokenizer, example).split()) == "".join(wanted.split())
    assert list(render_many(tokenizer, [conversation])) == [example]
    if not any(token in turn["content"] for token in family.special for turn in conversation):
        assert example.token_ids == oracle(tokenizer, conversation)
    # No more special tokens than the template itself writes around harmless words.
    harmless = [{**turn, "content": "x" if turn["content"].strip() else turn["content"]} for turn in conversation]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    assert [t for t in example.token_ids if t in special] == [t for t in oracle(tokenizer, harmless) if t in special]


@pytest.mark.parametrize("name", ["qwen2.5", "gemma3", "mistral3", "phi3"])
def test_a_mark_in_the_words_becomes_the_tokens_of_its_characters(name: str) -> None:
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    mark = family.special[1]
    example = render(tokenizer, talk(f"say {mark} twice", f"Well: {mark} and {mark}."))
    end = tokenizer.convert_tokens_to_ids(mark)
    assert example.token_ids.count(end) == oracle(tokenizer, talk("say", "Well")).count(end)
    assert oracle(tokenizer, talk(f"say {mark}", "Well")).count(end) > oracle(tokenizer, talk("say", "Well")).count(end)
    assert same_words(trained_text(tokenizer, example), expected(name, [f"Well: {mark} and {mark}."]))
    prompt = prompt_ids(tokenizer, talk(f"say {mark} twice"))
    assert prompt == example.token_ids[: len(prompt)]


def test_qwen3_trains_a_thought_and_never_the_empty_one_that_the_template_adds() -> None:
    tokenizer = tokenizer_of("qwen3")
    example = render(tokenizer, talk("Hi", "Hello"))
    assert "<think>\n\n</think>\n\nHello" in example.text and trained_text(tokenizer, example) == "Hello<|im_end|>"
    thought = "<think>\nThey greet.\n</think>\n\nHello"
    example = render(tokenizer, talk("Hi", thought, "And?", thought))
    assert example.token_ids == oracle(tokenizer, talk("Hi", thought, "And?", thought))
    assert trained_text(tokenizer, example) == f"Hello<|im_end|>{thought}<|im_end|>"
    example = render(tokenizer, talk("Hi", "<think>They greet.</think>Hello"))
    assert trained_text(tokenizer, example) == f"{thought}<|im_end|>"
    example = render(tokenizer, talk("Hi", "<think>\n\n</think>\n\nHello"))
    assert trained_text(tokenizer, example) == "Hello<|im_end|>"


@pytest.mark.parametrize("name", ["qwen2.5", "mistral7"])
@pytest.mark.parametrize(
    "answer", ["<think>\nThey greet.\n</think>\n\nHello", "<think>\n\n</think>\n\nHello", "a</think>b<think>c</think>d"]
)
def test_a_template_that_knows_no_thoughts_trains_them_as_words(name: str, answer: str) -> None:
    tokenizer = tokenizer_of(name)
    assert trained_text(tokenizer, render(tokenizer, talk("Hi", answer, "And?", answer))) == expected(name, [answer, answer])


def test_a_template_that_looks_into_the_users_turns() -> None:
    tokenizer = tokenizer_of("qwen3")
    conversation = talk("Hi", "<think>\nA\n</think>\n\nB", "<tool_response>1</tool_response>", "<think>\nC\n</think>\n\nD")
    example = render(tokenizer, conversation)
    assert example.token_ids == oracle(tokenizer, conversation)
    assert trained_text(tokenizer, example) == "<think>\nA\n</think>\n\nB<|im_end|><think>\nC\n</think>\n\nD<|im_end|>"


def with_template(template: str, name: str = "qwen2.5") -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(name)._tokenizer, eos_token=FAMILIES[name].eos)
    tokenizer.chat_template = template
    return tokenizer


def test_the_marks_of_a_template_give_the_mask_of_its_twin_and_of_transformers() -> None:
    marked, twin = tokenizer_of("marked"), with_template(CHATML)
    for conversation in (talk(*EXCHANGES), talk(*EXCHANGES[:2], system="Be polite."), talk("yes", "yes", "yes", "yes")):
        example = render(marked, conversation)
        assert example == render(twin, conversation)
        theirs = marked.apply_chat_template(conversation, return_assistant_tokens_mask=True, return_dict=True, tokenize=True)
        assert example.trained == [bool(one) for one in theirs["assistant_masks"]]


def test_marks_are_believed_where_they_leave_something_out() -> None:
    only_last = CHATML.replace(
        "{{ message['content'] }}",
        "{% if loop.last %}{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}",
    )
    tokenizer = with_template(only_last)
    assert trained_text(tokenizer, render(tokenizer, talk(*EXCHANGES))) == EXCHANGES[3] + "<|im_end|>"


def test_a_mask_does_not_end_early_where_offsets_leave_out_white_space() -> None:
    tokenizer = tokenizer_of("llama3")
    example = render(tokenizer, talk("Hi", "One.\n\n\n\nTwo\t\t\tthree   .", "And?", "\u00a0é\u2003🎉"))
    assert trained_text(tokenizer, example) == "One.\n\n\n\nTwo\t\t\tthree   .<|eot_id|>é\u2003🎉<|eot_id|>"


def test_composed_characters_stay_in_their_answers() -> None:
    tokenizer = tokenizer_of("qwen3")
    conversation = talk("e\u0301e\u0301", "cafe\u0301", "e\u0301", "e\u0301te\u0301")
    example = render(tokenizer, conversation)
    assert example.token_ids == oracle(tokenizer, conversation)
    assert trained_text(tokenizer, example) == "cafe\u0301<|im_end|>e\u0301te\u0301<|im_end|>"
    decoded = tokenizer.decode([t for t, trained in zip(example.token_ids, example.trained, strict=True) if trained])
    assert decoded == "café<|im_end|>été<|im_end|>"


def test_a_template_that_writes_something_else_from_some_row_on_as_a_date_does_at_midnight() -> None:
    tokenizer = with_template("{{ pad_token }}\n" + CHATML)
    conversation = talk(*EXCHANGES)

    def rows() -> Iterator[Conversation]:
        for day in ("<|endoftext|>", "<|im_start|>"):
            tokenizer.pad_token = day
            yield from [conversation] * 3

    examples = list(render_many(tokenizer, rows()))
    assert [example.token_ids[0] for example in examples] == [2] * 3 + [0] * 3
    assert all(trained_text(tokenizer, example) == expected("qwen2.5", EXCHANGES[1::2]) for example in examples)


def test_more_rows_than_are_tokenized_at_once_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("smollm2")
    conversations = [talk(f"What is {i}?", f"It is {i}." if i % 3 else f"{i} <|im_end|>") for i in range(40)]
    conversations[7] = [{"role": "text", "content": "A passage among chats."}]
    wanted = [render(tokenizer, conversation) for conversation in conversations]
    for name, limit in (("CHUNK_ROWS", 7), ("CHUNK_CHARACTERS", 900)):
        monkeypatch.setattr(rendering, name, limit)
        assert list(render_many(tokenizer, iter(conversations))) == wanted


def test_a_template_that_changes_the_words_trains_what_it_writes() -> None:
    tokenizer = with_template(CHATML.replace("{{ message['content'] }}", "{{ message['content'] | upper }}"))
    assert trained_text(tokenizer, render(tokenizer, talk("Hi", "Hello"))) == "HELLO<|im_end|>"


@pytest.mark.parametrize(
    ("name", "conversation", "reason"),
    [
        ("llama2", talk("Hi", "Hello", system="Be polite."), "System role not supported"),
        ("gemma3", [*talk("Hi"), *talk("Hi", "Hello")], "roles must alternate user/assistant/user/assistant"),
    ],
)
def test_a_refusal_of_the_template_is_told_with_its_reason_and_row(name: str, conversation: Conversation, reason: str) -> None:
    tokenizer = tokenizer_of(name)
    with pytest.raises(Unrenderable, match=reason):
        render(tokenizer, conversation)
    with pytest.raises(Unrenderable, match=f"Row 3 of the dataset cannot be trained: the chat template .*{reason}"):
        render_all(tokenizer, [talk("Hi", "Hello")] * 2 + [conversation], 100, "drop")
    rows = render_many(tokenizer, iter([talk("Hi", "Hello")] * 2 + [conversation]))
    assert next(rows) == next(rows) == render(tokenizer, talk("Hi", "Hello"))
    with pytest.raises(Unrenderable):
        next(rows)


def test_a_template_that_fails_on_a_row_is_no_crash() -> None:
    tokenizer = with_template("{{ messages[7]['content'] + 1 }}")
    with pytest.raises(Unrenderable, match="change its turns or choose another base"):
        render(tokenizer, talk("Hi", "Hello"))


def test_a_template_without_the_answer_is_refused() -> None:
    with pytest.raises(Unrenderable, match=r"changes this answer|rewrites earlier turns"):
        render(with_template("{% for m in messages %}{{ loop.length }}{{ m['role'] }}{% endfor %}"), talk("Hi", "Hello"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_passage_is_trained_whole_and_needs_no_template(name: str) -> None:
    tokenizer = with_template("", name)
    text = "  Once upon a time — 🎉\n\nthe end. "
    [example] = render_many(tokenizer, [[{"role": "text", "content": text}]])
    assert example.token_ids == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert all(example.trained) and example.prompt == ""
    shown = pieces(tokenizer, render(tokenizer, [{"role": "text", "content": text}]), 10**6)
    assert "".join(piece.text for piece in shown) == text + tokenizer.eos_token
    assert all(piece.trained for piece in shown[1:])
    if name not in ("llama2", "phi3"):  # their first token is a space that is not in the text; any other is never predicted
        assert not shown[0].trained


def test_a_passage_gets_the_beginning_that_its_tokenizer_gives_and_its_own_ends_once() -> None:
    from tokenizers import processors

    backend = type(tokenizer_of("mistral7")._tokenizer).from_str(tokenizer_of("mistral7")._tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    for text in ("A day.", "<s>A day.</s>"):
        example = render(tokenizer, [{"role": "text", "content": text}])
        assert tokenizer.decode(example.token_ids) == "<s>A day.</s>" == "".join(p.text for p in pieces(tokenizer, example, 99))
        assert example.trained == [True] * len(example.token_ids)


def test_pieces_say_what_is_trained_cut_and_special() -> None:
    tokenizer = tokenizer_of("qwen2.5")
    example = render(tokenizer, talk("Hi", "Party 🎉!"))
    limit = len(example.token_ids) - 3
    shown = pieces(tokenizer, example, limit)
    assert {piece.text for piece in shown if piece.special} == set(CHATML_TOKENS[:2])
    assert "".join(piece.text for piece in shown if piece.cut).endswith("<|im_end|>\n")
    assert not [piece for piece in shown if piece.cut and piece.trained]
    assert [piece.text for piece in shown if "🎉" in piece.text] in ([" 🎉"], ["🎉"])
    assert sum(any(byte > 127 for byte in piece.text.encode()) for piece in shown) == 1
    assert "�" not in "".join(piece.text for piece in shown)


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_of_tokens_alone_are_their_decoding(name: str) -> None:
    tokenizer = tokenizer_of(name)
    [example] = render_many(tokenizer, [talk(*EXCHANGES)])
    shown = pieces(tokenizer, example, 10**6)
    assert "".join(piece.text for piece in shown) == tokenizer.decode(example.token_ids)
    assert sum(piece.special for piece in shown) == sum(t in tokenizer.added_tokens_decoder for t in example.token_ids)


def test_a_tokenizer_that_knows_no_places_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InvalidInput, match=r"choose a base that has a tokenizer\.json"):
        render(Slow(), talk("Hi", "Hello"))
