"""What is personal is found and what only looks so is left alone; a redacted text has nothing to find."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from studio.datasets.privacy import KINDS, find_personal, redact

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
FOUND = [
    ("e-mail", "jane.doe+x@example.com"),
    ("e-mail", "o_brien@mail.example.co.uk"),
    ("phone", "+1-555-123-4567"),
    ("phone", "+49 (0)30 1234567"),
    ("phone", "+33 6 12 34 56 78"),
    ("phone", "0044 20 7946 0958"),
    ("phone", "(415) 555-2671"),
    ("phone", "212-555-1234"),
    ("phone", "212.555.1234"),
    ("phone", "020 7946 0958"),
    ("phone", "030/1234567"),
    ("phone", "06 12 34 56 78"),
    ("phone", "07700 900123"),
    ("card", "4111 1111 1111 1111"),
    ("card", "5555555555554444"),
    ("card", "3782 822463 10005"),
    ("IBAN", "DE89 3704 0044 0532 0130 00"),
    ("IBAN", "GB82WEST12345698765432"),
    ("IP address", "91.198.174.192"),
    ("IP address", "2606:4700:4700::1111"),
    ("secret", "AKIA" + "IOSFODNN7EXAMPLE"),
    ("secret", "ghp_" + "a1B2" * 9),
    ("secret", "sk-proj-" + "abcDEF1234567890" * 2),
    ("secret", "sk-ant-api03-" + "abcDEF1234567890" * 2),
    ("secret", "hf_" + "aBcDeFgHiJ" * 3 + "kLmn"),
    ("secret", KEY),
    ("secret", JWT),
]
LEFT_ALONE = [
    "From 1990-1995 to 2024-01-15 at 12:30:00, or 01.02.2024 10:30, or 01-02-2024 10, or 05/06/2023 1200.",
    "1 000 000 000 people paid $1,234,567.89, 1.800.000.000 in all, an increase of +100 000 000 and +12 345 678.",
    "ISBN 978-3-16-148410-0, ISBN 0-306-40615-2, ISBN 0306 406 152",
    "order 4111111111111112, 1234567890123456, 4006381333931, 20240115123456, 12345678901234567890123",
    "pi is 3.14159265358979323846 and 0.1234 0.5678",
    "v10.20.30.40, version 11.22.33.44, section 1.2.3.4, 192.168.10.1, 10.0.0.1, 127.0.0.1, 999.10.10.10",
    "Boston 02139-4307; bits 0100 1011 0110; 01 02 03 04 05; 0 1 2 3 4 5 6 7 8 9; 12:34:56:78",
    "user@localhost, git@github.com:a/b.git, logo@2x.png, a @ b, x@y(z), @decorator",
    "std::vector<int>, sk-learn is task-oriented-and-really-very-long-indeed, hf_model_config_with_a_long_name_for_it",
    "call 555 of 1234, call 2024-01-15, 100-200-3000, 2024 1234 5678 9012, +1 for that, +5 +6 +7 +8 +9 +10",
    "DE00 3704 0044 0532 0130 00, GB82 is a code, AKIA is no key, and eyJ neither",
    "The PRIVATE KEY is kept apart; ghp_short, ghosts and highlights",
]
mixed = st.lists(st.sampled_from([text for _, text in FOUND] + LEFT_ALONE) | st.text("0159 +-.@:/()aAZ[]", max_size=12), max_size=6)


@pytest.mark.parametrize(("kind", "text"), FOUND)
def test_it_is_found_where_it_stands(kind: str, text: str) -> None:
    for before, after in (("", ""), ("Write to ", " today."), ("Here it is:\n", ", and more")):
        spans = find_personal(before + text + after)
        assert [(span.kind, (before + text + after)[span.start : span.end]) for span in spans] == [(kind, text)]
        assert redact(before + text + after) == f"{before}[{kind}]{after}"


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_only_looks_so_is_left_alone(text: str) -> None:
    assert find_personal(text) == [] and redact(text) == text


def test_a_number_is_a_telephone_number_where_the_text_says_so() -> None:
    assert find_personal("there were 555-1234 of them") == []
    assert redact("Call me at 555-1234 or tel.: 1234 5678.") == "Call me at [phone] or tel.: [phone]."


def test_a_number_behind_a_telephone_number_stays() -> None:
    assert redact("+44 7700 900123 2024") == "[phone] 2024"


def test_a_private_key_without_its_end_is_redacted_as_far_as_it_goes() -> None:
    assert redact("see -----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n(cut)") == "see [secret](cut)"


def test_every_kind_is_in_the_table() -> None:
    assert {kind for kind, _ in FOUND} == set(KINDS)


@settings(max_examples=300, deadline=None)
@given(mixed, st.sampled_from(["", " ", ", ", "\n"]))
@example(["a@b.org@c.org"], "")
@example(["4111 1111 1111 1111 4111 1111 1111 1111"], "")
def test_a_redacted_text_has_nothing_to_find(parts: list[str], between: str) -> None:
    text = between.join(parts)
    assert find_personal(redact(text)) == []
    spans = find_personal(text)
    assert all(left.end <= right.start for left, right in pairwise(spans))


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_can_be_looked_at(text: str) -> None:
    assert find_personal(redact(text)) == []
