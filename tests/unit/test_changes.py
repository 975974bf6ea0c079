"""Changes to datasets: each makes a version or sets of their own, and leaves its dataset as it was."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.database import Database
from storage.records import DatasetRecord
from storage.repositories import Datasets
from studio.datasets.changes import Changes, Filter, parse_parts
from studio.datasets.library import DatasetLibrary
from studio.datasets.reading import Limits
from studio.errors import InvalidInput, NameTaken, NotFound
from tests.uploads import jsonl, pair


@pytest.fixture
def changes(tmp_path: Path) -> Iterator[Changes]:
    database = Database(f"sqlite:///{tmp_path / 'studio.db'}")
    yield Changes(DatasetLibrary(Datasets(database), tmp_path / "datasets", tmp_path / "exports", Limits(2**30)))
    database.close()


@pytest.fixture
def record(changes: Changes, tmp_path: Path) -> DatasetRecord:
    """Twenty rows, with a field `part` that is a for the even ones."""
    return changes.library.add([jsonl(tmp_path / "a.jsonl", [{**pair(n), "part": "ab"[n % 2]} for n in range(20)])], "a")


def prompts(changes: Changes, record: DatasetRecord) -> list[str]:
    return [row[-2]["content"] for row in changes.library.store(record).conversations()]


def numbers(changes: Changes, record: DatasetRecord) -> list[int]:
    return [int(prompt.removeprefix("Question ")) for prompt in prompts(changes, record)]


def test_repeated_rows_go_and_the_first_stays(changes: Changes, tmp_path: Path) -> None:
    rows = [pair(1), pair(2), {"prompt": "QUESTION 1", "completion": "answer  1"}, pair(3), pair(2)]
    record = changes.library.add([jsonl(tmp_path / "d.jsonl", rows)], "d")
    made = changes.deduplicate(record)
    assert (
        numbers(changes, made) == [1, 2, 3]
        and made.version == 2
        and made.parent_id == record.id
        and made.made_by == "2 duplicate row(s) removed"
    )
    assert changes.library.get("d@1") == record and len(changes.library.store(record)) == 5
    with pytest.raises(InvalidInput, match="'d' holds no duplicates; nothing was changed"):
        changes.deduplicate(made)


def test_nearly_equal_rows_go_where_they_are_asked_to(changes: Changes, tmp_path: Path) -> None:
    long = " ".join(f"word{n}" for n in range(60))
    rows = [
        {"prompt": "Tell me", "completion": long},
        {"prompt": "Tell me", "completion": long + " more"},
        {"prompt": "Other", "completion": "short"},
    ]
    record = changes.library.add([jsonl(tmp_path / "d.jsonl", rows)], "d")
    with pytest.raises(InvalidInput, match="no duplicates"):
        changes.deduplicate(record)
    assert prompts(changes, changes.deduplicate(record, near=True)) == ["Tell me", "Other"]


@pytest.mark.parametrize(
    ("wanted", "kept", "said"),
    [
        (Filter(contains="QUESTION 1"), [1, *range(10, 20)], "contains 'QUESTION 1'"),
        (Filter(lacks="question 1"), [0, *range(2, 10)], "lacks 'question 1'"),
        (Filter(column="part", equals="a", contains="1"), [10, 12, 14, 16, 18], "contains '1', part is 'a'"),
        (Filter(min_characters=20), list(range(10, 20)), "at least 20 characters"),
        (Filter(max_characters=19), list(range(10)), "at most 19 characters"),
    ],
)
def test_a_filter_keeps_the_rows_that_pass(changes: Changes, record: DatasetRecord, wanted: Filter, kept: list[int], said: str) -> None:
    made = changes.filter(record, wanted)
    assert numbers(changes, made) == kept and made.made_by == f"kept rows where {said}"
    assert changes.library.store(made).page(0, 1)[0].line == kept[0] + 1


def test_a_sample_and_a_split_are_drawn_the_same_each_time(changes: Changes, record: DatasetRecord) -> None:
    first, again, other = (changes.sample(record, 7, seed) for seed in (1, 1, 2))
    drawn = numbers(changes, first)
    assert len(drawn) == 7 and drawn == sorted(drawn) == numbers(changes, again) != numbers(changes, other)
    assert first.content_hash == again.content_hash and (first.version, again.version, other.version) == (2, 3, 4)
    train, held = changes.split(record, 0.25, seed=3)
    assert (train.name, held.name, train.rows, held.rows, train.version) == ("a train", "a held out", 15, 5, 1)
    assert sorted(numbers(changes, train) + numbers(changes, held)) == list(range(20))


def test_a_split_by_a_field_makes_a_set_for_each_value(changes: Changes, record: DatasetRecord) -> None:
    parts = changes.split_by_column(record, "part")
    assert [(part.name, numbers(changes, part)) for part in parts] == [("a a", list(range(0, 20, 2))), ("a b", list(range(1, 20, 2)))]
    with pytest.raises(InvalidInput, match="no field 'nothing'; those beside the conversation are 'part'"):
        changes.split_by_column(record, "nothing")


def test_a_split_makes_all_its_parts_or_none(changes: Changes, record: DatasetRecord, tmp_path: Path) -> None:
    changes.library.add([jsonl(tmp_path / "b.jsonl", [pair(1)])], "a held out")
    with pytest.raises(NameTaken, match="'a held out'"):
        changes.split(record, 0.5)
    assert {made.name for made in changes.library.all()} == {"a", "a held out"}


def test_sets_are_joined_or_mixed_by_weight(changes: Changes, record: DatasetRecord, tmp_path: Path) -> None:
    few = changes.library.add([jsonl(tmp_path / "b.jsonl", [pair(n) for n in (100, 101, 102)])], "b")
    joined = changes.mix([record, few], [], "joined")
    assert numbers(changes, joined) == [*range(20), 100, 101, 102]
    mixed = changes.mix([record, few], [1, 1], "mixed", rows=14)
    count = Counter(numbers(changes, mixed))
    assert sum(count[n] for n in range(20)) == 7 and max(count[n] for n in range(20)) == 1
    assert sorted(count[n] for n in (100, 101, 102)) == [2, 2, 3]  # used up before one repeats
    assert mixed.content_hash == changes.mix([record, few], [1, 1], "again", rows=14).content_hash
    assert mixed.made_by == "mixed a × 1, b × 1"


def test_a_row_is_edited_in_place(changes: Changes, record: DatasetRecord) -> None:
    made = changes.edit_row(record, 3, [{"role": "user", "content": " New? "}, {"role": "assistant", "content": "Yes."}])
    before, after = (changes.library.store(version).page(2, 3) for version in (record, made))
    assert after[0] == before[0] and after[2] == before[2] and after[1].extra == before[1].extra
    assert [turn["content"] for turn in after[1].conversation] == ["New?", "Yes."] and made.made_by == "row 4 edited"
    passage = changes.edit_row(made, 0, [{"role": "text", "content": "Only a text."}])
    assert changes.library.store(passage).page(0, 1)[0].conversation == [{"role": "text", "content": "Only a text."}]


def test_personal_data_is_redacted(changes: Changes, tmp_path: Path) -> None:
    record = changes.library.add(
        [jsonl(tmp_path / "p.jsonl", [pair(1), {"prompt": "Write to ann@example.org", "completion": "Done."}])], "p"
    )
    made = changes.redact(record)
    assert prompts(changes, made) == ["Question 1", "Write to [e-mail]"]
    with pytest.raises(InvalidInput, match="No personal data was found in 'p'"):
        changes.redact(made)
    assert len(changes.library.versions("p")) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c, r: c.filter(r, Filter()), "The filter is empty"),
        (lambda c, r: c.filter(r, Filter(contains="nowhere")), "No row of 'a' would be left"),
        (lambda c, r: c.sample(r, 20), "give a number from 1 to 19"),
        (lambda c, r: c.split(r, 1.0), "leaves one part of 'a' empty"),
        (lambda c, r: c.remove_rows(r, range(20)), "No row of 'a' would be left"),
        (lambda c, r: c.edit_row(r, 0, [{"role": "user", "content": "x"}]), "Row 1 cannot become this: .*no assistant"),
        (lambda c, r: c.edit_row(r, 0, []), "Row 1 cannot become this"),
        (lambda c, r: c.mix([], [], "m"), "nothing to mix"),
        (lambda c, r: c.mix([r], [0], "m"), "weights do not fit"),
        (lambda c, r: c.mix([r, r], [1], "m"), "weights do not fit"),
    ],
)
def test_what_cannot_be_done_is_told_and_changes_nothing(
    changes: Changes, record: DatasetRecord, change: Callable[[Changes, DatasetRecord], object], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        change(changes, record)
    assert changes.library.all() == [record]


def test_rows_are_removed_by_their_numbers(changes: Changes, record: DatasetRecord) -> None:
    assert numbers(changes, changes.remove_rows(record, {0, 5, 19})) == [n for n in range(20) if n not in (0, 5, 19)]
    with pytest.raises(NotFound, match="'a' has no row 21; it has 20"):
        changes.remove_rows(record, [20])


def test_parts_of_a_mixture_are_named_with_or_without_weights() -> None:
    assert parse_parts(["a", "b: c"]) == (["a", "b: c"], [])
    assert parse_parts(["a:2", "b: c:0.5"]) == (["a", "b: c"], [2.0, 0.5])
    with pytest.raises(InvalidInput, match="NAME:WEIGHT for each, or for none"):
        parse_parts(["a:2", "b"])


def test_a_mixture_with_passages_is_exported_and_read_again(changes: Changes, record: DatasetRecord, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("One passage.", encoding="utf-8")
    library = changes.library
    passages = library.add([notes], "notes")
    mixed = changes.mix([passages, record], [], "mixed")
    edited = changes.edit_row(passages, 0, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    assert mixed.form == "prompt-completion + text" and edited.form == "text"
    for number, made in enumerate((passages, mixed, edited)):
        assert library.add([library.export(made)], f"again {number}").content_hash == made.content_hash
