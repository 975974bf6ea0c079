"""A report counts what the training would count, and says it with what to do."""

import json
import random
import threading
from collections.abc import Collection
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.datasets import passes
from studio.datasets.findings import advised_length
from studio.datasets.forms import Conversation
from studio.datasets.languages import guess_languages, in_sample, telling_text
from studio.datasets.passes import Watch
from studio.datasets.rendering import Example, Renderer, render, render_all, render_many
from studio.datasets.report import Cancelled, Finding, Report, histogram, make_report
from studio.datasets.tokens import Encoder
from studio.errors import InvalidInput
from studio.training.batching import split_held_out
from tests.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
ENGLISH = "The weather was fine this morning, so we went down to the river and watched the boats go by until it was time for lunch."
GERMAN = "Das Wetter war heute Morgen schön, deshalb gingen wir zum Fluss hinunter und schauten den Booten zu, bis es Zeit zum Essen war."


def talk(question: str, answer: str) -> Conversation:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def distinct(count: int, words: int = 8) -> list[Conversation]:
    draw = random.Random(count)
    return [talk(" ".join(draw.choices(WORDS, k=8)) + f" {i}?", " ".join(draw.choices(WORDS, k=words))) for i in range(count)]


def report(rows: list[Conversation], tokenizer: Any = TOKENIZER, **options: Any) -> Report:
    return make_report(len(rows), lambda offset, limit: rows[offset : offset + limit], tokenizer, **options)


def of_kind(found: Report, kind: str) -> Finding:
    return next(finding for finding in found.findings if finding.kind == kind)


def kinds(found: Report, *levels: str) -> set[str]:
    return {finding.kind for finding in found.findings if finding.level in levels}


def test_a_good_dataset_has_nothing_to_mend() -> None:
    found = report(distinct(40), held_out=[3, 7])
    assert kinds(found, "error", "warning", "notice") == set()
    assert kinds(found, "good") == {"truncated", "duplicates", "overlap", "personal data"}
    assert (found.rows, found.turns, found.dropped, found.truncated, found.overlap) == (40, 80, 0, 0, 0)


