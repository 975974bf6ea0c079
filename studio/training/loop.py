"""The loop: set up, fit, validate, save, in that order on the page.

AdamW, gradient clipping, and a loss that is averaged over the trained tokens of an optimizer step, however it is cut
into micro-batches. The same seed gives the same adapter, whether the training was stopped in between or not.
"""

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, nn

from studio.datasets.rendering import Example
from studio.errors import Diverged, InvalidInput, OutOfMemory
from studio.lora.adapter import AdapterSpec, Attached, Original, attach
from studio.lora.errors import UnsuitableOption
from studio.lora.files import AdapterWeights, encode_adapter
from studio.lora.frozen import freeze_quantized
from studio.lora.layers import LoraLinear
from studio.lora.product import share_inputs
from studio.training.answers import answer, chosen_prompts, cut_at_end
from studio.training.batching import MicroBatch, micro_batches, plan_steps, split_held_out
from studio.training.checkpoint import (
    CheckpointFolder,
    Snapshot,
    pack_optimizer,
    pack_random,
    unpack_optimizer,
    unpack_random,
)
from studio.training.config import TrainConfig
from studio.training.control import PAUSE, WISHES, Control, Stopped
from studio.training.events import Emit
from studio.training.fused import fuse
from studio.training.loss import CausalLoss
from studio.training.memory import SMALLEST_BUDGET, is_out_of_memory
from studio.training.noise import EmbeddingNoise
from studio.training.optimizer import make_optimizer, set_rate
from studio.training.progress import Evaluation, Outcome, Position
from studio.training.recompute import computed_once, recompute_blocks
from studio.training.schedule import factor
from studio.training.sharding import Pass, directly, is_spread, spread
from studio.training.team import Team

Result = TypeVar("Result")


