"""Names are labels: trimmed, visible, not too long, and never that of the base itself."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import InvalidInput
from studio.names import MAX_NAME, checked_name, looks


@pytest.mark.parametrize(
    "name", ["bird", "Angry bird", "鸟", "../../etc/passwd", "<b>bold</b>", "'; DROP TABLE adapter; --", "🐦", "a" * MAX_NAME]
)
def test_what_people_type_stays_as_it_is(name: str) -> None:
    assert checked_name("adapter", name) == name


def test_space_is_trimmed_and_letters_are_composed() -> None:
    assert checked_name("adapter", "  Angry \t bird\n") == "Angry bird"
    assert checked_name("adapter", "Cafe\u0301") == "Café"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "The dataset has no name; type one of 1 to 80 characters."),
        (" \t\n", "has no name"),
        ("a" * (MAX_NAME + 1), "has 81 characters; shorten it to at most 80"),
        ("a\x00b", "cannot be seen; type it again by hand"),
        ("bird\u200b", "cannot be seen"),
        ("evil\u202efdp", "cannot be seen"),
        ("half\ud83d", "cannot be seen"),
        ("base", "The name 'base' means the base model itself; choose another for the dataset."),
        (" BASE ", "means the base model itself"),
    ],
)
def test_what_is_no_name_is_refused_with_the_reason(name: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        checked_name("dataset", name)
    assert words in str(caught.value)


@given(st.text(max_size=120))
def test_a_checked_name_is_checked_for_good(name: str) -> None:
    try:
        clean = checked_name("dataset", name)
    except InvalidInput:
        return
    assert checked_name("dataset", clean) == clean
    assert 1 <= len(clean) <= MAX_NAME and unicodedata.is_normalized("NFC", clean) and clean == clean.strip()


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("wizard", "w\u0456zard", True),
        ("wizard", "\uff57izard", True),
        ("Wizard", "wizard", True),
        ("ΒΑSE", "base", True),
        ("wizard", "wizards", False),
        ("мир", "мор", False),
        ("鸟", "鳥", False),
    ],
)
def test_names_that_look_the_same_are_told(one: str, other: str, alike: bool) -> None:
    assert (looks(one) == looks(other)) is alike
