"""What a dataset is like for one base, before a minute is trained: lengths, what is trained, repetitions, personal data, languages.

One pass over the rows counts; rows that look alike are fetched again and compared. Texts are not kept, so memory is about
400 bytes a row.
"""

from array import array
from collections.abc import Callable, Collection
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from studio.datasets.duplicates import Fingerprints, normalised, short_hash
from studio.datasets.findings import (
    BEHIND,
    CUT,
    HOLLOW,
    KEPT,
    LEFT_OUT,
    NOT_RENDERED,
    UNTRAINED,
    Facts,
    Finding,
    all_findings,
    repeated,
)
from studio.datasets.forms import Conversation
from studio.datasets.languages import guess_languages, in_sample, shares, telling_text
from studio.datasets.passes import Cancelled, Fetch, Progress, Watch, never, slices, unwatched
from studio.datasets.privacy import find_personal
from studio.datasets.rendering import Example, Renderer
from studio.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Cancelled", "Finding", "Report", "make_report"]

LONGEST_CONTEXT = 131_072
BINS = 30
HeldOut = Collection[int] | Callable[[int], Collection[int]]


@dataclass(frozen=True)
class Report:
    """A dataset as one base sees it. All lengths are in tokens.

    `tokens` and the lengths of rows are counted before anything is cut. `cut_tokens` are lost: behind max_length, or in rows
    that are left out. `trained_tokens` are in the loss, of what is left, and `trained_share` is their share of what is left.
    `truncated` rows are cut, `dropped` ones left out, as the training counts them. `histogram` has (from, below, rows).
    `languages` has the share of each, by ISO 639-1 code, of the rows that were looked at. `personal` has rows by kind.
    `exact_duplicates` and `near_duplicates` are rows that would go, each counted once; `overlap` counts held-out rows.
    `removable` has all rows that an action of a finding removes, by the action, where it names rows.
    `left` are the lengths of the rows that are trained or held out, in order and as they are cut; they are not in the JSON.
    """

    rows: int
    turns: int
    tokens: int
    trained_tokens: int
    trained_share: float
    shortest: int
    median: int
    p95: int
    longest: int
    histogram: list[tuple[int, int, int]]
    max_length: int
    truncated: int
    dropped: int
    cut_tokens: int
    languages: dict[str, float]
    personal: dict[str, int]
    exact_duplicates: int
    near_duplicates: int
    overlap: int
    findings: list[Finding]
    removable: dict[str, list[int]]
    left: list[int] = field(default_factory=list, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: value for key, value in asdict(self).items() if key != "left"}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Report":
        """What `to_dict` gave, also after a way through JSON."""
        bins = [(int(start), int(below), int(rows)) for start, below, rows in data["histogram"]]
        return cls(**{**data, "histogram": bins, "findings": [Finding(**finding) for finding in data["findings"]]})


def make_report(
    count: int,
    fetch: Fetch,
    tokenizer: Any,
    *,
    max_length: int = 512,
    over_length: Literal["truncate", "drop"] = "truncate",
    held_out: HeldOut = (),
    progress: Progress = unwatched,
    cancelled: Callable[[], bool] = never,
) -> Report:
    """Read a whole dataset and say what there is to know before training on it.

    Args:
        count: rows of the dataset. fetch: (offset, limit) → the rows there. max_length, over_length: as in training.
        held_out: the rows that training holds out, by their index in the dataset. Or, because training leaves rows out
            before it chooses, a function that is told how many rows are left and gives places among these.
        progress: is told a share from 0 to 1 and what is being done, several times a second. cancelled: whether to stop.

    Raises:
        Cancelled: `cancelled` said so.
    """
    watch = Watch(progress, cancelled)
    tally = _Tally(tokenizer, max_length, over_length, count)
    with ThreadPoolExecutor(1) as helper:
        for offset, rows in slices(count, fetch, watch.part(0, 0.8), "reading rows"):
            tally.add(offset, rows, helper)
    facts = tally.facts(fetch)
    facts.by_language = guess_languages(tally.samples, watch.part(0.8, 0.85))
    facts.languages = shares(facts.by_language)
    facts.near = tally.prints.near_groups(fetch, watch.part(0.85, 0.95))
    left = facts.rows_in(KEPT, CUT, UNTRAINED)
    facts.held_out = _held_rows(held_out, left)
    held = set(facts.held_out)
    facts.overlap = tally.prints.overlap([row for row in left if row not in held], facts.held_out, fetch, watch.part(0.95, 1))
    watch.at(1.0, "done")
    return _summary(facts, tally.turns)


