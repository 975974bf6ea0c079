"""The learning rate's shape: a linear rise, then one of four falls.

The factor is never zero at a step that is taken, so no row is computed for nothing: step k of n has the factor that
transformers' schedules give at index k of n + 1 steps. Without a warm-up that is their factor at index k - 1 of n.
"""

import math

DECAY_SHARE = 0.2  # of all steps, at the end, with wsd


def factor(schedule: str, step: int, total: int, warmup: float) -> float:
    """What the peak of the learning rate is multiplied by.

    Args:
        schedule: cosine (Loshchilov & Hutter 2016, arXiv 1608.03983), linear, constant, or wsd: warm-up, stable,
            decay (Hu et al. 2024, arXiv 2404.06395). step: from 1 to `total`. warmup: share of the steps that rise.
    """
    warm = round(total * warmup)
    if step <= warm:
        return step / warm
    after_peak = total - max(warm, 1)
    falling = {"constant": 0, "wsd": min(round(total * DECAY_SHARE), after_peak)}.get(schedule, after_peak)
    fallen = max(0, step - (total - falling)) / (falling + 1)
    return 0.5 * (1.0 + math.cos(math.pi * fallen)) if schedule == "cosine" else 1.0 - fallen
