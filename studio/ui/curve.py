"""The loss curve: what a job's events say, and its drawing as HTML that follows the page's colours."""

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.records import EventRecord

Point = tuple[int, float]  # (step, loss)
MAX_POINTS = 240
KINDS = ("progress", "eval", "notice")


@dataclass
class Curve:
    """What was read of one attempt of a job so far."""

    after: int = 0
    train: list[Point] = field(default_factory=list)
    held_out: list[Point] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def add(self, events: Iterable["EventRecord"], attempt: int) -> None:
        """Take what is new; what an earlier attempt said is skipped."""
        for event in events:
            self.after = max(self.after, event.id)
            if event.attempt != attempt:
                continue
            if event.kind == "notice":
                self.notices.append(str(event.data["text"]))
            else:
                points = self.train if event.kind == "progress" else self.held_out
                points.append((int(event.data["step"]), float(event.data["loss"])))


class Curves:
    """Curves of the newest jobs, shared by all who look, so that every event is read from the database once.

    Args:
        read: gives a job's events after an id, of some kinds. keep: how many curves are remembered.
    """

    def __init__(self, read: Callable[[str, int, tuple[str, ...]], list["EventRecord"]], keep: int = 16) -> None:
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
    points = [p for p in curve.train + curve.held_out if math.isfinite(p[1])]
    if len(points) < 2:
        return ""
    last = max(steps, *(step for step, _ in points))
    low, high, ticks = scale([loss for _, loss in points])

    def x(step: int) -> float:
        return 100 * step / last

    def y(loss: float) -> float:
        return 100 * (high - loss) / (high - low)

    line = " ".join(f"{x(s):.2f},{y(v):.2f}" for s, v in thinned([p for p in curve.train if math.isfinite(p[1])]))
    grid = "".join(f'<span class="as-curve-tick" style="top:{y(t):.2f}%"><b>{t:g}</b></span>' for t in ticks)
    dots = "".join(
        f'<span class="as-curve-dot" style="left:{x(s):.2f}%;top:{y(v):.2f}%" title="held-out loss {v:.3f} at step {s}"></span>'
        for s, v in curve.held_out
        if math.isfinite(v)
    )
    return (
        f'<figure class="as-curve" role="img" aria-label="{escape(summary(curve))}">'
        f'<div class="as-curve-plot">{grid}'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline points="{line}" vector-effect="non-scaling-stroke"/></svg>{dots}</div>'
        f'<div class="as-curve-x"><span>step 0</span><span>step {last}</span></div>'
        '<figcaption><span class="as-key-line"></span>training loss <span class="as-key-dot"></span>held-out loss'
        " <em>nats a token</em></figcaption></figure>"
    )


def summary(curve: Curve) -> str:
    """The curve in words."""
    parts = []
    if curve.train:
        parts.append(f"training loss {curve.train[0][1]:.2f} to {curve.train[-1][1]:.2f}")
    if curve.held_out:
        parts.append(f"held-out loss {curve.held_out[0][1]:.2f} to {curve.held_out[-1][1]:.2f}")
    return "Loss by step: " + ", ".join(parts)


def thinned(points: list[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points, means of equal stretches, so that a long curve costs no more than a short one."""
    if len(points) <= most:
        return points
    width = len(points) / most
    groups = [points[int(i * width) : int((i + 1) * width)] for i in range(most)]
    return [(group[-1][0], sum(v for _, v in group) / len(group)) for group in groups]


def scale(values: list[float]) -> tuple[float, float, list[float]]:
    """(low, high, ticks): round numbers around the values, about four ticks."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    raw = span / 3
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    bottom, top = math.floor(low / step) * step, math.ceil(high / step) * step
    top = top if top > bottom else bottom + step
    return bottom, top, [round(bottom + i * step, 10) for i in range(round((top - bottom) / step) + 1)]