class _Tally:
    """Counts of the rows so far; they come in order."""

    def __init__(self, tokenizer: Any, max_length: int, over_length: str, count: int) -> None:
        self.tokenizer, self.max_length, self.over_length, self.count = tokenizer, max_length, over_length, count
        self.renderer = Renderer(tokenizer)
        self.prints = Fingerprints()
        self.turns = 0
        self.lengths, self.trained, self.state = array("q"), array("q"), array("B")
        self.answers, self.answer_rows = array("Q"), array("q")
        self.personal: dict[str, list[int]] = {}
        self.samples: list[tuple[int, str]] = []
        self.refusal = ""

    def add(self, offset: int, rows: list[Conversation], helper: Executor) -> None:
        """Take the next rows. They are rendered in the helper's thread while this one reads their text: making tokens
        needs no interpreter, so both go on at once."""
        rendering = helper.submit(self.renderer.render_each, rows)
        self._look_at_all(offset, rows)
        for example in rendering.result():
            self._measure(example)

    def _look_at_all(self, offset: int, rows: list[Conversation]) -> None:
        self.prints.add(rows)
        for row, conversation in enumerate(rows, offset):
            self.turns += len(conversation)
            self._look(row, conversation)

    def _measure(self, example: Example | InvalidInput) -> None:
        length, trained, state = 0, 0, NOT_RENDERED
        if isinstance(example, InvalidInput):
            self.refusal = self.refusal or str(example)
        else:
            length = len(example.token_ids)
            # The first token is never predicted.
            trained = example.trained[1 : self.max_length].count(True)
            if length <= self.max_length:
                state = KEPT if trained else UNTRAINED
            elif True not in example.trained[1:]:
                state = HOLLOW
            elif self.over_length == "drop":
                state, trained = LEFT_OUT, 0
            else:
                state = CUT if trained else BEHIND
        self.lengths.append(length)
        self.trained.append(trained)
        self.state.append(state)

    def _look(self, row: int, conversation: Conversation) -> None:
        """What can be told of a row from its text alone."""
        kinds: set[str] = set()
        for turn in conversation:
            kinds.update(span.kind for span in find_personal(turn["content"]))
            if turn["role"] == "assistant":
                self.answers.append(short_hash(normalised(turn["content"])))
                self.answer_rows.append(row)
        for kind in kinds:
            self.personal.setdefault(kind, []).append(row)
        if in_sample(row, self.count):
            text = telling_text(conversation)
            if text:
                self.samples.append((row, text))

    def facts(self, fetch: Fetch) -> Facts:
        """What was counted, but for what needs a second look at rows."""
        import numpy as np

        text, rows = self._same_answer(fetch)
        return Facts(
            max_length=self.max_length,
            longest_context=min(int(getattr(self.tokenizer, "model_max_length", LONGEST_CONTEXT)), LONGEST_CONTEXT),
            lengths=np.array(self.lengths, dtype=np.int64),
            trained=np.array(self.trained, dtype=np.int64),
            state=np.array(self.state, dtype=np.uint8),
            refusal=self.refusal,
            exact=self.prints.exact_groups(),
            personal=self.personal,
            answers=len(self.answers),
            same_answer=text,
            same_answer_rows=rows,
        )

    def _same_answer(self, fetch: Fetch) -> tuple[str, list[int]]:
        """The most frequent answer, and for each time that it is given the row."""
        import numpy as np

        if not self.answers:
            return "", []
        answers = np.array(self.answers, dtype=np.uint64)
        values, counts = np.unique(answers, return_counts=True)
        value = values[counts.argmax()]
        rows: list[int] = np.array(self.answer_rows)[answers == value].tolist()
        answer = (turn["content"] for turn in fetch(rows[0], 1)[0] if short_hash(normalised(turn["content"])) == int(value))
        return " ".join(next(answer).split()), rows


def _held_rows(held_out: HeldOut, left: list[int]) -> list[int]:
    if callable(held_out):
        return sorted(left[place] for place in held_out(len(left)))
    return sorted(set(held_out) & set(left))


def _summary(facts: Facts, turns: int) -> Report:
    import numpy as np

    lengths = facts.lengths[facts.state != NOT_RENDERED]
    left = (facts.state == KEPT) | (facts.state == CUT) | (facts.state == UNTRAINED)
    read = facts.lengths[left].clip(max=facts.max_length)
    tokens, seen = int(lengths.sum()), int(read.sum())
    trained = int(facts.trained.sum())
    quantiles = np.quantile(lengths, [0, 0.5, 0.95, 1], method="inverted_cdf").tolist() if len(lengths) else [0, 0, 0, 0]
    exact = len(repeated(facts.exact))
    return Report(
        rows=facts.count,
        turns=turns,
        tokens=tokens,
        trained_tokens=trained,
        trained_share=trained / seen if seen else 0.0,
        shortest=int(quantiles[0]),
        median=int(quantiles[1]),
        p95=int(quantiles[2]),
        longest=int(quantiles[3]),
        histogram=histogram(lengths),
        max_length=facts.max_length,
        truncated=len(facts.rows_in(CUT)),
        dropped=len(facts.rows_in(LEFT_OUT, BEHIND, HOLLOW)),
        cut_tokens=tokens - seen,
        languages=facts.languages,
        personal={kind: len(rows) for kind, rows in sorted(facts.personal.items())},
        exact_duplicates=exact,
        near_duplicates=max(len(repeated(facts.near)) - exact, 0),
        overlap=len(facts.overlap),
        findings=all_findings(facts),
        removable={
            "drop-untrained": facts.rows_in(UNTRAINED, HOLLOW),
            "drop-overlap": sorted(held for held, _ in facts.overlap),
        },
        left=read.tolist(),
    )


def histogram(lengths: "NDArray[np.int64]") -> list[tuple[int, int, int]]:
    """(from, below, rows) in at most about 30 bins of one round width; a last, wider one takes a long tail."""
    import numpy as np

    if not len(lengths):
        return []
    longest, usual = int(lengths.max()), int(np.quantile(lengths, 0.99))
    reach = longest if longest <= 3 * usual else usual
    width = next(width for power in range(12) for width in (10**power, 2 * 10**power, 5 * 10**power) if reach / width < BINS)
    edges = [width * i for i in range(reach // width + 2)]
    if edges[-1] <= longest:
        edges.append((longest // width + 1) * width)
    counts, _ = np.histogram(lengths, bins=edges)
    return list(zip(edges[:-1], edges[1:], counts.tolist(), strict=True))
