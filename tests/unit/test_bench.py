"""The arithmetic of the training benchmark; nothing here is timed."""

import pytest

from tests.bench.docstrings import docstring_rows
from tests.bench.products import Work
from tests.bench.training import against_the_products, growth, median_run, rounded, with_share_back


def run_of(tokens: float, tokens_per_s: float, peak_rss_mb: float = 1000.0) -> dict[str, float]:
    return {"tokens": tokens, "tokens_per_s": tokens_per_s, "peak_rss_mb": peak_rss_mb}


def test_the_run_of_middling_speed_is_reported_whole() -> None:
    runs = [run_of(1, 90.0, 5), run_of(1, 70.0, 6), run_of(1, 80.0, 7)]
    assert median_run(runs) is runs[2] and median_run(runs[:1]) is runs[0]


def test_growth_is_one_where_a_token_costs_the_same() -> None:
    assert growth([run_of(100, 50.0), run_of(400, 50.0)]) == {"tokens_ratio": 4, "seconds_per_token_ratio": 1, "peak_rss_ratio": 1}
    slower = growth([run_of(100, 50.0), run_of(200, 1.0), run_of(400, 40.0, 1100.0)])
    assert slower == {"tokens_ratio": 4, "seconds_per_token_ratio": 1.25, "peak_rss_ratio": 1.1}


def test_the_share_is_of_the_faster_measurement() -> None:
    found = against_the_products(run_of(1, 600.0), [run_of(1, 800.0), run_of(1, 1200.0)])
    assert found["our_share"] == 0.5 and found["tokens_per_s"] == 1200.0


def test_what_comes_back_is_a_share_of_what_was_lost() -> None:
    found = with_share_back({"bf16": 2.0, "nf4": 2.5, "nf4_loftq": 2.4})
    assert [found[key] for key in ("nats_lost", "nats_back", "share_back")] == pytest.approx([0.5, 0.1, 0.2])


def test_a_pass_counts_forward_and_backward_of_every_layer_and_of_the_head() -> None:
    work = Work([(3, 2), (5, 3)], (7, 5), tokens=10, trained=4)
    forward = 2 * 10 * (3 * 2 + 5 * 3) + 2 * 4 * 7 * 5
    assert work.operations == 2 * forward


def test_training_rows_and_held_out_rows_share_nothing() -> None:
    train, held_out = docstring_rows(48), docstring_rows(48, skip=48)
    texts = {row["completion"] for row in train}
    assert len(texts) == 48 and len(held_out) == 48 and not texts & {row["completion"] for row in held_out}
    assert docstring_rows(12) == train[:12]


def test_numbers_are_printed_at_four_digits() -> None:
    assert rounded({"a": [1.23456, 7], "b": "x", "c": 123456.7}) == {"a": [1.235, 7], "b": "x", "c": 123500.0}
