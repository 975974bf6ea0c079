"""Rows that are the same or nearly: all that there are, none that are not, the same groups each time."""

import random
from collections.abc import Callable, Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.datasets.duplicates import NEAR, SHINGLE_WORDS, Fingerprints, exact_groups, near_groups, normalised
from studio.datasets.forms import Conversation
from studio.datasets.passes import Cancelled, Fetch, Watch

WORDS = [f"word{i}" for i in range(500)]


def talk(question: str, answer: str, system: str = "") -> Conversation:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [{"role": "system", "content": system}, *turns] if system else turns


def sentence(seed: int, words: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def fetcher(rows: list[Conversation]) -> Callable[[int, int], list[Conversation]]:
    return lambda offset, limit: rows[offset : offset + limit]


def exact(rows: list[Conversation]) -> list[list[int]]:
    return exact_groups(len(rows), fetcher(rows))


def near(rows: list[Conversation]) -> list[list[int]]:
    return near_groups(len(rows), fetcher(rows))


def jaccard(left: Conversation, right: Conversation) -> float:
    """As it is defined, on the words themselves."""
    sets = []
    for row in (left, right):
        words = normalised(" ".join(turn["content"] for turn in row if turn["role"] != "system")).split()
        words += [""] * (SHINGLE_WORDS - len(words))
        sets.append({tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def overlapping(count: int, fetch: Fetch, held_out: Collection[int]) -> list[tuple[int, int]]:
    """Held-out rows that are the same as a training row, or near to one: (held-out row, training row)."""
    prints, held = Fingerprints(), set(held_out)
    prints.add(fetch(0, count))
    return prints.overlap([row for row in range(count) if row not in held], sorted(held), fetch, Watch())


def test_case_and_spaces_do_not_make_another_row() -> None:
    rows = [talk("Hello  there", "Yes."), talk("Who?", "Me."), talk(" hello\nThere", "YES."), talk("Who?", "Me."), talk("Who?", "You.")]
    assert exact(rows) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    "other",
    [
        talk("a b", "c", system="d"),
        talk("a", "b c"),
        [{"role": "text", "content": "a b c"}],
        [{"role": "assistant", "content": "a b"}, {"role": "user", "content": "c"}],
    ],
)
def test_other_roles_and_other_turns_make_another_row(other: Conversation) -> None:
    assert exact([talk("a b", "c"), other]) == []


def test_a_few_changed_words_are_near_and_many_are_not() -> None:
    words = sentence(1, 90)
    little = [*words[:40], "changed", *words[41:]]
    much = [w if i % 10 else "changed" for i, w in enumerate(words)]
    rows = [talk("Q", " ".join(text)) for text in (words, sentence(2, 90), little, much)]
    assert exact(rows) == [] and jaccard(rows[0], rows[2]) > NEAR > jaccard(rows[0], rows[3])
    assert near(rows) == [[0, 2]]


def test_another_system_turn_alone_is_near_but_not_the_same() -> None:
    rows = [talk("Who are you?", "A bird.", system="Be rude."), talk("Who are you?", "A bird.", system="Be kind.")]
    assert exact(rows) == [] and near(rows) == [[0, 1]]


def test_a_long_system_turn_in_common_makes_no_row_near() -> None:
    rows = [talk(f"Question {i}?", f"Answer {i}.", system=" ".join(sentence(0, 200))) for i in range(20)]
    assert near(rows) == []


def test_a_text_without_spaces_is_compared_by_its_characters() -> None:
    text = "".join(chr(0x4E00 + n) for n in random.Random(0).sample(range(5000), 80))
    rows = [talk("问", text), talk("问", text[:-1] + "好"), talk("问", text[::-1])]
    assert near(rows) == [[0, 1]]


def test_every_row_of_a_group_is_near_to_its_first() -> None:
    words = sentence(3, 80)
    rows = []
    for changes in range(0, 30, 3):  # each is near to the next, the first and the last are not
        rows.append(talk("Q", " ".join(["changed"] * changes + words[changes:])))
    groups = near(rows)
    assert groups and all(jaccard(rows[group[0]], rows[row]) >= NEAR for group in groups for row in group)
    assert jaccard(rows[0], rows[-1]) < NEAR and len({row for group in groups for row in group}) == sum(map(len, groups))


def test_short_rows_of_one_pattern_are_not_near() -> None:
    assert near([talk(f"What is {i} plus {i}?", f"{2 * i}") for i in range(200)]) == []


def test_many_rows_of_one_long_pattern_are_told_where_they_are_near_alone() -> None:
    pattern = sentence(4, 40)
    rows = [talk(" ".join(pattern), " ".join(sentence(100 + i, 12))) for i in range(300)]
    assert jaccard(rows[0], rows[1]) < NEAR
    assert near(rows) == []


def test_groups_do_not_depend_on_how_rows_are_fetched_and_are_complete() -> None:
    rows = [talk("Q", " ".join(sentence(i % 70))) for i in range(200)]
    rows += [talk("Q", " ".join([*sentence(i), "more"])) for i in range(50)]
    groups = near(rows)
    assert [group[0] for group in groups] == list(range(70))
    assert all(200 + i in groups[i] for i in range(50)) and groups == near(rows)
    assert all(set(some) <= set(group) for some, group in zip(exact(rows), groups, strict=True))


def test_held_out_rows_that_are_trained_too_are_found() -> None:
    rows = [talk("Q", " ".join(sentence(i))) for i in range(30)]
    rows[20] = talk("q", " ".join(sentence(4)))
    rows[21] = talk("Q", " ".join([*sentence(5), "more"]))
    rows[22] = talk("Q", " ".join(sentence(23)))  # both held out: no overlap
    assert overlapping(30, fetcher(rows), [20, 21, 22, 23, 24]) == [(20, 4), (21, 5)]
    assert overlapping(30, fetcher(rows), []) == [] == overlapping(30, fetcher(rows), range(30))


def test_an_empty_dataset_and_rows_without_words_have_no_groups() -> None:
    assert exact([]) == near([]) == overlapping(0, fetcher([]), []) == []
    assert near([[{"role": "text", "content": "one"}], [{"role": "text", "content": "two"}]]) == []


def test_it_stops_where_it_is_told_to() -> None:
    rows = [talk("Q", " ".join(sentence(i))) for i in range(50)]
    with pytest.raises(Cancelled):
        near_groups(50, fetcher(rows), Watch(cancelled=lambda: True))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30), min_size=1, max_size=12))
def test_no_pair_is_told_that_is_not_near_and_no_copy_is_missed(texts: list[list[str]]) -> None:
    rows = [talk("Q", " ".join(text)) for text in texts]
    groups = near(rows)
    assert all(jaccard(rows[group[0]], rows[row]) >= NEAR for group in groups for row in group)
    together = {row: number for number, group in enumerate(groups) for row in group}
    for left in range(len(rows)):
        for right in range(left):
            if texts[left] == texts[right]:
                assert together[left] == together[right]
    for held, trained in overlapping(len(rows), fetcher(rows), [0]):
        assert held == 0 and jaccard(rows[0], rows[trained]) >= NEAR
