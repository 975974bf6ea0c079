"""How close an answer is to a reference. All but the loss; each number is of one row, and means are taken over rows.

ROUGE: rouge_score (Google Research), F-measure, with Porter's stemmer. chrF: sacrebleu's sentence chrF2. Exact match and F1:
as SQuAD 1.1's own script has them (Rajpurkar et al. 2016, arXiv 1606.05250).
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)


def normalised(text: str) -> list[str]:
    """Words in small letters, without punctuation and articles, as SQuAD compares them."""
    bare = "".join(char for char in text.lower() if char not in PUNCTUATION)
    return ARTICLES.sub(" ", bare).split()


def exact_match(answer: str, reference: str) -> float:
    """1 where they say the same, else 0."""
    return float(normalised(answer) == normalised(reference))


def token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall over words."""
    said, wanted = normalised(answer), normalised(reference)
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def rouge(answer: str, reference: str) -> dict[str, float]:
    """F-measures of words, pairs of words and the longest common sequence."""
    return {key: found.fmeasure for key, found in _rouge_scorer().score(reference, answer).items()}


def chrf(answer: str, reference: str) -> float:
    """chrF2, 0 to 100."""
    return float(_chrf_scorer().sentence_score(answer, [reference]).score)


MEASURES: dict[str, Callable[[str, str], dict[str, float]]] = {
    "rouge": rouge,
    "chrf": lambda answer, reference: {"chrf": chrf(answer, reference)},
    "exact": lambda answer, reference: {"exact": exact_match(answer, reference)},
    "f1": lambda answer, reference: {"f1": token_f1(answer, reference)},
}


def measure(families: Sequence[str], answer: str, reference: str) -> dict[str, float]:
    """The numbers of one answer, by metric."""
    found: dict[str, float] = {}
    for family in families:
        if family in MEASURES:
            found |= MEASURES[family](answer, reference)
    return found


class Tally:
    """What a voice has reached so far: sums over its rows."""

    def __init__(self) -> None:
        self.rows = self.errors = self.tokens = self.hits = 0
        self.nats = 0.0
        self._sums: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def add(self, nats: float | None, tokens: int, hits: int, scores: dict[str, Any], error: str) -> None:
        """One row more."""
        self.rows += 1
        self.errors += bool(error)
        if nats is not None:
            self.nats, self.tokens, self.hits = self.nats + nats, self.tokens + tokens, self.hits + hits
        for key, value in scores.items():
            self._sums[key] += value
            self._counts[key] += 1

    @property
    def values(self) -> dict[str, float]:
        """Every metric that there is anything of."""
        found = {key: self._sums[key] / count for key, count in self._counts.items()}
        if self.tokens:
            loss = self.nats / self.tokens
            found |= {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": self.hits / self.tokens}
        return found


@lru_cache(1)
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


@lru_cache(1)
def _chrf_scorer() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
