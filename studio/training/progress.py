"""Where a training is and what it measured, apart from its weights."""

import math
from dataclasses import dataclass, field

CHECKPOINTS, STEP = "checkpoints", "step-"  # a job's folder of checkpoints, and the start of the name of each


def step_folder(step: int) -> str:
    """What the checkpoint of a step is called; in the order of the alphabet they are in the order of the steps."""
    return f"{STEP}{step:09d}"


@dataclass(frozen=True)
class Evaluation:
    """Held-out loss in nats a trained token, and the share of those tokens that were the likeliest."""

    loss: float
    accuracy: float

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True)
class Outcome:
    """What a finished loop measured. `tokens` are real ones; `seconds` are of the optimizer steps alone."""

    steps: int
    tokens: int
    trained_tokens: int
    seconds: float
    tokens_per_s: float
    train_loss: float
    eval_loss_before: float | None
    eval_loss: float | None
    perplexity_before: float | None
    perplexity: float | None
    accuracy_before: float | None
    accuracy: float | None
    best_step: int | None
    stopped_early: bool
    resumed_from_step: int | None
    samples_before: list[dict[str, str]]
    samples: list[dict[str, str]]


@dataclass
class Position:
    """Where a training is, apart from its weights: JSON values, kept in checkpoints."""

    token_budget: int
    recompute: bool
    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    recent: list[float] = field(default_factory=list)
    before: list[float] | None = None  # (loss, accuracy) of the evaluation before the first step
    last: list[float] | None = None
    best: list[float] | None = None
    best_step: int | None = None
    worse: int = 0  # evaluations in a row without a better loss
    stopped_early: bool = False
    out_of_time: bool = False
    samples_before: list[dict[str, str]] = field(default_factory=list)

    def outcome(self, kept_best: bool, resumed_from: int | None, samples: list[dict[str, str]]) -> Outcome:
        """What the whole training measured, at its end."""
        before, after = _evaluation(self.before), _evaluation(self.best if kept_best else self.last)
        return Outcome(
            steps=self.step,
            tokens=self.tokens,
            trained_tokens=self.trained_tokens,
            seconds=self.seconds,
            tokens_per_s=self.tokens / self.seconds,
            train_loss=sum(self.recent) / len(self.recent),
            eval_loss_before=before.loss if before else None,
            eval_loss=after.loss if after else None,
            perplexity_before=before.perplexity if before else None,
            perplexity=after.perplexity if after else None,
            accuracy_before=before.accuracy if before else None,
            accuracy=after.accuracy if after else None,
            best_step=self.best_step,
            stopped_early=self.stopped_early,
            resumed_from_step=resumed_from,
            samples_before=self.samples_before,
            samples=samples,
        )


def _evaluation(pair: list[float] | None) -> Evaluation | None:
    return Evaluation(*pair) if pair else None
