"""What a job's events say, step by step, and its drawing as HTML that follows the page's colours."""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from storage.records import EventRecord

Point = tuple[int, float]  # (step, value)
Place = TypeVar("Place", Point, tuple[float, float])
MAX_POINTS = 240
REMEMBERED = 2000
KINDS = ("progress", "eval", "samples", "checkpoint", "notice", "usage")


@dataclass(frozen=True)
class Series:
    """How one number of the progress is drawn: its title, its unit, what it is multiplied by, how its last value is written."""

    title: str
    unit: str = ""
    factor: float = 1.0
    form: str = "{:.2g}"


LOSS = "loss"
SMALL = {
    "learning_rate": Series("learning rate"),
    "grad_norm": Series("gradient norm"),
    "tokens_per_s": Series("speed", "tokens/s", form="{:,.0f}"),
    "memory_mb": Series("memory", "GB", 1 / 1024, "{:.1f}"),
}


@dataclass
class Curve:
    """What was read of one attempt of a job so far, and of the earlier attempts up to the step where it went on.

    Attributes:
        points: of each number in the progress events. evals: what evaluations measured, by step. samples: answers
            to the prompts that the user named, by step. kept: the newest step with a checkpoint. resumed_at: the
            step after which this attempt went on, 0 where it began at the start. usage: (seconds since 1970, cores,
            memory in MB), of all attempts.
    """

    after: int = 0
    attempt: int = 0
    points: dict[str, list[Point]] = field(default_factory=dict)
    evals: dict[int, dict[str, Any]] = field(default_factory=dict)
    samples: dict[int, list[dict[str, str]]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    kept: int = 0
    resumed_at: int = 0
    usage: list[tuple[float, float, float]] = field(default_factory=list)
    _earlier: "Curve | None" = None

    @property
    def train(self) -> list[Point]:
        """The training loss."""
        return self.points.get(LOSS, [])

    @property
    def held_out(self) -> list[Point]:
        """The held-out loss."""
        return [(step, float(data["loss"])) for step, data in self.evals.items()]

    def add(self, events: Iterable["EventRecord"], attempt: int) -> None:
        """Take what is new; what was said after `attempt` is of another curve."""
        for event in events:
            self.after = max(self.after, event.id)
            if event.attempt > attempt:
                continue
            if event.kind == "usage":
                self._use(event)
                continue
            if event.attempt != self.attempt:
                self._begin(event.attempt)
            self._take(event.kind, event.data)

    def _use(self, event: "EventRecord") -> None:
        self.usage.append((event.at, float(event.data.get("cores", 0.0)), float(event.data.get("memory_mb", 0.0))))
        if len(self.usage) > 2 * REMEMBERED:
            del self.usage[::2]

    def _begin(self, attempt: int) -> None:
        """Put what an earlier attempt said aside until it is known where this one goes on."""
        earlier = self._earlier or self  # an attempt that ended before its first step changed nothing
        self._earlier = Curve(points=earlier.points, evals=earlier.evals, samples=earlier.samples, kept=earlier.kept)
        self.attempt, self.points, self.evals, self.samples = attempt, {}, {}, {}
        self.notices, self.kept, self.resumed_at = [], 0, 0

    def _take(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "notice":
            self.notices.append(str(data["text"]))
            return
        step = int(data["step"])
        if self._earlier is not None:
            self._go_on(self._earlier, step)
        if kind == "progress":
            for key in (LOSS, *SMALL):
                if data.get(key) is not None:
                    points = self.points.setdefault(key, [])
                    points.append((step, float(data[key])))
                    if len(points) > 2 * REMEMBERED:  # a job of a million steps must not fill the memory of the page
                        points[:] = thinned(points, REMEMBERED)
        elif kind == "eval":
            self.evals[step] = data
        elif kind == "samples":
            self.samples[step] = data["items"]
        else:
            self.kept = step

    def _go_on(self, earlier: "Curve", step: int) -> None:
        """Keep of an earlier attempt what lies before the first step of this one."""
        self.points = {key: [p for p in points if p[0] < step] for key, points in earlier.points.items()}
        self.evals = {at: data for at, data in earlier.evals.items() if at < step}
        self.samples = {at: items for at, items in earlier.samples.items() if at < step}
        if self.train:
            self.resumed_at, self.kept = step - 1, earlier.kept
        self._earlier = None


class Curves:
    """Curves of the newest jobs, shared by all who look, so that every event is read from the database once.

    Args:
        read: gives a job's events after an id, of some kinds. keep: how many curves are remembered.
    """

    def __init__(self, read: Callable[[str, int, tuple[str, ...]], list["EventRecord"]], keep: int = 32) -> None:
        self._read, self._keep = read, keep
        self._curves: dict[tuple[str, int], Curve] = {}
        self._lock = threading.Lock()

    def of(self, job_id: str, attempt: int) -> Curve:
        """The curve of an attempt, up to date."""
        with self._lock:
            curve = self._curves.setdefault((job_id, attempt), Curve())
            curve.add(self._read(job_id, curve.after, KINDS), attempt)
            while len(self._curves) > self._keep:
                del self._curves[next(iter(self._curves))]
            return curve


def draw(curve: Curve, steps: int) -> str:
    """A figure: the training loss as a line, held-out losses as dots. Empty where there is nothing to draw yet."""
    line, dots = finite(curve.train), finite(curve.held_out)
    if len(line) + len(dots) < 2:
        return ""
    last = max(steps, *(step for step, _ in line + dots))
    low, high, ticks = scale([loss for _, loss in line + dots])
    marks = "".join(
        f'<span class="as-curve-dot" style="left:{100 * s / last:.2f}%;top:{100 * (high - v) / (high - low):.2f}%" '
        f'title="held-out loss {v:.3f} at step {s}"></span>'
        for s, v in dots
    )
    return (
        f'<figure class="as-curve" role="img" aria-label="{escape(summary(curve))}">'
        f'<div class="as-curve-plot">{grid(low, high, ticks)}{_line(line, last, low, high)}{marks}</div>'
        f'<div class="as-curve-x"><span>step 0</span><span>step {last:,}</span></div>'
        '<figcaption><span class="as-key-line"></span>training loss <span class="as-key-dot"></span>held-out loss'
        " <em>nats a token</em></figcaption></figure>"
    )


def draw_small(curve: Curve, steps: int) -> str:
    """Small figures of the other numbers: learning rate, gradient norm, speed, memory; those that were measured."""
    figures = [_small(series, curve.points.get(key, []), steps) for key, series in SMALL.items()]
    return f'<div class="as-curves">{"".join(figures)}</div>' if any(figures) else ""


def _small(series: Series, points: list[Point], steps: int) -> str:
    points = [(step, value * series.factor) for step, value in finite(points)]
    if len(points) < 2:
        return ""
    last = max(steps, points[-1][0])
    first, newest = (series.form.format(points[i][1]) for i in (0, -1))
    unit = f" {series.unit}" if series.unit else ""
    words = f"{series.title.capitalize()} by step: {first} to {newest}{unit}"
    return draw_line_small(series.title, points, f"{newest}{unit}", words, last)


def draw_line_small(title: str, points: Sequence[tuple[float, float]], newest: str, words: str, last: float = 0.0) -> str:
    """A small figure of at least two points.

    Args:
        newest: what is said of the last value. words: all of it, for who does not see it. last: the end of the axis.
    """
    low, high, ticks = scale([value for _, value in points], parts=2)
    return (
        f'<figure class="as-curve as-curve-small" role="img" aria-label="{escape(words)}">'
        f"<figcaption>{title}<em>{newest}</em></figcaption>"
        f'<div class="as-curve-plot">{grid(low, high, ticks)}{_line(points, max(last, points[-1][0]) or 1.0, low, high)}</div></figure>'
    )


def finite(points: list[Point]) -> list[Point]:
    """Those points that can be drawn."""
    return [point for point in points if math.isfinite(point[1])]


def grid(low: float, high: float, ticks: list[float]) -> str:
    """The lines behind a plot, with their values."""
    return "".join(f'<span class="as-curve-tick" style="top:{100 * (high - t) / (high - low):.2f}%"><b>{t:g}</b></span>' for t in ticks)


def places(points: Sequence[tuple[float, float]], last: float, low: float, high: float) -> str:
    """The points of a polyline in a box of 100 by 100."""
    return " ".join(f"{100 * s / last:.2f},{100 * (high - v) / (high - low):.2f}" for s, v in thinned(points))


def _line(points: Sequence[tuple[float, float]], last: float, low: float, high: float) -> str:
    return (
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline points="{places(points, last, low, high)}" vector-effect="non-scaling-stroke"/></svg>'
    )


def summary(curve: Curve) -> str:
    """The loss in words."""
    parts = []
    if curve.train:
        parts.append(f"training loss {curve.train[0][1]:.2f} to {curve.train[-1][1]:.2f}")
    if curve.held_out:
        parts.append(f"held-out loss {curve.held_out[0][1]:.2f} to {curve.held_out[-1][1]:.2f}")
    return "Loss by step: " + ", ".join(parts)


def thinned(points: Sequence[Place], most: int = MAX_POINTS) -> list[Place]:
    """At most `most` points, means of equal stretches, so that a long curve costs no more than a short one."""
    if len(points) <= most:
        return list(points)
    width = len(points) / most
    groups = [points[int(i * width) : int((i + 1) * width)] for i in range(most)]
    return [(group[-1][0], sum(v for _, v in group) / len(group)) for group in groups]


def scale(values: list[float], parts: int = 3) -> tuple[float, float, list[float]]:
    """(low, high, ticks): round numbers around the values, at least `parts` steps apart or a little less."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    raw = span / parts
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    bottom, top = math.floor(low / step) * step, math.ceil(high / step) * step
    top = top if top > bottom else bottom + step
    return bottom, top, [float(f"{bottom + i * step:.9g}") for i in range(round((top - bottom) / step) + 1)]
