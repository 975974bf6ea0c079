"""Cross-entropy at the trained positions alone, in chunks, without the full logits ever existing.

The head is frozen, so the gradient of its input is known as soon as a chunk's softmax is: it is computed in the
forward pass and only scaled in the backward pass.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.training.attention import Layout, Packing
from studio.training.batching import MicroBatch

log = logging.getLogger(__name__)
CHUNK = 256  # rows of one product with the head
SOFTMAX_BYTES = 4 << 20  # float32 probabilities that exist at once: what stays in a CPU's cache


class _HeadLoss(torch.autograd.Function):
    """(Σ_n -log softmax(h_n Wᵀ)[label_n], how many labels are the likeliest token), differentiable in h alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # hidden (N, H), weight (V, H), labels (N,)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(labels), CHUNK):
            wanted = labels[start : start + CHUNK]
            logits = F.linear(hidden[start : start + CHUNK], weight)  # (n, V), and soon its own gradient
            for rows, chosen in zip(torch.split(logits, _rows(weight)), torch.split(wanted, _rows(weight)), strict=True):
                summed, hits = _softmax_step(rows, chosen, grad is not None)
                loss += summed
                correct += hits
            if grad is not None:
                grad[start : start + CHUNK] = logits @ weight
        ctx.mark_non_differentiable(correct)
        ctx.grad = grad
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.grad * grads[0].to(ctx.grad.dtype), None, None


def _rows(weight: Tensor) -> int:
    return max(1, SOFTMAX_BYTES // (4 * weight.shape[0]))


def _softmax_step(logits: Tensor, labels: Tensor, want_grad: bool) -> tuple[Tensor, Tensor]:
    """(loss, hits) of some rows; with `want_grad` the logits (n, V) are overwritten by softmax minus one-hot."""
    p = torch.softmax(logits, dim=-1, dtype=torch.float32 if logits.dtype != torch.float64 else None)
    top, where = p.max(dim=-1)
    at = labels.unsqueeze(1)
    # log softmax = z - max z + log(max p): exact where a tiny probability has no logarithm any more.
    peak = logits.gather(1, where.unsqueeze(1)).to(p.dtype)
    log_p = (logits.gather(1, at).to(p.dtype) - peak).squeeze(1) + top.log()
    if want_grad:
        p.scatter_add_(1, at, torch.full_like(at, -1.0, dtype=p.dtype))
        logits.copy_(p)
    return -log_p.sum(), (where == labels).sum()


class CausalLoss:
    """The summed loss of a micro-batch.

    Args:
        model: a frozen causal language model, before an adapter is put on it. At construction a few tokens show whether
            the head is the plain product that is computed here; otherwise (soft-capped logits, a scaled or biased head)
            the model's own logits are used, at the price of their memory. They show as well whether rows may be packed;
            where the model's attention does not allow it, each row goes through the model alone.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.decoder: nn.Module = model.get_decoder()
        self.head: nn.Module = model.get_output_embeddings()
        self.plain = self._head_is_plain()
        self.packing = Packing()
        self.position_offset = 0  # tokens stand behind a learned prefix
        self.packs = self._can_pack()

    def __call__(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """(nats summed over the trained tokens, a float32 scalar; how many of them were the likeliest token)."""
        labels = batch.labels.to(self.model.device)
        rows = self._rows(batch, self.decoder if self.plain else self.model)
        if self.plain:
            loss, correct = _HeadLoss.apply(rows, self.head.weight, labels)  # type: ignore[no-untyped-call]
            return loss, correct
        return F.cross_entropy(rows.float(), labels, reduction="sum"), (rows.argmax(-1) == labels).sum()

    def _rows(self, batch: MicroBatch, model: Any) -> Tensor:
        """What the model says at the predicting positions: hidden states (N, H), or logits (N, V)."""
        if self.packs:
            return self._packed(batch.token_ids, batch.lengths, model)[batch.positions.to(self.model.device)]
        parts = torch.split(batch.token_ids, batch.lengths)
        return torch.cat([_plain(model, part.to(self.model.device)) for part in parts])[batch.positions.to(self.model.device)]

    def _packed(self, token_ids: Tensor, lengths: list[int], model: Any) -> Tensor:
        """The model's output for each token of a packed sequence, (T, H) or (T, V)."""
        device, layout = self.model.device, Layout(lengths)
        positions = layout.position_ids.to(device) + self.position_offset
        self.packing.layout = layout  # stays until the next pass: a block that is computed twice asks for it again
        return _first(model(input_ids=token_ids.to(device)[None], position_ids=positions[None], use_cache=False))

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        if type(self.head) is not nn.Linear or getattr(self.head, "bias", None) is not None:
            return False
        token_ids = torch.arange(1, 9, device=self.model.device)
        logits = _plain(self.model, token_ids)
        return torch.allclose(F.linear(_plain(self.decoder, token_ids), self.head.weight), logits, rtol=1e-3, atol=1e-3)

    @torch.no_grad()
    def _can_pack(self) -> bool:
        """Whether two rows give the same packed as alone."""
        text = self.model.config.get_text_config()
        if getattr(text, "attention_chunk_size", None):  # told in the masks alone, and longer than any row tried here
            return False
        some = int(text.vocab_size) // 4  # ordinary tokens: the first ids are often marks, with states of their own
        rows = [torch.arange(some, some + 7), torch.arange(some + 2, some + 11)]
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")  # rounds in bf16 as ours does
        alone = torch.cat([_plain(self.decoder, row.to(self.model.device)) for row in rows])
        self.packing.install(self.model, usual)
        try:
            packed = self._packed(torch.cat(rows), [len(row) for row in rows], self.decoder)
            # bf16 rounds a sum in another order by some hundredths; attention over the wrong row errs by the size of the states.
            if float((packed - alone).norm()) < (0.03 if packed.dtype == torch.bfloat16 else 1e-3) * float(alone.norm()):
                return True
            log.info("Rows of this base are not packed: its attention is its own.")
        except (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            log.info("Rows of this base are not packed: %s", error)
        self.packing.layout = None
        self.model.set_attn_implementation(usual)
        return False


def _plain(model: Any, token_ids: Tensor) -> Tensor:
    """The output of a model for one row, (T, H) or (T, V)."""
    return _first(model(input_ids=token_ids[None], use_cache=False))


def _first(output: Any) -> Tensor:
    states: Tensor = output[0]
    return states.squeeze(0)
