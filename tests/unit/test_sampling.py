"""The next token against a computation that is written as the definition reads."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.chat.sampling import LIKELIEST, Sampling, logprobs_of, make_generator, next_tokens
from studio.errors import InvalidInput


def next_token(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator, said: list[int] | None = None) -> int:
    """Of one row."""
    return next_tokens(logits.float().unsqueeze(0), [sampling], [generator], [said or []])[0]


def naive_nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Take tokens from the likeliest down until their sum reaches top_p."""
    p = torch.softmax(logits.float() / temperature, dim=-1)
    kept, total = torch.zeros_like(p), 0.0
    for token in sorted(range(len(p)), key=lambda i: -float(p[i])):
        kept[token] = p[token]
        total += float(p[token])
        if total >= top_p:
            break
    return kept


def random_logits(seed: int, size: int = 50) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 3.0), st.floats(0.05, 0.99))
def test_a_draw_is_a_draw_from_the_naive_nucleus(seed: int, temperature: float, top_p: float) -> None:
    logits, sampling = random_logits(seed), Sampling(temperature=temperature, top_p=top_p)
    values, tokens = naive_nucleus(logits, temperature, top_p).sort(descending=True)
    expected = tokens[torch.multinomial(values, 1, generator=make_generator(seed))]
    assert next_token(logits, sampling, make_generator(seed)) == int(expected)


def test_every_token_of_the_nucleus_is_drawn_as_often_as_it_is_likely_and_no_other() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]))
    generator, sampling = make_generator(0), Sampling(temperature=1.0, top_p=0.8)
    draws = torch.bincount(torch.tensor([next_token(logits, sampling, generator) for _ in range(4000)]), minlength=5) / 4000
    torch.testing.assert_close(draws, torch.tensor([0, 0.4, 0, 0.3, 0.15]) / 0.85, atol=0.03, rtol=0)


def test_a_top_p_of_one_leaves_every_token_in() -> None:
    generator, logits = make_generator(0), torch.zeros(20)
    assert {next_token(logits, Sampling(temperature=1.0, top_p=1.0), generator) for _ in range(500)} == set(range(20))


@given(st.integers(0, 10_000))
def test_a_temperature_of_zero_takes_the_likeliest(seed: int) -> None:
    logits = random_logits(seed)
    assert next_token(logits, Sampling(temperature=0.0), make_generator(None)) == int(logits.argmax())


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0, top_p=0.01), Sampling(temperature=1e-3), Sampling(temperature=1e-40)])
def test_a_tiny_nucleus_or_temperature_comes_down_to_the_likeliest(sampling: Sampling) -> None:
    for seed in range(20):
        logits = random_logits(seed)
        assert next_token(logits, sampling, make_generator(seed)) == int(logits.argmax())


def test_a_seed_draws_the_same_and_no_seed_draws_anew() -> None:
    logits = torch.zeros(1000)
    hot = Sampling(temperature=1.0, top_p=1.0)
    assert next_token(logits, hot, make_generator(5)) == next_token(logits, hot, make_generator(5))
    assert len({next_token(logits, hot, make_generator(None)) for _ in range(10)}) > 1


def test_a_nucleus_of_more_than_the_likeliest_tokens_is_whole() -> None:
    generator, logits = make_generator(0), torch.zeros(4 * LIKELIEST)
    drawn = {next_token(logits, Sampling(temperature=1.0, top_p=0.9), generator) for _ in range(3000)}
    assert LIKELIEST < len(drawn) <= 0.9 * 4 * LIKELIEST + 1


def test_top_k_leaves_in_so_many_of_the_likeliest() -> None:
    logits, generator = random_logits(4), make_generator(1)
    drawn = {next_token(logits, Sampling(temperature=4.0, top_p=1.0, top_k=3), generator) for _ in range(300)}
    assert drawn == set(logits.topk(3).indices.tolist())


def test_each_row_is_drawn_by_its_own_rule_and_its_own_seed() -> None:
    rows = torch.stack([random_logits(seed) for seed in range(4)])
    rules = [Sampling(temperature=0.0), Sampling(temperature=1.0, top_p=0.9), Sampling(temperature=2.0, top_p=1.0), Sampling(top_k=5)]
    together = next_tokens(rows, rules, [make_generator(seed) for seed in range(4)], [[]] * 4)
    assert together == [next_token(rows[i], rules[i], make_generator(i)) for i in range(4)]


def test_what_was_said_is_penalised_once_and_for_each_time() -> None:
    logits = torch.tensor([3.0, 2.5, 2.0, -9.0])
    greedy = {"temperature": 0.0}
    assert next_token(logits, Sampling(**greedy, presence_penalty=0.6), make_generator(0), [0]) == 1
    assert next_token(logits, Sampling(**greedy, frequency_penalty=0.6), make_generator(0), [0, 0, 1]) == 2
    assert next_token(logits, Sampling(**greedy, presence_penalty=-2.0), make_generator(0), [2]) == 2
    assert logits.tolist() == [3.0, 2.5, 2.0, -9.0]  # what others look at is left as it is


def test_logprobs_are_those_of_the_whole_distribution() -> None:
    logits = random_logits(2)
    found, wanted = logprobs_of(logits, 7, 3), torch.log_softmax(logits, dim=-1)
    assert found.logprob == pytest.approx(float(wanted[7])) and [t for t, _ in found.top] == wanted.topk(3).indices.tolist()
    assert [p for _, p in found.top] == pytest.approx(wanted.topk(3).values.tolist()) and logprobs_of(logits, 7, 0).top == ()


@pytest.mark.parametrize(
    "option",
    [
        {"max_tokens": 0},
        {"max_tokens": 40_000},
        {"temperature": -0.1},
        {"temperature": 9.0},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**70},
        {"top_k": -1},
        {"presence_penalty": 2.5},
        {"frequency_penalty": -3.0},
        {"logprobs": 21},
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(InvalidInput, match=rf"The option {name} is {value}; choose one from -?[\d.]+ to [\d.]+\."):
        Sampling(**option)


@pytest.mark.parametrize("stop", [("",), ("x" * 201,), ("a",) * 9])
def test_stop_texts_have_bounds(stop: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match="The option stop may hold 8 texts of 1 to 200 characters"):
        Sampling(stop=stop)