@pytest.mark.parametrize("over_length", ["truncate", "drop"])
@pytest.mark.parametrize("max_length", [16, 40, 60, 90, 4096])
def test_it_counts_what_the_training_counts(over_length: Any, max_length: int) -> None:
    rows = distinct(30) + distinct(5, 30) + [talk("long " * 60, "Yes")]
    found = report(rows, max_length=max_length, over_length=over_length)
    rendered = render_all(TOKENIZER, rows, max_length, over_length)
    lengths = [len(render(TOKENIZER, row).token_ids) for row in rows]
    left = sum(len(example.token_ids) for example in rendered.examples)
    assert (found.truncated, found.dropped) == (rendered.truncated, rendered.dropped)
    assert (found.tokens, found.cut_tokens) == (sum(lengths), sum(lengths) - left)
    assert found.trained_tokens == sum(sum(example.trained[1:]) for example in rendered.examples)
    assert (found.shortest, found.longest, found.median) == (min(lengths), max(lengths), sorted(lengths)[len(lengths) // 2 - 1])
    assert sum(rows for _, _, rows in found.histogram) == len(rows)
    assert found.trained_share == pytest.approx(found.trained_tokens / left if left else 0)


def test_rows_that_are_cut_are_told_with_a_length_that_fits() -> None:
    rows = distinct(95) + distinct(5, 60)
    found = of_kind(report(rows, max_length=128), "truncated")
    over = [len(render(TOKENIZER, row).token_ids) for row in rows[95:]]
    lost = round(100 * (sum(over) - 5 * 128) / sum(over))
    assert found.said == f"5 of 100 rows are longer than max_length 128 and lose {lost} % of their tokens."
    assert found.rows == [95, 96, 97, 98, 99] and found.level == "warning"
    length = int(found.advice.split("max_length to ")[1].split(",")[0])
    assert of_kind(report(rows, max_length=length), "truncated").level == "good"


def test_one_row_is_told_in_the_singular() -> None:
    found = report([*distinct(99), *distinct(1, 60)], max_length=128)
    assert of_kind(found, "truncated").said.startswith("1 of 100 rows is longer than max_length 128 and loses")


def test_an_answer_behind_the_limit_is_told_apart() -> None:
    found = report([*distinct(30), talk("long " * 90, "Yes")], max_length=100)
    told = of_kind(found, "answer behind max_length")
    assert (told.rows, told.level, found.dropped) == ([30], "warning", 1)
    assert told.said == "1 of 31 rows has its whole answer behind max_length 100 and is left out."
    left_out = report([*distinct(30), talk("long " * 90, "Yes")], max_length=100, over_length="drop")
    assert kinds(left_out, "notice", "warning") == {"left out", "no held-out rows"}


def test_rows_without_an_answer_and_prompts_that_outweigh_are_told() -> None:
    untrained = [{"role": "user", "content": "Hello"}]
    found = of_kind(report([*distinct(30), untrained]), "nothing trained")
    assert (found.rows, found.action, found.level) == ([30], "drop-untrained", "warning")
    masked = report([talk(f"{i} " + " ".join(random.Random(i).choices(WORDS, k=200)), "a") for i in range(30)], max_length=4096)
    assert masked.trained_share < 0.02 and of_kind(masked, "trained share").level == "warning"


def test_few_rows_and_no_held_out_rows_are_told() -> None:
    assert kinds(report(distinct(19)), "warning", "notice") == {"few rows", "no held-out rows"}
    assert kinds(report(distinct(20), held_out=[1]), "warning", "notice") == set()


def test_an_empty_dataset_is_told() -> None:
    found = report([])
    assert kinds(found, "error") == {"no rows left"} and found.histogram == [] and found.rows == 0


def test_an_answer_that_is_given_again_and_again_is_told() -> None:
    rows = distinct(30)
    for row in rows[:7]:
        row[1]["content"] = "I do not  know."
    found = of_kind(report(rows), "same answer")
    assert found.said == "7 of 30 answers are the same: “I do not know.”." and found.rows == list(range(7))
    rows[0][1]["content"] = "I know."
    assert "same answer" not in kinds(report(rows), "notice")


def test_duplicates_and_overlap_are_told_with_their_rows() -> None:
    rows = distinct(50, 50)
    rows[40] = rows[2]
    rows[41] = talk(rows[3][0]["content"] + " extra", rows[3][1]["content"])
    found = report(rows, held_out=[40, 41, 42])
    assert (found.exact_duplicates, found.near_duplicates, found.overlap) == (1, 1, 2)
    assert (of_kind(found, "duplicates").rows, of_kind(found, "duplicates").action) == ([40], "deduplicate")
    assert (of_kind(found, "near duplicates").rows, of_kind(found, "near duplicates").action) == ([41], "near-deduplicate")
    assert (of_kind(found, "overlap").rows, of_kind(found, "overlap").action) == ([40, 41], "drop-overlap")
    assert of_kind(found, "overlap").said.startswith("2 of 3 held-out rows are in the training rows too")


def test_held_out_rows_can_be_chosen_as_training_chooses_them() -> None:
    rows = distinct(40)
    rows[0] = talk("long " * 90, "Yes")  # left out, so every later row has another place
    told: list[Collection[int]] = []

    def choose(left: int) -> list[int]:
        told.append([left])
        return split_held_out(left, 0.1, 0)[1]

    place = choose(39)[-1]
    assert 1 not in choose(39)
    rows[1 + place] = rows[2]
    found = report(rows, max_length=100, held_out=choose)
    assert of_kind(found, "overlap").rows == [1 + place] and told[-1] == [39]


def test_personal_data_is_counted_by_kind() -> None:
    rows = distinct(30)
    rows[4][0]["content"] += " write to jane@example.org"
    rows[9][1]["content"] += " +1-555-123-4567 or jane@example.org"
    rows[5][1]["content"] += " AKIA" + "IOSFODNN7EXAMPLE"
    rows[6][1]["content"] += " 91.198.174.192"
    found = report(rows)
    assert found.personal == {"IP address": 1, "e-mail": 2, "phone": 1, "secret": 1}
    assert of_kind(found, "personal data").rows == [4, 9] and of_kind(found, "personal data").action == "redact"
    assert "(e-mail in 2, phone in 1)" in of_kind(found, "personal data").said
    assert of_kind(found, "secrets").rows == [5] and of_kind(found, "IP addresses").level == "notice"


def test_languages_are_told_where_there_are_several() -> None:
    rows = [talk(f"Question {i}", f"{ENGLISH if i % 4 else GERMAN} {i}") for i in range(40)]
    found = report(rows)
    assert found.languages == {"en": 0.75, "de": 0.25}
    assert of_kind(found, "languages").said == "The rows are in several languages: English 75 %, German 25 %."
    assert "languages" not in kinds(report([talk(f"Question {i}", f"{ENGLISH} {i}") for i in range(40)]), "notice")


def test_short_texts_and_code_have_no_language() -> None:
    assert telling_text(talk("Bonjour", "Oui")) == ""
    assert telling_text(talk("Hi", "```\n" + ENGLISH + "\n```")) == ""
    assert guess_languages([(3, telling_text(talk("Hi", GERMAN)))], Watch()) == {"de": [3]}
    assert [sum(in_sample(row, count) for row in range(count)) for count in (10, 1000, 1001, 5500)] == [10, 1000, 1000, 1000]


def test_a_row_that_cannot_be_rendered_is_told_and_the_others_are_counted() -> None:
    tokenizer = make_tokenizer()
    earlier = "{% if message['role'] == 'assistant' and not loop.last %}…{% else %}{{ message['content'] }}{% endif %}"
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ message['content'] }}", earlier)
    rows = distinct(30)
    rows[7] = [*rows[7], *rows[8]]
    found = report(rows, tokenizer)
    told = of_kind(found, "not rendered")
    assert (told.level, told.rows, found.findings[0]) == ("error", [7], told)
    assert told.said.startswith("1 of 30 rows cannot be written with this base's chat template: The chat template")
    assert found.tokens == sum(len(render(tokenizer, row).token_ids) for i, row in enumerate(rows) if i != 7)


