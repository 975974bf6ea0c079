"""Rows and trainers on tiny models, which the tests of training share."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from studio.datasets.rendering import Example
from studio.training.batching import micro_batches
from studio.training.config import make_config
from studio.training.loop import Trainer

TINY = {"rank": 4, "epochs": 2.0, "batch_size": 6, "learning_rate": 0.01, "quantization": "fp32"}


def rows_of(lengths: Iterable[int], seed: int = 0) -> list[Example]:
    """Random rows of these lengths whose second half is trained."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(2, 600, (length,), generator=generator).tolist() for length in lengths]
    return [Example(ids, [i >= len(ids) // 2 for i in range(len(ids))]) for ids in drawn]


def examples(count: int = 24) -> list[Example]:
    """Rows of 8 to 26 tokens."""
    return rows_of(8 + 3 * (index % 7) for index in range(count))


@torch.no_grad()
def likely_row(model: nn.Module, length: int = 12) -> Example:
    """What the model itself would say after one token: its trained tokens are the likeliest."""
    ids = [5]
    while len(ids) < length:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return Example(ids, [i >= length // 2 for i in range(length)])


class Events(list[dict[str, Any]]):
    """What a training said: call it to add an event, ask it for the data of one kind."""

    def __call__(self, kind: str, **data: Any) -> None:
        self.append({"kind": kind, **data})

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self if event["kind"] == kind]


def trainer(
    model: nn.Module, emit: Any = None, rows: list[Example] | None = None, parts: dict[str, Any] | None = None, **changes: Any
) -> Trainer:
    """A trainer of a small adapter. parts: the trainer's own keyword arguments. changes: options of the job."""
    config = make_config("quick", {**TINY, **changes})
    return Trainer(model, examples() if rows is None else rows, config, Events() if emit is None else emit, **(parts or {}))


def plain_steps(t: Trainer) -> None:
    """All steps as `fit` takes them, without its evaluations, samples and checkpoints."""
    torch.manual_seed(t.config.seed)
    for rows, _ in t.plan:
        t.step([t.train[i] for i in rows])


def gradients(t: Trainer, rows: list[Example], budget: int = 4096) -> list[Tensor]:
    """What a training step has before it clips."""
    t._mode(training=True)
    t.optimizer.zero_grad()
    for batch in micro_batches(rows, budget):
        t.loss(batch)[0].backward()
    return [p.grad.clone() for p in t.parameters if p.grad is not None]


def state(t: Trainer) -> dict[str, Tensor]:
    """A copy of what is learned."""
    return {name: p.detach().clone() for name, p in t.attached.parameters.items()}


def same(x: dict[str, Tensor], y: dict[str, Tensor]) -> bool:
    """Whether two states are equal to the bit."""
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to a share of the largest number, which must not be zero."""
    largest = float(theirs.detach().abs().max())
    assert largest > 0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * largest)


def untouched(model: nn.Module) -> nn.Module:
    """A copy for the other side of a comparison, before anything is put on the model."""
    return copy.deepcopy(model)
