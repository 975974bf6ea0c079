"""What an evaluation is asked to do, and which metrics there are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from studio.errors import InvalidInput
from studio.names import listed

MOST_VOICES, MOST_ROWS, MOST_TOKENS = 16, 100_000, 4096


@dataclass(frozen=True)
class Metric:
    """A number that a voice reaches. form: how it is written. is_loss: the lower the better; else the higher."""

    key: str
    title: str
    about: str
    form: str
    is_loss: bool = False


METRICS = {
    metric.key: metric
    for metric in (
        Metric("loss", "Loss", "mean nats of a trained token, as training has it", "{:.4f}", is_loss=True),
        Metric("perplexity", "Perplexity", "e to the loss", "{:,.2f}", is_loss=True),
        Metric("accuracy", "Accuracy", "share of the trained tokens that were the likeliest one", "{:.1%}"),
        Metric("rouge1", "ROUGE-1", "words that answer and reference share (F-measure)", "{:.1%}"),
        Metric("rouge2", "ROUGE-2", "pairs of words that they share (F-measure)", "{:.1%}"),
        Metric("rougeL", "ROUGE-L", "longest common sequence of words (F-measure)", "{:.1%}"),
        Metric("chrf", "chrF", "characters that they share (chrF2, 0 to 100)", "{:.1f}"),
        Metric("exact", "Exact", "share of the answers that are the reference, but for case, punctuation and articles", "{:.1%}"),
        Metric("f1", "F1", "words that they share, as SQuAD counts them", "{:.1%}"),
    )
}
# What people choose, with what it measures. Losses need no answers.
FAMILIES = {
    "loss": ("loss", "perplexity", "accuracy"),
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "chrf": ("chrf",),
    "exact": ("exact",),
    "f1": ("f1",),
}
FAMILY_NAMES = {"loss": "Loss and perplexity", "rouge": "ROUGE-1, 2 and L", "chrf": "chrF", "exact": "Exact match", "f1": "F1"}
SCORED = "loss"
ALIASES = {"perplexity": "loss", "accuracy": "loss", "rouge1": "rouge", "rouge2": "rouge", "rougel": "rouge", "exact_match": "exact"}


@dataclass(frozen=True)
class Plan:
    """What an evaluation does.

    Args:
        metrics: keys of `FAMILIES`. rows: at most so many, drawn by the seed; 0 for all. held_out: only the rows that the training
            of one of the adapters kept for its own evaluation. max_tokens: of an answer. temperature: 0 is greedy.
    """

    metrics: tuple[str, ...] = tuple(FAMILIES)
    rows: int = 0
    held_out: bool = False
    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0

    @property
    def answers(self) -> bool:
        """Whether answers are written."""
        return any(metric != SCORED for metric in self.metrics)

    @property
    def scores(self) -> bool:
        """Whether losses are computed."""
        return SCORED in self.metrics

    @property
    def measured(self) -> list[str]:
        """Keys of `METRICS`, in their order."""
        return [key for family in FAMILIES if family in self.metrics for key in FAMILIES[family]]


def metric_of(key: str) -> Metric:
    """A metric by its key; one that another program measured is called as that calls it."""
    known = METRICS.get(key)
    return known or Metric(key, key, "measured by lm-eval", "{:.4f}", is_loss="perplexity" in key or "bits_per_byte" in key)


def ordered(keys: Iterable[str]) -> list[Metric]:
    """Metrics in the order in which they are told: ours, then others by name."""
    found = set(keys)
    return [metric_of(key) for key in (*(key for key in METRICS if key in found), *sorted(found - set(METRICS)))]


def parse_metrics(words: Iterable[str]) -> tuple[str, ...]:
    """The families that people named; all where they named none.

    Raises:
        InvalidInput: there is no such metric.
    """
    chosen = [ALIASES.get(word.strip().lower(), word.strip().lower()) for word in words if word.strip()]
    if unknown := next((word for word in chosen if word not in FAMILIES), None):
        raise InvalidInput(f"There is no metric {unknown!r}; choose among {', '.join(FAMILIES)}.")
    return tuple(family for family in FAMILIES if family in chosen or not chosen)


def checked(plan: Plan, voices: Sequence[str]) -> Plan:
    """The plan, once it can be done.

    Raises:
        InvalidInput: names the option and its range.
    """
    bounds = {"rows": (0, MOST_ROWS), "max_tokens": (1, MOST_TOKENS), "seed": (0, 2**31 - 1), "temperature": (0.0, 5.0)}
    for name, (low, high) in bounds.items():
        if not low <= getattr(plan, name) <= high:
            raise InvalidInput(f"The option {name} is {getattr(plan, name)}; choose one from {low} to {high:,}.")
    if not plan.metrics:
        raise InvalidInput(f"No metric is chosen; choose among {', '.join(FAMILIES)}.")
    if not voices:
        raise InvalidInput("No adapter is chosen; choose at least one, or the base.")
    if len(voices) > MOST_VOICES:
        raise InvalidInput(f"{len(voices)} adapters are chosen; an evaluation takes at most {MOST_VOICES}.")
    if twice := [name for name in dict.fromkeys(voices) if voices.count(name) > 1]:
        raise InvalidInput(f"{listed(twice)} is chosen twice; choose each voice once.")
    return plan