class Trainer:
    """Trains one adapter on a model.

    Args:
        model: a causal language model as transformers loads it. It is changed: quantized layers become readable
            ones, targets are wrapped. examples: rendered rows. config: the job's. emit: takes events.
        tokenizer: for sample answers; none without it. original: unquantized weights by layer, for the start loftq.
        checkpoints: where to keep them, and to look for one to go on from. team: the processes that train together.
        control: where to look for what is wished of the training. base_name: is written into the adapters of checkpoints.

    Raises:
        InvalidInput: an option does not fit the model, or no row is left to train on.
    """

    def __init__(
        self,
        model: Any,
        examples: list[Example],
        config: TrainConfig,
        emit: Emit,
        *,
        tokenizer: Any = None,
        original: Original | None = None,
        checkpoints: CheckpointFolder | None = None,
        team: Team | None = None,
        control: Control | None = None,
        base_name: str = "",
    ) -> None:
        self.model, self.config, self.emit, self.tokenizer = model, config, emit, tokenizer
        self.checkpoints, self.team, self.control, self.base_name = checkpoints, team or Team(), control, base_name
        train, held = split_held_out(len(examples), config.held_out, config.seed)
        if not train:
            raise InvalidInput("No row is left to train on; raise max_length or add examples.")
        self.train, self.held = [examples[i] for i in train], [examples[i] for i in held]
        freeze_quantized(model)
        fuse(model.eval())
        self.loss = CausalLoss(model)
        self.attached = self._attach(original)
        self.parameters = list(self.attached.parameters.values())
        self.shared = self._share()
        self.spread = is_spread(config, self.team)
        self.with_base: Pass = spread(model, self.parameters, self.team) if self.spread else directly
        self.noise = EmbeddingNoise(model, config.neftune, self.loss)
        self.optimizer = make_optimizer(self.attached, config)
        self.prompts = chosen_prompts(tokenizer, config.sample_prompts, self.held) if tokenizer is not None else []
        lengths = [len(example.token_ids) for example in self.train]
        self.plan = plan_steps(lengths, config.batch_size, config.batch_tokens, config.seed, config.epochs, config.max_steps)
        self.at = Position(config.token_budget, config.activation_checkpointing == "on")
        self.best: dict[str, Tensor] = {}
        self.resumed_from: int | None = None
        self.saved_at = time.monotonic()

    @property
    def total_steps(self) -> int:
        """Optimizer steps, if nothing stops the training early."""
        return len(self.plan)

    def fit(self) -> Outcome:
        """Run all steps that are left, with an evaluation before the first, at intervals, and after the last.

        Raises:
            Diverged: the loss is not a number any more. OutOfMemory: it does not suffice for a single row.
            Stopped: somebody wished it; where the wish is a pause, a checkpoint of the last step is kept.
        """
        self._stop_where_wished()
        self._begin()
        while self.at.step < self.total_steps and not (self.at.stopped_early or self.at.out_of_time):
            self._stop_where_wished()
            rows, ends_epoch = self.plan[self.at.step]
            self.step([self.train[i] for i in rows])
            self._look_at_the_clock()
            self._evaluate_where_due(ends_epoch)
            self._save_where_due()
        if self.best:
            self._load(self.best)
        return self._outcome()

    def step(self, rows: list[Example]) -> float:
        """One optimizer step; returns its loss."""
        started = time.perf_counter()
        loss, counted = self._with_memory(lambda: self._gradients(rows))
        norm = self._clip()
        step = self.at.step + 1
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise Diverged(
                f"The loss stopped being a number at step {step} of {self.total_steps}; halve learning_rate "
                f"(now {self.config.learning_rate:g}) and try again."
            )
        rate = self.config.learning_rate * factor(self.config.schedule, step, self.total_steps, self.config.warmup)
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.at.step = step
        self.at.tokens += sum(len(row.token_ids) for row in rows)
        self.at.trained_tokens += counted
        self.at.recent = [*self.at.recent, loss][-10:]
        self.at.seconds += time.perf_counter() - started
        self._report(loss, norm, rate)
        return loss

    @torch.no_grad()
    def evaluate(self) -> Evaluation | None:
        """The held-out rows as the adapter stands now, or None where nothing was held out."""
        if not self.held:
            return None
        self._mode(training=False)
        nats, hits, count = self._with_memory(self._held_out_sums)
        return Evaluation(nats / count, hits / count)

    def weights(self) -> AdapterWeights:
        """A copy of what was learned, in float32 on the CPU."""
        return self.attached.weights()

    def _attach(self, original: Original | None) -> Attached:
        c = self.config
        spec = AdapterSpec(c.method, c.rank, c.alpha, c.rslora, c.dropout, c.targets, c.layers, c.init, c.virtual_tokens, c.seed)
        try:
            with self.loss.packing.put_aside(self.model):  # a prefix starts from a plain forward pass
                attached = attach(self.model, spec, original, self.train[0].token_ids)
        except UnsuitableOption as error:
            raise InvalidInput(f"The option {error.option} is {getattr(c, error.option)!r}: {error}.") from None
        if attached.prefix is not None and not self.loss.packs:
            raise InvalidInput("The option method is 'prefix': the attention of this base takes no prefix; choose lora or dora.")
        self.loss.position_offset = attached.prefix.length if attached.prefix else 0
        return attached

    def _share(self) -> list[Any]:
        layers = [layer for layer in self.attached.layers.values() if isinstance(layer, LoraLinear)]
        with torch.no_grad():
            return share_inputs(layers, lambda: self.loss(micro_batches(self.train[:1], 1)[0])) if layers else []

    def _begin(self) -> None:
        """Go on from the newest checkpoint, or measure the base."""
        torch.manual_seed(self.config.seed)  # for dropout and noise
        snapshot = self.checkpoints.newest() if self.checkpoints else None
        if snapshot is not None:
            self._restore(snapshot)
            self.emit("notice", text=f"The training goes on from step {self.at.step} of {self.total_steps}.")
            return
        self._set_recompute(self.at.recompute)
        before = self.evaluate()
        if before:
            self._tell(before)
            self.at.before = self.at.last = [before.loss, before.accuracy]
        self.at.samples_before = self._samples()

    def _gradients(self, rows: list[Example]) -> tuple[float, int]:
        """Gradients of a step's mean loss, over all processes; returns (loss, trained tokens)."""
        self._mode(training=True)
        self.optimizer.zero_grad(set_to_none=True)
        batches = micro_batches(rows, self.at.token_budget)
        counted = sum(len(batch.labels) for batch in batches)
        total = 0.0
        for batch, weight in self._pieces(batches):
            with self.noise:
                loss = self.with_base(self.loss, batch)[0] * weight / counted
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        if self.team.size > 1:
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self.team.add_up([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        return self.team.total(total), counted

    def _clip(self) -> float:
        return float(nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))

    def _held_out_sums(self) -> tuple[float, int, int]:
        """(nats, right tokens, tokens) over the held-out rows."""
        batches = micro_batches(self.held, self.at.token_budget)
        nats, hits = 0.0, 0
        for batch, weight in self._pieces(batches):
            loss, correct = self.with_base(self.loss, batch)
            nats, hits = nats + weight * float(loss), hits + weight * int(correct)
        return self.team.total(nats), round(self.team.total(hits)), sum(len(batch.labels) for batch in batches)

    def _pieces(self, batches: list[MicroBatch]) -> list[tuple[MicroBatch, int]]:
        """What this process computes, with weights; a spread base needs as many passes of each process."""
        return self.team.even_share(batches) if self.spread else [(batch, 1) for batch in self.team.share(batches)]

    def _mode(self, training: bool) -> None:
        """Adapters learn or not; the base stays in eval mode, so that no dropout of its own takes part."""
        for layer in self.attached.layers.values():
            layer.training = training

    def _with_memory(self, work: Callable[[], Result]) -> Result:
        """Do it, with less at once where memory runs out. The step stays the same: only its pieces become smaller."""
        random = pack_random()
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if self.team.size > 1 or not is_out_of_memory(error):
                    raise
                what = str(error)
            self._free()
            unpack_random(random)
            self._use_less(what)

    def _free(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss.packing.layout = None
        for group in self.shared:
            group.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _use_less(self, what: str) -> None:
        """Halve the token budget, then recompute activations.

        Raises:
            OutOfMemory: neither is possible any more.
        """
        step, longest = self.at.step + 1, max(len(row.token_ids) for row in [*self.train, *self.held])
        if self.at.token_budget > SMALLEST_BUDGET:
            self.at.token_budget = max(self.at.token_budget // 2, SMALLEST_BUDGET)
            said = f"token_budget is {self.at.token_budget} from here on, and the rows of a step stay the same"
        elif not self.at.recompute and self.config.activation_checkpointing != "off" and self._set_recompute(True):
            said = "activations are computed twice from here on, which is slower"
        else:
            raise OutOfMemory(
                f"Memory ran out at step {step} with a token_budget of {self.at.token_budget}, where the longest row alone has "
                f"{longest} tokens ({what.splitlines()[0][:120]}). Set max_length to {max(16, longest // 2)}, or choose a smaller base."
            )
        self.emit("notice", text=f"Memory ran out at step {step}: {said}.")

    def _set_recompute(self, on: bool) -> bool:
        able = recompute_blocks(self.model, on)
        self.at.recompute = on and able
        return able

    def _evaluate_where_due(self, ends_epoch: bool) -> None:
        every, step = self.config.eval_steps, self.at.step
        due = step == self.total_steps or self.at.out_of_time or (step % every == 0 if every else ends_epoch)
        if not due:
            return
        found = self.evaluate()
        if found is None:
            return
        self._tell(found)
        self.at.last = [found.loss, found.accuracy]
        if self.at.best is None or found.loss < self.at.best[0]:
            self.at.best, self.at.best_step, self.at.worse = self.at.last, step, 0
            if self.config.keep_best:
                self.best = {name: p.detach().clone() for name, p in self.attached.parameters.items()}
        else:
            self.at.worse += 1
        self.at.stopped_early = 0 < self.config.early_stopping <= self.at.worse and step < self.total_steps
        if self.config.sample_prompts and step < self.total_steps and not self.at.stopped_early:
            self._samples()

    def _samples(self) -> list[dict[str, str]]:
        """Answers of the adapter as it stands now, told as an event."""
        if not self.prompts or not (self.team.leads or self.spread):
            return []
        self._mode(training=False)
        ends = {int(i) for i in [self.tokenizer.eos_token_id] if i is not None}
        stops = set[int]() if self.spread else ends  # processes that share a base make as many passes, whatever is said
        prompts = [ids for _, ids in self.prompts]
        with self.loss.packing.put_aside(self.model), computed_once(self.model):
            said = self.with_base(answer, self.model, prompts, self.config.sample_tokens, stops, self.attached.prefix)
        texts = [self.tokenizer.decode(cut_at_end(ids, ends), skip_special_tokens=True).strip() for ids in said]
        items = [{"prompt": prompt, "text": text} for (prompt, _), text in zip(self.prompts, texts, strict=True)]
        self.emit("samples", step=self.at.step, items=items)
        return items

    def _look_at_the_clock(self) -> None:
        """End the training where its time is up; one process decides for all, since clocks differ."""
        limit_s = 60 * self.config.max_minutes
        over = bool(limit_s) and self.at.seconds >= limit_s and self.at.step < self.total_steps
        self.at.out_of_time = bool(limit_s) and self.team.total(over and self.team.leads) > 0
        if self.at.out_of_time:
            self.emit(
                "notice",
                text=f"max_minutes ({self.config.max_minutes:g}) is over at step {self.at.step} of {self.total_steps}; "
                "what was learned until there is kept.",
            )

    def _stop_where_wished(self) -> None:
        if self.control is None:
            return
        wish = WISHES[int(self.team.total(WISHES.index(self.control.wish()) if self.team.leads else 0))]
        if not wish:
            return
        if wish == PAUSE and self.at.step:
            self._save()
        raise Stopped(wish, self.at.step)

    def _save_where_due(self) -> None:
        if self.at.step != self.total_steps and time.monotonic() - self.saved_at >= self.config.checkpoint_every_s:
            self._save()

    def _save(self) -> None:
        if self.checkpoints is None or not self.team.leads:
            return
        try:
            self.checkpoints.save(self._snapshot(), encode_adapter(self.weights(), self.base_name, self.config.dropout))
        except OSError as error:  # the disk may have room again when the adapter is there
            self.emit("notice", text=f"The checkpoint of step {self.at.step} could not be written ({error}); the training goes on.")
        else:
            self.emit("checkpoint", step=self.at.step)
        self.saved_at = time.monotonic()

    def _snapshot(self) -> Snapshot:
        moments, plain = pack_optimizer(self.optimizer)
        tensors = {f"adapter.{name}": p.detach() for name, p in self.attached.parameters.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()} | moments | pack_random()
        return Snapshot(self.at.step, tensors, {"at": vars(self.at), "optimizer": plain})

    def _restore(self, snapshot: Snapshot) -> None:
        self.at = Position(**snapshot.state["at"])
        self._load(_named(snapshot.tensors, "adapter."))
        self.best = _named(snapshot.tensors, "best.")
        unpack_optimizer(self.optimizer, {**snapshot.tensors, **snapshot.state["optimizer"]})
        unpack_random(snapshot.tensors)
        self._set_recompute(self.at.recompute)
        self.resumed_from = self.at.step

    @torch.no_grad()
    def _load(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.attached.parameters.items():
            parameter.copy_(values[name])

    def _tell(self, found: Evaluation) -> None:
        self.emit("eval", step=self.at.step, loss=found.loss, perplexity=found.perplexity, accuracy=found.accuracy)

    def _report(self, loss: float, norm: float, rate: float) -> None:
        at = self.at
        self.emit(
            "progress",
            step=at.step,
            steps=self.total_steps,
            loss=loss,
            grad_norm=norm,
            learning_rate=rate,
            tokens=at.tokens,
            tokens_per_s=at.tokens / at.seconds,
            elapsed_s=at.seconds,
            remaining_s=at.seconds / at.step * (self.total_steps - at.step),
            memory_mb=_memory_mb(),
        )

    def _outcome(self) -> Outcome:
        return self.at.outcome(kept_best=bool(self.best), resumed_from=self.resumed_from, samples=self._samples())


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _memory_mb() -> int:
    """What the training holds now: on CUDA the largest amount there so far, else this process's resident memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() // 2**20)
    return int(psutil.Process().memory_info().rss // 2**20)
