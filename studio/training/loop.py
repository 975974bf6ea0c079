"""The loop: set up, fit, validate, save, in that order on the page.

AdamW with linear warm-up and cosine decay, gradient clipping, and a loss that is averaged over the trained tokens
of an optimizer step, however it is cut into micro-batches. The same seed gives the same adapter.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.datasets.rendering import Example
from studio.errors import InvalidInput, TrainingFailed
from studio.lora.files import AdapterWeights, lora_scale
from studio.lora.frozen import freeze_quantized
from studio.lora.injection import UnknownTarget, inject
from studio.training.batching import epoch_steps, micro_batches, split_held_out
from studio.training.config import TrainConfig
from studio.training.events import Emit
from studio.training.loss import CausalLoss

EVAL_TOKEN_BUDGET = 4096


@dataclass(frozen=True)
class Outcome:
    """What a finished loop measured. `tokens` are real ones, without padding; `seconds` are of the loop alone."""

    steps: int
    tokens: int
    trained_tokens: int
    seconds: float
    tokens_per_s: float
    train_loss: float
    eval_loss_before: float | None
    eval_loss: float | None


class Trainer:
    """Trains one adapter on a model.

    Args:
        model: a causal language model as transformers loads it. It is changed: quantized layers become readable
            ones, targets are wrapped.
        examples: rendered rows. config: the job's. emit: takes progress and eval events.

    Raises:
        InvalidInput: a target is unknown, or no row is left to train on.
    """

    def __init__(self, model: Any, examples: list[Example], config: TrainConfig, emit: Emit) -> None:
        self.model, self.config, self.emit = model, config, emit
        train, held = split_held_out(len(examples), config.held_out, config.seed)
        if not train:
            raise InvalidInput("No row is left to train on; raise max_length or add examples.")
        self.train, self.held = [examples[i] for i in train], [examples[i] for i in held]
        freeze_quantized(model)
        scale = lora_scale(config.alpha, config.rank)
        try:
            self.layers = inject(model, config.targets, config.rank, scale, config.dropout, config.init, config.seed)
        except UnknownTarget as error:
            raise InvalidInput(f"The option targets is {config.targets!r}: {error}.") from None
        self.parameters = [p for layer in self.layers.values() for p in (layer.lora_A, layer.lora_B)]
        self.loss = CausalLoss(model.eval())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.total_steps = self._count_steps()

    def fit(self) -> Outcome:
        """Run all steps, with an evaluation before the first, after each epoch and after the last.

        Raises:
            TrainingFailed: the loss is not a number any more.
        """
        torch.manual_seed(self.config.seed)  # for dropout
        before = self.evaluate(0)
        started, evaluated_s = time.perf_counter(), 0.0
        tokens = trained = 0
        recent: list[float] = []
        after = before
        self.model.train()
        for step, (rows, last_of_epoch) in enumerate(self._steps(), 1):
            loss, norm, seen, counted = self._step(step, rows)
            tokens, trained = tokens + seen, trained + counted
            recent = [*recent, loss][-10:]
            elapsed = time.perf_counter() - started - evaluated_s
            self._report(step, loss, norm, tokens, elapsed)
            if last_of_epoch or step == self.total_steps:
                paused = time.perf_counter()
                after = self.evaluate(step)
                self.model.train()
                evaluated_s += time.perf_counter() - paused
        seconds = time.perf_counter() - started - evaluated_s
        mean = sum(recent) / len(recent)
        return Outcome(self.total_steps, tokens, trained, seconds, tokens / seconds, mean, before, after)

    @torch.no_grad()
    def evaluate(self, step: int) -> float | None:
        """Held-out loss in nats a trained token, or None where nothing was held out."""
        if not self.held:
            return None
        self.model.eval()
        batches = micro_batches(self.held, max(self.config.token_budget, EVAL_TOKEN_BUDGET))
        total = sum(float(self.loss(batch)) for batch in batches)
        mean = total / sum(len(batch.labels) for batch in batches)
        self.emit("eval", step=step, loss=mean)
        return mean

    def weights(self) -> AdapterWeights:
        """A copy of what was learned, in float32 on the CPU."""
        pairs = {n: (la.lora_A.detach().cpu().clone(), la.lora_B.detach().cpu().clone()) for n, la in self.layers.items()}
        return AdapterWeights(self.config.rank, self.config.alpha, False, pairs)

    def _step(self, step: int, rows: list[Example]) -> tuple[float, float, int, int]:
        """One optimizer step; returns (loss, gradient norm before clipping, tokens, trained tokens)."""
        batches = micro_batches(rows, self.config.token_budget)
        counted = sum(len(batch.labels) for batch in batches)
        total = 0.0
        for batch in batches:
            loss: Tensor = self.loss(batch) / counted
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
        if not math.isfinite(total) or not math.isfinite(norm):
            raise TrainingFailed(
                f"The loss stopped being a number at step {step} of {self.total_steps}; halve learning_rate "
                f"(now {self.config.learning_rate:g}) and try again."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._schedule(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm, sum(batch.tokens for batch in batches), counted

    def _schedule(self, step: int) -> float:
        """Factor of the learning rate at a step from 1: a linear rise, then half a cosine down to zero."""
        warm = max(1, round(self.total_steps * self.config.warmup))
        if step <= warm:
            return step / warm
        return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, self.total_steps - warm + 1)))

    def _count_steps(self) -> int:
        per_epoch = math.ceil(len(self.train) / self.config.batch_size)
        return self.config.max_steps or max(1, round(per_epoch * self.config.epochs))

    def _steps(self) -> Iterator[tuple[list[Example], bool]]:
        """The rows of each step, and whether it ends an epoch, until all steps are done."""
        lengths = [len(example.token_ids) for example in self.train]
        done, epoch = 0, 0
        while done < self.total_steps:
            steps = epoch_steps(lengths, self.config.batch_size, self.config.seed, epoch)
            for index, rows in enumerate(steps[: self.total_steps - done]):
                yield [self.train[i] for i in rows], index == len(steps) - 1
            done, epoch = done + len(steps), epoch + 1

    def _report(self, step: int, loss: float, norm: float, tokens: int, elapsed: float) -> None:
        rate = tokens / elapsed
        self.emit(
            "progress",
            step=step,
            steps=self.total_steps,
            loss=loss,
            grad_norm=norm,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            tokens=tokens,
            tokens_per_s=rate,
            elapsed_s=elapsed,
            remaining_s=elapsed / step * (self.total_steps - step),
        )
