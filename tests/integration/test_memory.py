"""What a training needs in memory, and what it does where that is not there, by torch's own errors and the system's own refusal."""

import mmap
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from studio.errors import TrainingFailed
from studio.training.config import TrainConfig, make_config
from studio.training.loop import Trainer
from studio.training.memory import Estimate, estimate, fitting, is_out_of_memory
from studio.training.run import explain
from tests.jobs import WORDS, Forks, Job
from tests.tiny import make_gpt2, make_model
from tests.trainers import Events, assert_near, examples, same, state, trainer

ABSURD = 1 << 50
SENTENCE = r"Memory ran out\. Halve token_budget \(now 77\) or max_length \(now 512\), or choose a smaller base; then retry\."


def no_thread() -> None:
    raise RuntimeError("can't start new thread")  # in threading's words; nobody wants to see them for true


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(ABSURD, dtype=torch.uint8),
        lambda: torch.zeros(1).expand(ABSURD).contiguous(),
        lambda: bytearray(ABSURD),
        lambda: np.ones(ABSURD, dtype=np.uint8),
        lambda: mmap.mmap(-1, ABSURD),
        no_thread,
    ],
)
def test_what_torch_python_and_the_system_say_is_known(allocate: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError, OSError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)
    cause, reason = explain(caught.value, {"token_budget": 77, "max_length": 512})
    assert cause == "memory" and reason.startswith("Memory ran out. Halve token_budget (now 77)")


@pytest.mark.parametrize("wrong", [lambda: torch.ones(2) @ torch.ones(3), lambda: torch.empty(-1), lambda: int("memory")])
def test_other_errors_are_not_taken_for_it(wrong: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, ValueError)) as caught:
        wrong()
    assert not is_out_of_memory(caught.value)
    assert "error of the studio itself" in explain(caught.value, {})[1]


# Where it runs out in the middle


def scarce(t: Trainer, fits: Callable[[int], bool]) -> Trainer:
    """Let torch run out of memory in the middle of a forward pass of so many tokens."""

    def allocate(_: object, args: tuple[torch.Tensor, ...]) -> None:
        if not fits(args[0].shape[1]):
            torch.empty(ABSURD, dtype=torch.uint8)

    t.model.get_decoder().layers[1].mlp.register_forward_pre_hook(allocate)
    return t


OPTIONS = {"batch_size": 12, "dropout": 0.2, "neftune": 5.0, "epochs": 2}


def test_the_pieces_become_smaller_and_the_steps_stay() -> None:
    t = scarce(trainer(make_model(), emit := Events(), token_budget=400, **OPTIONS), lambda tokens: tokens <= 100)
    outcome = t.fit()
    assert [event["text"] for event in emit.of("notice")] == [
        f"Memory ran out at step 1: token_budget is {budget} from here on, and the rows of a step stay the same." for budget in (200, 100)
    ]
    small = trainer(make_model(), token_budget=100, **OPTIONS)
    assert small.fit().train_loss == outcome.train_loss and same(
        state(t), state(small)
    )  # what was drawn for the failed tries is drawn again
    large = trainer(make_model(), token_budget=400, **{**OPTIONS, "dropout": 0.0, "neftune": 0.0})
    scarce_too = scarce(
        trainer(make_model(), token_budget=400, **{**OPTIONS, "dropout": 0.0, "neftune": 0.0}), lambda tokens: tokens <= 100
    )
    for run in (large, scarce_too):
        run.fit()
    assert large.at.token_budget == 400 and (large.at.tokens, large.at.step) == (scarce_too.at.tokens, scarce_too.at.step)
    for name, value in state(large).items():
        assert_near(state(scarce_too)[name], value, 1e-3)


def test_it_may_run_out_in_a_later_step() -> None:
    steps: list[int] = []
    t = trainer(make_model(), emit := Events(), token_budget=400, **OPTIONS)
    scarce(t, lambda tokens: t.at.step < 2 or tokens <= 100)
    t.optimizer.register_step_pre_hook(lambda *_: steps.append(t.at.token_budget))
    t.fit()
    assert steps == [400, 400, 100, 100]
    assert [event["text"].partition(":")[0] for event in emit.of("notice")] == ["Memory ran out at step 3"] * 2


def test_where_small_pieces_are_not_enough_activations_are_computed_twice() -> None:
    t = trainer(make_model(), emit := Events(), token_budget=100, **OPTIONS)
    scarce(t, lambda tokens: t.at.recompute or not torch.is_grad_enabled())
    t.fit()
    assert [event["text"].partition(": ")[2] for event in emit.of("notice")] == [
        "token_budget is 64 from here on, and the rows of a step stay the same.",
        "activations are computed twice from here on, which is slower.",
    ]
    small = trainer(make_model(), token_budget=64, **OPTIONS)
    small.fit()
    assert same(state(t), state(small))


