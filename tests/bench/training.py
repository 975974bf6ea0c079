"""Training speed and memory: ours against a plain PEFT loop on the same rows, each in a process of its own.

Usage: python -m tests.bench.training [--rows 48] [--json FILE]. Prints one JSON object. Tokens are real ones, without padding.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from studio.bases.loading import load_model, load_tokenizer
from studio.datasets.library import SAMPLES, parse
from studio.datasets.rendering import Example, render_all
from studio.services import Studio
from studio.settings import load_settings
from studio.training.config import make_config
from studio.training.run import peak_rss_mb

BATCH = 8


def rows(base: Path, count: int) -> list[Example]:
    """The summarisation set: rows of varied length."""
    conversations = parse(SAMPLES / "summarisation.jsonl", 1 << 30, "auto", {}).conversations[:count]
    return render_all(load_tokenizer(base), conversations, 512, "truncate").examples


def ours(base: Path, count: int) -> dict[str, float]:
    """One epoch with the studio's trainer."""
    from studio.training.loop import Trainer

    config = make_config(overrides={"epochs": 1, "held_out": 0.0, "batch_size": BATCH, "learning_rate": 2e-4})
    outcome = Trainer(load_model(base, "nf4"), rows(base, count), config, lambda kind, **data: None).fit()
    return {"tokens_per_s": outcome.tokens_per_s, "peak_rss_mb": peak_rss_mb(), "train_loss": outcome.train_loss}


def peft_loop(base: Path, count: int) -> dict[str, float]:
    """One epoch as PEFT's own examples write it: padded batches, full logits."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_model(base, "nf4"), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    examples, losses = rows(base, count), []
    started = time.perf_counter()
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        longest = max(len(e.token_ids) for e in batch)
        ids = torch.tensor([e.token_ids + [0] * (longest - len(e.token_ids)) for e in batch])
        mask = torch.tensor([[1] * len(e.token_ids) + [0] * (longest - len(e.token_ids)) for e in batch])
        trained = torch.tensor([e.trained + [False] * (longest - len(e.trained)) for e in batch])
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~trained, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    seconds = time.perf_counter() - started
    tokens = sum(len(e.token_ids) for e in examples)
    return {"tokens_per_s": tokens / seconds, "peak_rss_mb": peak_rss_mb(), "train_loss": sum(losses) / len(losses)}


def in_a_process(which: str, base: Path, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.training", "--only", which, "--base", str(base), "--rows", str(count)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--only", choices=["ours", "peft_loop"])
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(globals()[arguments.only](arguments.base, arguments.rows)))
        return
    studio = Studio(load_settings())
    base = studio.bases.path(studio.ensure_base(lambda text: None))
    studio.close()
    result = {which: in_a_process(which, base, arguments.rows) for which in ("ours", "peft_loop")}
    ratios = {f"{key}_ratio": round(result["ours"][key] / result["peft_loop"][key], 3) for key in ("tokens_per_s", "peak_rss_mb")}
    print(json.dumps({"bench": "training", "rows": arguments.rows, **result, **ratios}))


if __name__ == "__main__":
    main()