def test_progress_rises_to_one_and_it_stops_where_it_is_told_to() -> None:
    told: list[float] = []
    report(distinct(200), progress=lambda fraction, what: told.append(fraction))
    assert told == sorted(told) and told[0] == 0 and told[-1] == 1 and len(told) > 5
    for stop in (0, 1, 2, 4):
        asked: list[bool] = []
        with pytest.raises(Cancelled):
            report(distinct(200), cancelled=lambda asked=asked, stop=stop: len(asked) > stop or bool(asked.append(True)))


def test_a_report_survives_json() -> None:
    rows = distinct(30)
    rows[1] = rows[0]
    found = report(rows, held_out=[1])
    assert Report.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(("lengths", "advice"), [([10] * 1000, 64), ([10] * 995 + [5000] * 5, 64), ([10] * 90 + [700] * 10, 768)])
def test_the_length_to_use_cuts_under_one_percent(lengths: list[int], advice: int) -> None:
    assert advised_length(np.array(lengths), 131_072) == advice


def test_no_length_is_advised_that_the_base_cannot_take() -> None:
    assert advised_length(np.array([3000] * 10), 2048) == 2048
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 64
    told = of_kind(report(distinct(30, 30), tokenizer, max_length=64), "truncated")
    assert told.advice == "Shorten or split these rows; the base takes at most 64 tokens."


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 200_000) | st.integers(1, 300), min_size=1, max_size=200))
def test_a_histogram_holds_every_row_in_some_thirty_round_bins(lengths: list[int]) -> None:
    bins = histogram(np.array(lengths))
    assert sum(rows for _, _, rows in bins) == len(lengths) and 1 <= len(bins) <= 32
    assert all(rows == sum(start <= length < below for length in lengths) for start, below, rows in bins)
    assert bins[0][0] == 0 and all(left[1] == right[0] for left, right in pairwise(bins))
    width = bins[0][1]
    assert str(width).strip("0") in "125" and all(start % width == 0 for start, _, _ in bins)


def test_a_row_without_anything_to_train_is_not_told_as_cut_off() -> None:
    question = [{"role": "user", "content": "long " * 90}]
    for over_length in ("truncate", "drop"):
        found = report([*distinct(30), question], max_length=100, over_length=over_length)
        told = of_kind(found, "nothing trained")
        assert kinds(found, "notice", "warning") == {"nothing trained", "no held-out rows"}
        assert (told.rows, found.dropped, found.removable["drop-untrained"]) == ([30], 1, [30])
        assert told.said == "1 of 31 rows has no token that is trained, so nothing is learned from it."


def test_rows_that_cannot_be_rendered_are_each_their_own_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    refusing = "{% for m in messages %}{% if 'REFUSE' in m['content'] %}{{ raise_exception('no ' + m['content']) }}{% endif %}{% endfor %}"
    tokenizer.chat_template = refusing + tokenizer.chat_template
    rows = distinct(600)
    bad = [0, 5, 6, 250, 599]
    for row in bad:
        rows[row] = talk(f"REFUSE {row}", "Yes")
    batches: list[int] = []
    encode_all = Encoder.encode_all
    monkeypatch.setattr(Encoder, "encode_all", lambda self, texts: batches.append(len(texts)) or encode_all(self, texts))
    examples = Renderer(tokenizer).render_each(rows)
    assert batches == [595]  # a bad row makes no other one go alone
    assert [row for row, example in enumerate(examples) if isinstance(example, InvalidInput)] == bad
    assert [example for example in examples if isinstance(example, Example)] == list(
        render_many(tokenizer, [row for i, row in enumerate(rows) if i not in bad])
    )
    told = of_kind(report(rows, tokenizer), "not rendered")
    assert told.rows == bad and "REFUSE 0" in told.said


def test_a_base_without_a_template_refuses_every_row_in_the_report() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    told = of_kind(report(distinct(3), tokenizer), "not rendered")
    assert told.rows == [0, 1, 2] and "has no chat template" in told.said


def test_what_breaks_while_a_slice_is_rendered_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(renderer: Renderer, rows: list[Conversation]) -> list[Example]:
        raise MemoryError(f"{len(rows)} rows")

    monkeypatch.setattr(Renderer, "render_each", broken)
    before = threading.active_count()
    with pytest.raises(MemoryError, match="rows"):
        report(distinct(40))
    assert threading.active_count() == before


def test_long_rows_after_short_ones_are_taken_in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "LARGEST_CHARACTERS", 1000)
    rows = [*distinct(16), *(talk("long " * 100, f"{i}") for i in range(10))]
    parts = list(passes.slices(len(rows), lambda offset, limit: rows[offset : offset + limit], Watch(), "reading"))
    assert [row for _, part in parts for row in part] == rows
    assert [offset for offset, _ in parts] == [sum(len(part) for _, part in parts[:i]) for i in range(len(parts))]
    assert all(len(part) <= 2 for offset, part in parts if offset >= 16)
