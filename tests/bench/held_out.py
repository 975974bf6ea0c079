"""Held-out loss by one measure for all: transformers' own forward pass, row by row, without padding.

Usage: python -m tests.bench.held_out adapters BASE ROWS.jsonl [NAME=FOLDER …]: the base in NF4, and with each adapter,
which PEFT loads. python -m tests.bench.held_out starts BASE ROWS.jsonl: before the first step, the base in bf16, in NF4,
and in NF4 with an adapter that starts by LoftQ. Prints one JSON object of nats a trained token.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from studio.bases.loading import load_model
from studio.datasets.rendering import Example
from tests.bench.rows import render_rows


@torch.no_grad()
def loss_of(model: Any, examples: list[Example]) -> float:
    """Mean over all trained tokens."""
    total, count = 0.0, 0
    for example in examples:
        token_ids = torch.tensor(example.token_ids, device=model.device)
        trained = torch.tensor(example.trained, device=model.device)[1:]
        logits = model(input_ids=token_ids[None], use_cache=False).logits[0, :-1][trained]
        total += float(F.cross_entropy(logits.float(), token_ids[1:][trained], reduction="sum"))
        count += int(trained.sum())
    return total / count


def adapters(base: Path, examples: list[Example], folders: dict[str, str]) -> dict[str, float]:
    """Of the base, and of each adapter on it."""
    from peft import PeftModel

    (first, folder), *others = folders.items()
    model = PeftModel.from_pretrained(load_model(base, "nf4"), folder, adapter_name=first)
    for name, folder in others:
        model.load_adapter(folder, adapter_name=name)
    model.train()  # nothing drops out here, and the first forward pass in eval mode would repack the weights
    with model.disable_adapter():
        losses = {"base": loss_of(model, examples)}
        check = loss_of(model, examples[:1])
    for name in folders:
        model.set_adapter(name)
        losses[name] = loss_of(model, examples)
    with model.disable_adapter():
        if loss_of(model, examples[:1]) != check:
            raise RuntimeError("The base changed while adapters were measured; their losses mean nothing.")
    return losses


def starts(base: Path, examples: list[Example]) -> dict[str, float]:
    """Of the base as it was, quantized, and quantized with LoftQ's start."""
    from studio.lora.adapter import AdapterSpec, attach
    from studio.lora.frozen import freeze_quantized

    whole, quantized = load_model(base, "bf16"), load_model(base, "nf4")
    freeze_quantized(quantized)
    losses = {"bf16": loss_of(whole, examples), "nf4": loss_of(quantized, examples)}
    attach(quantized, AdapterSpec(init="loftq"), lambda name: whole.get_submodule(name).weight)
    return {**losses, "nf4_loftq": loss_of(quantized, examples)}


def main() -> None:
    what, base, rows, *pairs = sys.argv[1:]
    examples = render_rows(Path(base), Path(rows))
    if what == "starts":
        print(json.dumps(starts(Path(base), examples)))
    else:
        print(json.dumps(adapters(Path(base), examples, dict(pair.split("=", 1) for pair in pairs))))


if __name__ == "__main__":
    main()
