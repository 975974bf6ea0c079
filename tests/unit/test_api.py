"""Parts of the HTTP API alone: what tokens stand for, what the page says of keys, and what errors become."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from storage.records import ApiKeyRecord
from studio.api.errors import refusal
from studio.chat.tokens import TokenTexts
from studio.errors import BaseUnavailable, ContextTooLong, DatabaseUnavailable, IncompatibleAdapter, InvalidInput, NotFound, StudioError
from studio.ui.show_api import how, key_list
from tests.tiny import make_tokenizer

EVIL = '<img src=x onerror="alert(1)">&'
KEY = ApiKeyRecord("k1", EVIL, "s" * 64, "sk-studio-ab<d", 30, 1000.0)
SAID = "Über die Brücke 🐦 läuft\n\tein kleiner Hund — 鳥!"


def with_byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama's: ▁ for a space, and <0xE9> for a byte of what is not in the vocabulary."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁Hund", *"BHabdefiklnrtu"]
    bpe = models.BPE({word: number for number, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(bpe)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("make", [make_tokenizer, with_byte_fallback])
def test_the_bytes_of_tokens_make_up_the_text(make: Any) -> None:
    tokenizer = make()
    texts = TokenTexts(tokenizer)
    said = SAID if make is make_tokenizer else SAID.replace(" ", "▁")
    octets: list[int] = []
    for token_id in tokenizer(said, add_special_tokens=False)["input_ids"]:
        text, known = texts.of(token_id)
        assert known is not None and ("\ufffd" in text or text.encode() == bytes(known))
        assert texts.of(token_id) == (text, known)
        octets += known
    assert bytes(octets).decode() == SAID


def test_a_word_keeps_its_space() -> None:
    tokenizer = with_byte_fallback()
    assert TokenTexts(tokenizer).of(tokenizer.convert_tokens_to_ids("▁Hund")) == (" Hund", list(b" Hund"))


def test_half_a_character_of_an_unknown_kind_has_no_bytes() -> None:
    odd: Any = SimpleNamespace(decode=lambda *_, **__: "\ufffd", convert_ids_to_tokens=lambda _: "鳥")
    assert TokenTexts(odd).of(3) == ("\ufffd", None)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextTooLong("x"), 400, "context_length_exceeded"),
        (InvalidInput("x"), 400, None),
        (IncompatibleAdapter("x"), 400, "adapter_of_another_base"),
        (NotFound("x"), 404, "model_not_found"),
        (BaseUnavailable("x"), 503, "base_unavailable"),
        (DatabaseUnavailable("x"), 503, "database_unavailable"),
        (StudioError("x"), 500, "server_error"),
    ],
)
def test_every_error_of_the_studio_has_a_status(error: StudioError, status: int, code: str | None) -> None:
    told = refusal(error)
    assert (told.status, told.response.status_code) == (status, status)
    assert told.body["error"]["code"] == code and told.body["error"]["message"] == "x"  # type: ignore[index]
    assert ("retry-after" in told.response.headers) == (status == 503)


def test_keys_in_the_page_are_escaped_and_revoked_ones_counted() -> None:
    shown = key_list([KEY, replace(KEY, id="k2", revoked_at=2.0)], now=1010.0)
    assert EVIL not in shown and "&lt;img" in shown and "ab&lt;d…" in shown
    assert shown.count("<li") == 1 and "30 requests a minute" in shown and "not used yet" in shown and "1 revoked" in shown
    assert 'data-action="revoke" data-id="k1"' in shown and "s" * 64 not in shown
    assert key_list([]) == "" and "requests a minute" not in key_list([replace(KEY, per_minute=0)])


def test_the_line_to_try_names_a_key_where_one_is_needed() -> None:
    assert "Authorization" not in how("http://127.0.0.1:7860", False, True)
    assert "Bearer $STUDIO_KEY" in how("http://studio.lan", True, False) and "python -m studio key add" in how(
        "http://studio.lan", True, False
    )
    assert "<b>" not in how("http://<b>", True, True)
