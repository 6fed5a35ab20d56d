"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from bigtrain.config.settings import ScheduleSettings


def learning_rate(step: int, total_steps: int, schedule: ScheduleSettings, peak: float) -> float:
    """The learning rate of optimizer step `step`, counted from 1 as in metrics.jsonl.

    The rate rises linearly from 0 (before step 1) to its peak on step `warmup_steps`, and reaches the end of its
    decay on the last step, total_steps. It stays there after the end of the schedule: no schedule rises again.

    With w = warmup_steps and p the progress from 0 (step w, the peak) to 1 (the last step):

    - constant:      peak
    - linear:        peak * (1 - (1 - r) * p),                       r = min_lr_ratio
    - cosine:        peak * (r + (1 - r) * (1 + cos(pi * p)) / 2)    (Loshchilov and Hutter, 2017, eq. 5)
    - wsd:           peak, then linear over the last decay_steps     (Hu et al., 2024, section 4)
    - inverse_sqrt:  peak * sqrt(w / step), w at least 1             (Vaswani et al., 2017, section 5.3)
    """
    warmup = schedule.warmup_steps
    step = min(step, total_steps)
    if step < warmup:
        return peak * step / warmup
    if schedule.name == "constant":
        return peak
    if schedule.name == "inverse_sqrt":
        reference = max(warmup, 1)
        return peak * math.sqrt(reference / max(step, reference))

    start = warmup
    if schedule.name == "wsd":
        decay = schedule.decay_steps or max(1, total_steps // 5)
        start = max(warmup, total_steps - decay)
    progress = max(0, step - start) / max(1, total_steps - start)
    if schedule.name == "cosine":
        remaining = (1 + math.cos(math.pi * progress)) / 2
    else:
        remaining = 1 - progress
    ratio = schedule.min_lr_ratio
    return peak * (ratio + (1 - ratio) * remaining)
