"""Cross-entropy at the trained positions alone, in chunks, without the full logits ever existing.

The head is frozen, so the gradient of its input is known as soon as a chunk's softmax is: it is computed in the
forward pass and only scaled in the backward pass.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.training.batching import MicroBatch

CHUNK = 256


class _HeadLoss(torch.autograd.Function):
    """Sum over n of -log softmax(h_n Wᵀ)[label_n], differentiable in h alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        # hidden (N, H), weight (V, H), labels (N,)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(labels), CHUNK):
            rows, wanted = hidden[start : start + CHUNK], labels[start : start + CHUNK]
            logits = F.linear(rows, weight).float()  # (n, V)
            log_p = F.log_softmax(logits, dim=-1)
            loss += F.nll_loss(log_p, wanted, reduction="sum")
            if grad is not None:
                p = log_p.exp_()
                p[torch.arange(len(wanted), device=p.device), wanted] -= 1.0
                grad[start : start + CHUNK] = p.to(weight.dtype) @ weight
        ctx.grad = grad
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.grad * grads[0].to(ctx.grad.dtype), None, None


class CausalLoss:
    """The summed loss of a micro-batch.

    Args:
        model: a causal language model whose head is frozen. At construction a few tokens show whether the head is
            the plain product that is computed here; otherwise (soft-capped logits, a scaled or biased head) the
            model's own logits are used, at the price of their memory.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.decoder: nn.Module = model.get_decoder()
        self.head: nn.Module = model.get_output_embeddings()
        self.plain = self._head_is_plain()

    def __call__(self, batch: MicroBatch) -> Tensor:
        """Nats, summed over the trained tokens; a float32 scalar."""
        device = self.model.device
        token_ids, positions, labels = (t.to(device) for t in (batch.token_ids, batch.positions, batch.labels))
        if self.plain:
            hidden = self.decoder(input_ids=token_ids, use_cache=False).last_hidden_state  # (R, T, H)
            rows = hidden.flatten(0, 1)[positions]  # (N, H)
            loss: Tensor = _HeadLoss.apply(rows, self.head.weight, labels)  # type: ignore[no-untyped-call]
            return loss
        logits = self.model(input_ids=token_ids, use_cache=False).logits.flatten(0, 1)[positions]  # (N, V)
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        if type(self.head) is not nn.Linear or getattr(self.head, "bias", None) is not None:
            return False
        token_ids = torch.arange(1, 9, device=self.model.device).unsqueeze(0)
        hidden = self.decoder(input_ids=token_ids, use_cache=False).last_hidden_state
        logits = self.model(input_ids=token_ids, use_cache=False).logits
        return torch.allclose(F.linear(hidden, self.head.weight), logits, rtol=1e-3, atol=1e-3)
