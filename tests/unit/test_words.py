"""Words of what people typed: the same for what is stored and what is asked, and never an operator."""

import pytest

from storage.words import LONGEST, MOST_WORDS, facet, folded, postgres_query, sqlite_query, value_of, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Angry bird", ["angry", "bird"]),
        ("Größe ÄRGER Straße", ["grosse", "arger", "strasse"]),
        ("owner/name_v2-final.zip", ["owner", "name", "v2", "final", "zip"]),
        ('"wizard" AND NOT (pirate*) ^near:', ["wizard", "and", "not", "pirate", "near"]),
        ("鳥です bird", ["鳥", "て", "す", "bird"]),
        ("a🐦b ☠️", ["a", "🐦", "b", "☠"]),
        ("ﬁne ①", ["fine", "1"]),
        ("one one ONE", ["one"]),
        ("\\0 \\ud800 \\u202e - * § '", []),
        ("", []),
    ],
)
def test_a_text_is_its_words(text: str, words: list[str]) -> None:
    assert words_of(text.replace("\\0", "\0").replace("\\ud800", "\ud800").replace("\\u202e", "\u202e")) == words


def test_words_and_their_number_are_bounded() -> None:
    assert words_of("x" * 10_000) == ["x" * LONGEST]
    assert len(words_of(" ".join(f"w{n}" for n in range(MOST_WORDS + 9)))) == MOST_WORDS and words_of("a b c", 2) == ["a", "b"]


def test_a_fact_is_a_word_that_no_text_holds_and_tells_its_value() -> None:
    for value in ("talks", "ü 🐦", '"; DROP', "§lt", "a b"):
        word = facet("l", "t", value)
        assert value_of(word) == ("t", value) and word.split() == [word] and words_of(word) != [word]


def test_questions_quote_every_word() -> None:
    facts, words = [facet("l", "t", '"')], words_of('or "x" near')
    assert sqlite_query(facts, words) == '"§lt22" AND "or" * AND "x" * AND "near" *'
    assert postgres_query(facts, words) == "'§lt22' & 'or':* & 'x':* & 'near':*"


def test_names_are_sorted_whatever_their_accents() -> None:
    assert sorted(["Zebra", "ängste", "Apfel"], key=folded) == ["ängste", "Apfel", "Zebra"]
