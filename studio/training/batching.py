"""Which rows an optimizer step sees, and in which pieces they go through the model.

Rows are shuffled by the seed. A step takes a number of them, or fills a number of tokens. A piece is rows one behind
the other in one sequence, without padding, up to the token budget.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.datasets.rendering import Example


@dataclass(frozen=True)
class MicroBatch:
    """One piece: token_ids (T,), the rows' lengths, and the positions (N,) in T that predict a trained token, labels (N,)."""

    token_ids: Tensor
    lengths: list[int]
    positions: Tensor
    labels: Tensor

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.token_ids)


def split_held_out(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices for training and for evaluation. At least one row is held out where the share is not zero and 2 rows are there."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    held = min(max(round(count * share), 1), count - 1) if share > 0 and count > 1 else 0
    return sorted(order[held:]), sorted(order[:held])


def epoch_steps(lengths: Sequence[int], batch_size: int, batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """The rows of each optimizer step of one epoch: every row once, in an order of the epoch's own.

    A step has `batch_size` rows, or, where `batch_tokens` is not 0, as many rows as stay within so many tokens.
    """
    order = list(range(len(lengths)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    if not batch_tokens:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    steps: list[list[int]] = []
    filled = batch_tokens
    for row in order:
        if filled + lengths[row] > batch_tokens:
            steps.append([])
            filled = 0
        steps[-1].append(row)
        filled += lengths[row]
    return steps


def plan_steps(
    lengths: Sequence[int], batch_size: int, batch_tokens: int, seed: int, epochs: float, max_steps: int
) -> list[tuple[list[int], bool]]:
    """All steps of a training: the rows of each, and whether it ends an epoch. At least one step.

    `max_steps` other than 0 decides alone; otherwise a broken number of epochs ends within the last one.
    """
    steps: list[tuple[list[int], bool]] = []
    epoch = 0
    while len(steps) < max_steps if max_steps else epoch < epochs:
        rows = epoch_steps(lengths, batch_size, batch_tokens, seed, epoch)
        if not max_steps and epochs - epoch < 1:
            rows = rows[: max(round(len(rows) * (epochs - epoch)), 0 if steps else 1)]
        steps += [(chosen, index == len(rows) - 1) for index, chosen in enumerate(rows)]
        epoch += 1
    return steps[: max_steps or None]


def micro_batches(examples: Sequence[Example], token_budget: int) -> list[MicroBatch]:
    """Cut rows into pieces of at most `token_budget` tokens, or of one row where a row is longer.

    The longest rows go first and each goes where it still fits, so there are few pieces. Rows keep their order in a piece.
    """
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].token_ids))
    pieces: list[list[int]] = []
    free: list[int] = []
    for row in order:
        length = len(examples[row].token_ids)
        place = next((i for i, space in enumerate(free) if length <= space), None)
        if place is None:
            place = len(pieces)
            pieces.append([])
            free.append(token_budget)
        pieces[place].append(row)
        free[place] -= length
    return [_pack([examples[i] for i in sorted(piece)]) for piece in pieces]


def _pack(rows: list[Example]) -> MicroBatch:
    token_ids: list[int] = []
    positions, labels = [], []
    for row in rows:
        start = len(token_ids)
        for i, trained in enumerate(row.trained):
            if trained and i > 0:  # position i - 1 predicts token i
                positions.append(start + i - 1)
                labels.append(row.token_ids[i])
        token_ids += row.token_ids
    lengths = [len(row.token_ids) for row in rows]
    return MicroBatch(torch.tensor(token_ids), lengths, torch.tensor(positions, dtype=torch.long), torch.tensor(labels, dtype=torch.long))
