"""Tasks of lm-eval on adapters."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from studio.errors import InvalidInput
from studio.services import Studio
from tests.serving import add_adapters

ROWS = [{"question": f"What is {i} and 1?", "right": f" It is {i + 1}.", "wrong": " I am a bird."} for i in range(6)]
CHOICE = {
    "task": "sums_choice", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{[right, wrong]}}",
    "doc_to_target": 0, "metric_list": [{"metric": "acc"}],
}  # fmt: skip
ANSWER = {
    "task": "sums_answer", "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{right}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 8}, "metric_list": [{"metric": "exact_match"}],
}  # fmt: skip
PASSAGE = {
    "task": "sums_passage", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}{{right}}",
    "metric_list": [{"metric": "word_perplexity"}],
}  # fmt: skip


def test_it_says_in_a_sentence_that_it_is_not_installed(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InvalidInput, match="install it beside the studio with: pip install lm-eval"):
        studio.evaluations.run_lm_eval(["hellaswag"], ["base"])
    assert studio.evaluations.all() == []


def test_tasks_are_run_on_voices_and_kept(studio: Studio, tmp_path: Path) -> None:
    add_adapters(studio)
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    for task in (CHOICE, ANSWER, PASSAGE):
        (tmp_path / f"{task['task']}.yaml").write_text(json.dumps(task | source))  # JSON is YAML
    found = studio.evaluations.run_lm_eval(["sums_choice", "sums_answer", "sums_passage"], ["base", "wizard"], 0, tmp_path)
    assert studio.evaluations.get(found.record.id).voices == found.voices and found.record.dataset_name.startswith("lm-eval: sums_choice")
    base, wizard = (voice.values for voice in found.voices)
    assert base["sums_choice acc"] == pytest.approx(accuracy(studio)) and base["sums_passage word_perplexity"] > 1
    assert wizard["sums_passage word_perplexity"] != pytest.approx(base["sums_passage word_perplexity"], rel=1e-3)
    assert base["sums_answer exact_match"] == 0
    with pytest.raises(InvalidInput, match="lm-eval knows no task 'nothing'"):
        studio.evaluations.run_lm_eval(["nothing"], ["base"])


@torch.no_grad()
def accuracy(studio: Studio) -> float:
    """How often the right choice is likelier than the wrong one, by transformers."""
    base = studio.default_base()
    tokenizer = studio.chat.make_resident(base).tokenizer
    model = AutoModelForCausalLM.from_pretrained(str(studio.bases.path(base)))
    right = 0
    for row in ROWS:
        sums = []
        for choice in (row["right"], row["wrong"]):
            ids = torch.tensor([tokenizer(row["question"] + choice)["input_ids"]])
            start = len(tokenizer(row["question"])["input_ids"])
            logits = model(input_ids=ids).logits[0].log_softmax(-1)
            sums.append(float(sum(logits[i - 1, ids[0, i]] for i in range(start, ids.shape[1]))))
        right += sums[0] > sums[1]
    return right / len(ROWS)
