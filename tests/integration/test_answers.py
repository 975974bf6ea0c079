"""The answers that are written while an adapter is trained: transformers' own greedy ones, told as events."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from studio.datasets.rendering import Example, prompt_ids, render
from studio.lora.prefix import Prefix
from studio.training.answers import answer, chosen_prompts
from tests.oracle import load_in_peft, perturb, write
from tests.tiny import FAMILIES, make_model, make_tokenizer
from tests.trainers import Events, examples, trainer, untouched

PROMPTS = [list(range(20, 50)), [7], list(range(300, 311))]
TOKENIZER = make_tokenizer()
WATCHED = {"eval_steps": 2, "max_steps": 4, "sample_tokens": 6, "learning_rate": 0.05}


def greedy(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    """transformers' continuation of one prompt alone."""
    ids = torch.tensor([prompt])
    said = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return said[0, len(prompt) :].tolist()


def conversations() -> list[Example]:
    pairs = [
        (f"Say {word}", f"{word}, of course") for word in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    ]
    turns = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in pairs]
    return [render(TOKENIZER, turn) for turn in turns]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_are_decoded_together_are_those_of_each_alone(family: str) -> None:
    model = FAMILIES[family]()
    wanted = [greedy(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in wanted}) == len(PROMPTS)
    assert answer(model, PROMPTS, 12, set(), None) == wanted


def test_an_answer_ends_before_an_end_token_while_the_others_go_on() -> None:
    model = make_model()
    whole = [greedy(model, prompt, 12) for prompt in PROMPTS]
    end = whole[0][5]
    assert any(end not in ids for ids in whole)
    wanted = [ids[: ids.index(end)] if end in ids else ids for ids in whole]
    assert len(wanted[0]) <= 5 and answer(model, PROMPTS, 12, {end}, None) == wanted
    assert answer(model, PROMPTS[:1], 12, {whole[0][0]}, None) == [[]]


def greedy_behind(model: nn.Module, prefix: Prefix, prompt: list[int], count: int) -> list[int]:
    """The whole text computed again for each token, behind the prefix in transformers' cache."""
    ids = list(prompt)
    for _ in range(count):
        pairs = [tuple(part.unsqueeze(0) for part in prefix.keys_values(layer)) for layer in range(prefix.layers)]
        logits = model(torch.tensor([ids]), past_key_values=DynamicCache(pairs), use_cache=True).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prefix_speaks_too(family: str) -> None:
    plain = untouched(FAMILIES[family]())
    t = trainer(FAMILIES[family](), method="prefix", virtual_tokens=5)
    perturb(t.attached)
    prefix = t.attached.prefix
    with t.loss.packing.put_aside(t.model):
        ours = answer(t.model, PROMPTS, 8, set(), prefix)
    assert ours == [greedy_behind(plain, prefix, prompt, 8) for prompt in PROMPTS]
    assert ours != [greedy(plain, prompt, 8) for prompt in PROMPTS]


def asked(text: str) -> list[int]:
    return prompt_ids(TOKENIZER, [{"role": "user", "content": text}])


def test_prompts_are_those_that_are_named() -> None:
    chosen = chosen_prompts(TOKENIZER, " Hello there |  | Who are you? ", conversations())
    assert [text for text, _ in chosen] == ["Hello there", "Who are you?"]
    for text, ids in chosen:
        turns = [{"role": "user", "content": text}]
        assert ids == asked(text) == TOKENIZER.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]


def test_or_those_of_held_out_rows() -> None:
    t = trainer(make_model(), rows=conversations(), parts={"tokenizer": TOKENIZER}, held_out=0.4)
    assert len(t.held) == 4 and [text for text, _ in t.prompts] == [row.prompt for row in t.held[:2]]
    for row, (text, ids) in zip(t.held, t.prompts, strict=False):
        assert text.startswith("Say ") and ids == asked(text) == row.token_ids[: len(ids)]
    assert trainer(make_model(), rows=conversations(), parts={"tokenizer": TOKENIZER}, held_out=0.0).prompts == []


def test_answers_are_told_at_each_evaluation_of_named_prompts(tmp_path: Path) -> None:
    run = trainer(make_model(), emit := Events(), parts={"tokenizer": TOKENIZER}, sample_prompts="Hello|Bye", **WATCHED)
    outcome = run.fit()
    told = emit.of("samples")
    assert [event["step"] for event in told] == [0, 2, 4] == [event["step"] for event in emit.of("eval")]
    assert [[item["prompt"] for item in event["items"]] for event in told] == [["Hello", "Bye"]] * 3
    assert (outcome.samples_before, outcome.samples) == (told[0]["items"], told[2]["items"]) and told[0]["items"] != told[2]["items"]
    trained = load_in_peft(make_model(), write(tmp_path / "a", run.weights()))
    for model, event in ((make_model(), told[0]), (trained, told[2])):
        for item in event["items"]:
            said = greedy(model, asked(item["prompt"]), 6)
            until = said.index(TOKENIZER.eos_token_id) if TOKENIZER.eos_token_id in said else None
            assert item["text"] == TOKENIZER.decode(said[:until], skip_special_tokens=True).strip()


def test_answers_to_held_out_rows_are_told_before_and_after() -> None:
    outcome = trainer(make_model(), emit := Events(), rows=conversations(), parts={"tokenizer": TOKENIZER}, held_out=0.4, **WATCHED).fit()
    assert [event["step"] for event in emit.of("samples")] == [0, 4] and len(outcome.samples) == 2
    assert not trainer(make_model(), emit := Events(), rows=conversations(), **WATCHED).fit().samples and not emit.of("samples")


def test_the_kept_weights_give_the_last_answers() -> None:
    options = {**WATCHED, "learning_rate": 0.3, "schedule": "constant", "max_steps": 8, "held_out": 0.4, "keep_best": True}
    run = trainer(make_model(), emit := Events(), parts={"tokenizer": TOKENIZER}, sample_prompts="Hello", **options)
    outcome = run.fit()
    assert outcome.best_step < 8
    at_best = next(event["items"] for event in emit.of("samples") if event["step"] == outcome.best_step)
    assert outcome.samples == at_best == emit.of("samples")[-1]["items"]


def test_answers_are_the_same_where_activations_are_computed_twice() -> None:
    texts = []
    for mode in ("off", "on"):
        run = trainer(
            make_model(),
            emit := Events(),
            parts={"tokenizer": TOKENIZER},
            sample_prompts="Hello|Bye",
            activation_checkpointing=mode,
            **WATCHED,
        )
        run.fit()
        texts.append([event["items"] for event in emit.of("samples")])
        assert run.at.recompute == (mode == "on")
    assert texts[0] == texts[1]


def test_rows_without_a_prompt_are_not_asked() -> None:
    assert trainer(make_model(), rows=examples(), parts={"tokenizer": TOKENIZER}, held_out=0.4).prompts == []
