"""Which rows an optimizer step sees, and in which pieces they go through the model.

Rows are shuffled by the seed, then sorted by length inside windows of a few steps, so that rows of one piece are of
like length and little is padded; the order of the steps is shuffled again. Padding stands on the right: under a
causal mask no real token sees it, so no attention mask is needed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.datasets.rendering import Example

WINDOW_STEPS = 8


@dataclass(frozen=True)
class MicroBatch:
    """One piece: token_ids (R, T), and the flat positions (N,) in R·T that predict a trained token (N,)."""

    token_ids: Tensor
    positions: Tensor
    labels: Tensor
    tokens: int


def split_held_out(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices for training and for evaluation. At least one row is held out where the share is not zero and 2 rows are there."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    held = min(max(round(count * share), 1), count - 1) if share > 0 and count > 1 else 0
    return sorted(order[held:]), sorted(order[:held])


def epoch_steps(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The rows of each optimizer step of one epoch: every row once."""
    source = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    source.shuffle(order)
    window = batch_size * WINDOW_STEPS
    steps = []
    for start in range(0, len(order), window):
        rows = sorted(order[start : start + window], key=lambda i: lengths[i])
        steps += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    source.shuffle(steps)
    return steps


def micro_batches(examples: Sequence[Example], token_budget: int) -> list[MicroBatch]:
    """Cut rows into pieces of at most `token_budget` tokens with their padding, or of one row where a row is longer."""
    rows = sorted(examples, key=lambda e: len(e.token_ids))
    pieces: list[list[Example]] = []
    for row in rows:
        if pieces and (len(pieces[-1]) + 1) * len(row.token_ids) <= token_budget:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return [_collate(piece) for piece in pieces]


def _collate(rows: list[Example]) -> MicroBatch:
    longest = max(len(row.token_ids) for row in rows)
    token_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    positions, labels = [], []
    for index, row in enumerate(rows):
        token_ids[index, : len(row.token_ids)] = torch.tensor(row.token_ids)
        for i, trained in enumerate(row.trained):
            if trained and i > 0:  # position i - 1 predicts token i
                positions.append(index * longest + i - 1)
                labels.append(row.token_ids[i])
    tokens = sum(len(row.token_ids) for row in rows)
    return MicroBatch(token_ids, torch.tensor(positions, dtype=torch.long), torch.tensor(labels, dtype=torch.long), tokens)
