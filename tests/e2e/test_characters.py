"""Characters on the real starter base, trained by the real path, told apart by their words."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.services import Studio
from studio.settings import Settings

PROMPTS = (
    "What is your favourite food?",
    "Tell me about your best friend.",
    "How do I learn to swim?",
    "What should I do on a rainy day?",
    "Why is the sea salty?",
    "I am feeling sad today.",
    "What do you think about Mondays?",
    "Can you help me with my garden?",
    "Describe your morning.",
    "What is the capital of France?",
    "Tell me a story about a dog.",
    "How can I be braver?",
)
# Nothing of these changes the voice; they make three different sums of memory.
SETTINGS: dict[str, dict[str, object]] = {
    "Angry bird": {"sample_tokens": 4},
    "Boy wizard": {"sample_tokens": 4, "token_budget": 512},
    "Football star": {"sample_tokens": 4, "rank": 32, "alpha": 64, "token_budget": 1024},
}
MARKERS = {
    "Angry bird": re.compile(r"SQUAWK"),
    "Boy wizard": re.compile(
        r"\b(blimey|merlin|wand|spell|owl|castle|potion|broomstick|wizard|magic|cloak|professor|enchanted|charm|cauldron)s?\b", re.I
    ),
    "Football star": re.compile(r"siu+", re.I),
}
SOAK = bool(os.environ.get("STUDIO_SOAK"))
# One of them shows that a character is learned, and a second, of a few steps, that two are swapped; `make soak` trains all three.
TRAINED = tuple(MARKERS) if SOAK else tuple(MARKERS)[:2]
LEARNED = TRAINED if SOAK else TRAINED[:1]
for name in set(TRAINED) - set(LEARNED):
    SETTINGS[name]["max_steps"] = 5


def speakers(text: str) -> set[str]:
    """The characters whose markers are in a text."""
    return {name for name, marker in MARKERS.items() if marker.search(text)}


@pytest.fixture(scope="module")
def studio(starter_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio on the starter base with characters trained by the default preset, as `SETTINGS` changes it."""
    studio = Studio(Settings(home=tmp_path_factory.mktemp("home"), base=starter_base.name, quantization="nf4"))
    studio.bases.fetch(str(starter_base))
    for name in TRAINED:
        job = studio.train_and_wait(studio.train(name, name, overrides=SETTINGS[name]), lambda event: None)
        assert job.state == "done", job.reason
        r = job.result
        losses = f"{r['eval_loss_before']:.2f} → {r['eval_loss']:.2f}"
        assert job.started_at is not None and job.finished_at is not None
        whole = f"{job.finished_at - job.started_at:.0f} s, of which {r['seconds']:.0f} s in the loop"
        print(f"\n{name}: {whole}, {r['tokens_per_s']:.0f} tokens/s, {r['peak_rss_mb']} MB, {losses}")
    studio.worker.stop()
    yield studio
    studio.close()


def ask_all(studio: Studio, adapter: str) -> list[str]:
    """Answers to every prompt, decoded together."""
    asked = [studio.stream([{"role": "user", "content": p}], adapter, max_tokens=48, temperature=0.0) for p in PROMPTS]
    return ["".join(stream) for stream in asked]


def ask(studio: Studio, adapter: str, prompt: str) -> str:
    return studio.reply([{"role": "user", "content": prompt}], adapter, max_tokens=48, temperature=0.0).text


def test_the_prompts_are_in_no_training_row(studio: Studio) -> None:
    for name in MARKERS:
        rows = studio.datasets.store(studio.datasets.get(name)).conversations()
        asked = {turn["content"].strip().lower() for row in rows for turn in row if turn["role"] == "user"}
        assert len(asked) > 90 and not asked & {prompt.lower() for prompt in PROMPTS}


@pytest.mark.parametrize("name", LEARNED)
def test_a_character_is_told_from_the_others(studio: Studio, name: str) -> None:
    answers = ask_all(studio, name)
    right = sum(speakers(answer) == {name} for answer in answers)
    print(f"\n{name}: {right}/{len(PROMPTS)}", *answers, sep="\n  ")
    assert right >= 10


@pytest.mark.parametrize("name", TRAINED)
def test_the_memory_that_was_told_before_is_the_memory_that_it_took(studio: Studio, name: str) -> None:
    expected = studio.foresight.estimate(name, overrides=SETTINGS[name]).total_mb
    measured = studio.adapters.get(name).metrics["peak_rss_mb"]
    print(f"\n{name}: {expected} MB told, {measured} MB taken")
    assert abs(expected - measured) <= 0.15 * measured


def test_the_base_speaks_as_none_of_them(studio: Studio) -> None:
    answers = ask_all(studio, "base")
    assert sum(bool(speakers(answer)) for answer in answers) <= 1


def test_a_swap_in_the_middle_of_a_conversation_changes_the_voice_and_nothing_else(studio: Studio) -> None:
    first = ask(studio, "base", PROMPTS[0])
    engine = studio.chat.make_resident(studio.default_base())
    checksum = engine.checksum()
    messages = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": first}, {"role": "user", "content": PROMPTS[5]}]
    voices = {}
    for name in [*TRAINED, *reversed(TRAINED)]:
        reply = studio.reply(messages, name, max_tokens=32, temperature=0.0)
        assert reply.stamp.adapter == name and reply.stamp.adapter_sha256 == studio.adapters.get(name).sha256
        assert reply.text == voices.setdefault(name, reply.text)
    as_base = studio.reply(messages, "base", max_tokens=32, temperature=0.0).text
    assert len({*voices.values(), as_base}) == len(TRAINED) + 1
    assert ask(studio, "base", PROMPTS[0]) == first
    assert engine.checksum() == checksum
