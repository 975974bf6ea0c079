"""What a job takes of the machine while it runs, as two small figures over time. Pure."""

from collections.abc import Sequence
from itertools import pairwise

from studio.ui.curve import draw_line_small
from studio.ui.present import duration

Usage = tuple[float, float, float]  # (seconds since 1970, cores, memory in MB)
LONGEST_GAP_S = 60.0  # what lies between two attempts is not drawn as time


def draw_usage(usage: Sequence[Usage], live: bool) -> str:
    """Cores and memory; empty where there are not two measurements yet. `live`: the last one is of now."""
    if len(usage) < 2:
        return ""
    times = [0.0]
    for (before, _, _), (at, _, _) in pairwise(usage):
        times.append(times[-1] + min(max(0.0, at - before), LONGEST_GAP_S))
    cores = [(at, used[1]) for at, used in zip(times, usage, strict=True)]
    memory = [(at, used[2] / 1024) for at, used in zip(times, usage, strict=True)]
    peak = max(value for _, value in memory)
    over, when = duration(times[-1]), "now" if live else "at last"
    return (
        f'<h4 class="as-section">On the machine, over {over}</h4><div class="as-curves">'
        f"{draw_line_small('cores', cores, f'{cores[-1][1]:.1f} {when}', f'Cores over {over}')}"
        f"{draw_line_small('memory', memory, f'{memory[-1][1]:.1f} GB {when}, at most {peak:.1f}', f'Memory over {over}, in GB')}</div>"
    )
