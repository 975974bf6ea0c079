"""Prompts that are being computed: long ones in pieces, between which others go on, and short ones together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from studio.chat.bank import Bank
from studio.chat.kv import KvBatch, KvStore, kept_prefix
from studio.chat.row import Row
from studio.chat.runner import Runner
from studio.errors import StudioError

NOT_FINITE = "The adapter gave numbers that are not finite; it cannot be used. Train it again with a lower learning_rate."
# Tokens of a prompt at a time. Pieces end at multiples of it, and so does what is taken from an earlier turn: how many tokens are
# computed together moves the last bits of a result, and the same prompt is to give the same reply.
PIECE = 64
TOGETHER = 512  # tokens of short prompts that are computed at once; while others wait for their next one, a quarter of it


@dataclass(frozen=True)
class Computed:
    """A prompt that needs nothing more: logits behind its last token, (1, V), float32, or why there are none."""

    row: Row
    logits: Tensor | None
    error: Exception | None = None


class Prefill:
    """Rows whose prompts are being computed.

    Args:
        runner: the model. bank: of the rows' leases. kept: what earlier turns left.
    """

    def __init__(self, runner: Runner, bank: Bank, kept: KvStore) -> None:
        self.runner, self.bank, self.kept = runner, bank, kept
        self.rows: list[Row] = []
        self._turn = 0

    def step(self, others_wait: bool) -> list[Computed]:
        """Compute a piece of one prompt, or several short ones; returns those that are done, which leave.

        By turns it is the one that is ready soonest, and the one that waits longest.

        Args:
            others_wait: rows that have their prompts get no token meanwhile.
        """
        self._turn += 1
        row = min(self.rows, key=lambda row: row.left) if self._turn % 2 else self.rows[0]
        group = self._beside(row, TOGETHER // 4 if others_wait else TOGETHER)
        done = self._together(group) if len(group) > 1 else self._alone(row)
        for one in done:
            self.rows.remove(one.row)
        return done

    def _beside(self, row: Row, tokens: int) -> list[Row]:
        """The row and others of which nothing is known yet and that take one piece, within so many tokens with their padding."""
        if not _is_new(row):
            return [row]
        group = [row]
        for other in self.rows:
            longest = max(one.left for one in [*group, other])
            if other is not row and _is_new(other) and longest * (len(group) + 1) <= tokens:
                group.append(other)
        return group

    def _together(self, group: list[Row]) -> list[Computed]:
        """Several new prompts in one pass; where that fails, each alone."""
        count = max(row.left for row in group)
        kv = KvBatch.prompts([row.left for row in group])
        token_ids = [[0] * (count - row.left) + row.ticket.token_ids for row in group]
        self.bank.route([row.lease for row in group], count)
        try:
            logits = self.runner.forward(torch.tensor(token_ids, device=self.runner.device), kv).float()
        except Exception:  # noqa: BLE001 - whose fault it is shows where each is tried alone
            return [done for row in group for done in self._alone(row)]
        kv.advance(count)
        is_finite = torch.isfinite(logits.sum(dim=1)).tolist()
        done = []
        for index, row in enumerate(group):
            row.kv, row.computed = kv.alone(index), row.left
            done.append(Computed(row, logits[index : index + 1]) if is_finite[index] else Computed(row, None, StudioError(NOT_FINITE)))
        return done

    def _alone(self, row: Row) -> list[Computed]:
        try:
            logits = self._piece(row)
        except Exception as error:  # noqa: BLE001 - the border of one request
            return [Computed(row, None, error)]
        return [] if logits is None else [Computed(row, logits)]

    def _piece(self, row: Row) -> Tensor | None:
        """Compute the next tokens of a prompt; logits behind the last one.

        Raises:
            StudioError: some are not finite.
        """
        if row.kv is None:
            self._begin(row)
        assert row.kv is not None
        piece = row.ticket.token_ids[row.computed : row.computed + PIECE]
        self.bank.route([row.lease])
        logits = self.runner.forward(torch.tensor([piece], device=self.runner.device), row.kv)
        row.kv.advance(len(piece))
        row.computed += len(piece)
        if row.left:
            return None
        logits = logits.float()
        if not torch.isfinite(logits.sum()):
            raise StudioError(NOT_FINITE)
        return logits

    def _begin(self, row: Row) -> None:
        """Take what is known of the prompt's beginning, or the voice's prefix."""
        prefix = row.lease.prefix.embedding.shape[0] if row.lease.prefix is not None else 0
        columns = prefix + len(row.ticket.token_ids) + 1
        kept, common = self.kept.find(row.ticket.voice_key, row.ticket.token_ids)
        common = common // PIECE * PIECE
        if kept is None and row.lease.prefix is not None:
            kept = kept_prefix(row.lease.prefix, self.runner.device, self.runner.dtype)
        row.kv = KvBatch.starting(kept, prefix + common, columns)
        row.computed = row.reused = common


def _is_new(row: Row) -> bool:
    """Whether the whole prompt is to be computed, in one piece. What is kept of an earlier turn is never of so short a one."""
    return row.kv is None and row.left <= PIECE and row.lease.prefix is None
