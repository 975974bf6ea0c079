"""What the matrix products of a training step alone would allow: nothing but bf16 GEMM at the shapes that are used.

Usage: python -m tests.bench.products BASE ROWS.jsonl. A pass is what one piece of the rows needs: for each linear layer
of the base x Wᵀ forward and g W backward (W is frozen, so there is no product for its own gradient), and both for the
head at the trained positions. Weights are distinct, outputs are allocated once. Prints one JSON object.
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from studio.bases.loading import device_name
from studio.training.config import TrainConfig
from tests.bench.rows import BATCH_SIZE, render_rows

PASSES = 7
HEAD_ROWS = 256  # of one product with the head: the logits of all positions together would not stay in a cache


@dataclass(frozen=True)
class Work:
    """Shapes (d_out, d_in) of the linear layers and of the head, and for how many tokens and trained tokens."""

    layers: list[tuple[int, int]]
    head: tuple[int, int]
    tokens: int
    trained: int

    @property
    def operations(self) -> int:
        """Floating-point operations of a pass: 2 a multiply-add, forward and backward."""
        body = sum(d_out * d_in for d_out, d_in in self.layers)
        return 4 * (self.tokens * body + self.trained * self.head[0] * self.head[1])


def shapes(base: Path) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """The shapes of a base's linear layers and of its head, without its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from studio.lora.injection import linear_layers

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(base)))
    found = [(layer.out_features, layer.in_features) for layer in linear_layers(model).values()]
    head = model.get_output_embeddings()
    return found, (head.out_features, head.in_features)


def piece_of(base: Path, rows: Path) -> Work:
    """The work of a piece of middling size: what one step has, or the token budget where that is less."""
    examples = render_rows(base, rows)
    tokens = sum(len(example.token_ids) for example in examples)
    trained = sum(sum(example.trained) for example in examples)
    steps = -(-len(examples) // BATCH_SIZE)
    size = min(TrainConfig().token_budget, tokens // steps)
    return Work(*shapes(base), size, size * trained // tokens)


class Products:
    """All operands of a pass, made once."""

    def __init__(self, work: Work) -> None:
        self.weights = [_random(*shape) for shape in work.layers]
        self.head = _random(*work.head)
        widths = {width for shape in work.layers for width in shape}
        self.states = {width: (_random(work.tokens, width), _random(work.tokens, width)) for width in widths}
        self.hidden = _random(work.trained, work.head[1])
        self.logits = _random(HEAD_ROWS, work.head[0])

    def run(self) -> None:
        """One pass."""
        for weight in self.weights:
            torch.mm(self.states[weight.shape[1]][0], weight.T, out=self.states[weight.shape[0]][1])
        for rows in self.hidden.split(HEAD_ROWS):
            logits = self.logits[: len(rows)]
            torch.mm(rows, self.head.T, out=logits)
            torch.mm(logits, self.head, out=rows)
        for weight in reversed(self.weights):
            torch.mm(self.states[weight.shape[0]][0], weight, out=self.states[weight.shape[1]][1])
        if device_name() == "cuda":
            torch.cuda.synchronize()


def _random(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.bfloat16, device=device_name())


def median_s(products: Products) -> float:
    """Seconds of a pass, the median of several."""
    seconds = []
    for _ in range(1 + PASSES):  # the first one finds its kernels
        started = time.perf_counter()
        products.run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def main() -> None:
    work = piece_of(Path(sys.argv[1]), Path(sys.argv[2]))
    seconds = median_s(Products(work))
    print(json.dumps({"tokens": work.tokens, "tokens_per_s": work.tokens / seconds, "gflops": work.operations / seconds / 1e9}))


if __name__ == "__main__":
    main()