@pytest.mark.parametrize(("mode", "makes"), [("off", make_model), ("auto", make_model), ("on", make_model), ("auto", make_gpt2)])
def test_where_nothing_helps_the_sentence_says_what_to_change(mode: str, makes: Callable[[], Any]) -> None:
    t = trainer(makes(), token_budget=100, activation_checkpointing=mode, **OPTIONS)
    blocks = t.model.get_decoder().layers if makes is make_model else t.model.get_decoder().h
    blocks[1].register_forward_pre_hook(lambda *_: torch.empty(ABSURD, dtype=torch.uint8))
    with pytest.raises(TrainingFailed) as caught:
        t.fit()
    longest = max(len(row.token_ids) for row in examples())
    said = str(caught.value)
    assert said.startswith(f"Memory ran out at step 1 with a token_budget of 64, where the longest row alone has {longest} tokens (")
    assert "can't allocate memory: you tried to allocate" in said and said.endswith("Set max_length to 16, or choose a smaller base.")


def test_any_other_error_goes_on_its_way() -> None:
    t = trainer(make_model(), emit := Events())
    t.model.get_decoder().layers[1].register_forward_pre_hook(lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        t.fit()
    assert not emit.of("notice")


# A process with a limit


def held_mb(forks: Forks) -> int:
    """What a process of the parent's kind holds before it does anything, whoever shares its pages."""
    status = Path(f"/proc/{forks.parent.process.pid}/status").read_text()
    [kib] = re.findall(r"^RssAnon:\s+(\d+) kB", status, flags=re.MULTILINE)
    return int(kib) >> 10


@pytest.mark.skipif(not psutil.LINUX or torch.cuda.is_available(), reason="a limit on a process's memory is set on Linux, without CUDA")
def test_a_limited_process_makes_its_pieces_smaller_until_they_fit(tmp_path: Path, tiny_base: Path, forks: Forks) -> None:
    """Some 12,000 tokens need about 500 MB at once; the process has less than half of that."""
    rows = [[{"role": "user", "content": "Go on."}, {"role": "assistant", "content": " ".join(WORDS * 12)}] for _ in range(64)]
    options = {"rows": rows, "token_budget": 32768, "batch_size": 56, "max_steps": 1, "max_length": 512}
    free = Job(tmp_path / "free", tiny_base, **options)
    assert forks.run(free) == 0, free.log
    limited = Job(tmp_path / "limited", tiny_base, memory_limit_mb=held_mb(forks) + 200, **options)
    assert forks.run(limited) == 0, limited.log
    assert not free.events("notice")
    notices = [event["text"] for event in limited.events("notice")]
    assert notices and all(
        n.startswith("Memory ran out at step 1: token_budget is ") and n.endswith("the rows of a step stay the same.") for n in notices
    )
    (alone,), (done,) = free.events("done"), limited.events("done")
    assert alone["tokens"] == done["tokens"] > 10_000 and done["peak_rss_mb"] < alone["peak_rss_mb"] - 100
    for x, y in zip(free.events("progress"), limited.events("progress"), strict=True):
        assert y["tokens"] == x["tokens"] and y["loss"] == pytest.approx(x["loss"], rel=1e-4)
    assert done["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-3)


@pytest.mark.skipif(not psutil.LINUX or torch.cuda.is_available(), reason="a limit on a process's memory is set on Linux, without CUDA")
def test_a_process_without_any_memory_says_which_options_to_change(tmp_path: Path, tiny_base: Path, forks: Forks) -> None:
    job = Job(tmp_path / "job", tiny_base, memory_limit_mb=held_mb(forks) + 8, token_budget=77, max_length=512)
    assert forks.run(job) == 1
    (failed,) = job.events("failed")
    assert re.fullmatch(SENTENCE, failed["reason"]), failed["reason"]
    assert not job.adapter.exists()


# The sum


def need(base: Path, **changes: Any) -> Estimate:
    return estimate(base, make_config(overrides={"batch_size": 1024, **changes}), 100, available_mb=100_000)


@pytest.mark.parametrize(
    ("option", "rising", "part"),
    [
        ("token_budget", [256, 2048, 65536], "activations"),
        ("rank", [1, 16, 256], "adapter"),
        ("quantization", ["nf4", "int8", "bf16", "fp32"], "base"),
    ],
)
def test_more_of_an_option_needs_more(starter_shape: Path, option: str, rising: list[Any], part: str) -> None:
    found = [need(starter_shape, **{option: value}) for value in rising]
    assert sorted({x.total_mb for x in found}) == [x.total_mb for x in found]
    assert sorted({x.parts[part] for x in found}) == [x.parts[part] for x in found]
    assert all(x.total_mb == sum(x.parts.values()) and not x.advice for x in found)
    others = [{name: size for name, size in x.parts.items() if name != part} for x in found]
    assert option != "token_budget" or others[0] == others[1] == others[2]


@pytest.fixture(scope="module")
def starter_shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a base of 135 million parameters; weights are not read."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("shape")
    LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        max_position_embeddings=8192, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_step_has_no_more_tokens_than_its_rows(starter_shape: Path) -> None:
    budget = need(starter_shape, token_budget=800)
    assert need(starter_shape, token_budget=2048, batch_size=8) == budget  # 8 rows of at most 100 tokens
    assert need(starter_shape, token_budget=2048, batch_tokens=800) == budget
    assert need(starter_shape, token_budget=2048, batch_size=16).total_mb > budget.total_mb


def test_computing_activations_twice_needs_less(starter_shape: Path) -> None:
    once, twice = (need(starter_shape, token_budget=8192, activation_checkpointing=mode) for mode in ("off", "on"))
    assert twice.parts["activations"] < once.parts["activations"] / 2
    assert {k: v for k, v in once.parts.items() if k != "activations"} == {k: v for k, v in twice.parts.items() if k != "activations"}


def test_a_row_longer_than_the_budget_is_what_counts(starter_shape: Path) -> None:
    config = make_config(overrides={"batch_size": 1024, "token_budget": 512, "max_length": 4096})
    short, long, unknown = (estimate(starter_shape, config, row, 100_000) for row in (100, 4096, None))
    assert short.total_mb < long.total_mb == unknown.total_mb
    assert need(starter_shape, token_budget=4096).total_mb == long.total_mb


def test_the_advice_names_a_budget_that_fits_and_the_largest_by_halving(starter_shape: Path) -> None:
    config = make_config(overrides={"batch_size": 1024, "token_budget": 16384})

    def size(budget: int, row: int) -> int:
        return estimate(starter_shape, make_config(overrides={"batch_size": 1024, "token_budget": budget}), row, 10**6).total_mb

    for budget, row in ((4096, 100), (64, 60)):
        found = estimate(starter_shape, config, row, size(budget, row) + 1)
        assert found.total_mb > found.available_mb and found.advice == f"Set token_budget to {budget}."
    long = make_config(overrides={"batch_size": 1024, "token_budget": 16384, "max_length": 8192})
    assert estimate(starter_shape, long, 8192, size(4096, 100) + 1).advice == "Set token_budget to 4096 and max_length to 4096."
    assert estimate(starter_shape, config, 60, size(64, 60) - 1).advice == "Choose a smaller base, or close other programs."
    assert estimate(starter_shape, config, 100, 10**6).advice == ""


def total(base: Path, config: TrainConfig, row: int) -> int:
    return estimate(base, config, row, 10**6).total_mb


def test_what_fits_is_the_largest_budget_by_halving_then_activations_twice(starter_shape: Path) -> None:
    config = make_config(overrides={"batch_size": 1024, "token_budget": 16384})

    def tried(**changes: Any) -> TrainConfig:
        return config.model_copy(update=changes)

    once = [tried(token_budget=b, activation_checkpointing="off") for b in (16384, 8192, 4096, 2048, 1024, 512, 256, 128)]
    for wanted, smaller in zip(once[1:], once, strict=False):
        assert total(starter_shape, smaller, 100) > total(starter_shape, wanted, 100)
        assert fitting(starter_shape, config, 100, total(starter_shape, wanted, 100)) == wanted
    assert fitting(starter_shape, config, 100, total(starter_shape, config, 100)) is config
    twice = tried(token_budget=16384, activation_checkpointing="on")
    row = 16384  # no piece can be smaller
    assert total(starter_shape, twice, row) < total(starter_shape, config, row)
    assert fitting(starter_shape, config, row, total(starter_shape, twice, row)) == twice
    never = tried(activation_checkpointing="off")
    assert fitting(starter_shape, never, row, total(starter_shape, twice, row)) is never
    assert fitting(starter_shape, config, 100, 10) is config


def test_the_peak_is_the_process_own_and_not_its_parents() -> None:
    held = np.ones(400 << 20, dtype=np.uint8)
    code = "from studio.training.run import peak_rss_mb; print(peak_rss_mb())"
    peak = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 20 < peak < 300 < psutil.Process().memory_info().rss >> 20
    assert held[-1] == 1
