"""A reply's text as its tokens come: whole characters, nothing of a stop text, and all of it in the end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.chat.speech import Speech
from tests.tiny import make_tokenizer

TOKENIZER = make_tokenizer()


class Slow:
    """A tokenizer that cannot stream."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return TOKENIZER.decode(ids, skip_special_tokens=skip_special_tokens)


def said(text: str, *stops: str, tokenizer: object = TOKENIZER) -> tuple[list[str], Speech]:
    speech = Speech(tokenizer, stops)
    pieces = []
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        pieces.append(speech.add(token))
        if speech.is_stopped:
            return pieces, speech
    return [*pieces, speech.rest()], speech


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
@pytest.mark.parametrize("tokenizer", [TOKENIZER, Slow()])
def test_the_pieces_are_the_text(tokenizer: object, text: str) -> None:
    if "\ufffd" in text or "<|" in text:
        return
    assert "".join(said(text, tokenizer=tokenizer)[0]) == text


def test_a_character_of_several_tokens_is_said_whole() -> None:
    pieces, _ = said("a 🦉 b")
    assert any("🦉" in piece for piece in pieces) and not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(("stops", "wanted"), [(("END",), "one two "), (("nothing",), "one two END three"), (("ree", "two"), "one ")])
def test_a_stop_text_ends_the_reply_and_is_not_said(stops: tuple[str, ...], wanted: str) -> None:
    pieces, speech = said("one two END three", *stops)
    assert "".join(pieces) == wanted and speech.is_stopped == (wanted != "one two END three")


def test_what_may_become_a_stop_text_waits_until_it_is_none() -> None:
    speech = Speech(TOKENIZER, ["stop here"])
    ids = TOKENIZER.encode("we stop there", add_special_tokens=False)
    sent = [speech.add(token) for token in ids]
    assert "stop" not in "".join(sent[:-1]) or "stop t" in "".join(sent)
    assert "".join(sent) + speech.rest() == "we stop there"
