"""The learning rate as a pure function of the position in the schedule: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from bigtrain.config import ScheduleSettings


def learning_rate(position: int, length: int, schedule: ScheduleSettings, peak: float) -> float:
    """The learning rate of the optimizer step at whose end the schedule stands at `position` of `length`.

    Both count what `schedule.by` says: steps, the first step's position being 1, or tokens. The rate is the same
    whichever it is wherever all steps have equally many tokens, and it depends on nothing else, so no number of
    resumes changes it.

    The rate rises linearly from 0 (position 0, before the first step) to its peak at the end of the warm-up, and
    reaches the end of its decay on the last step, at position `length`. It stays there: no schedule rises again.

    With w the length of the warm-up and p the progress from 0 (at w, the peak) to 1 (at `length`):

    - constant:      peak
    - linear:        peak * (1 - (1 - r) * p),                       r = min_lr_ratio
    - cosine:        peak * (r + (1 - r) * (1 + cos(pi * p)) / 2)    (Loshchilov and Hutter, 2017, eq. 5)
    - wsd:           peak, then linear over the decay, by default the last fifth   (Hu et al., 2024, section 4)
    - inverse_sqrt:  peak * sqrt(w / position); without a warm-up 1 takes the place of w  (Vaswani et al., 2017,
                     section 5.3)
    """
    warmup = schedule.warmup
    position = min(position, length)
    if position < warmup:
        return peak * position / warmup
    if schedule.name == "constant":
        return peak
    if schedule.name == "inverse_sqrt":
        reference = max(warmup, 1)
        return peak * math.sqrt(reference / max(position, reference))

    start: float = warmup
    if schedule.name == "wsd":
        start = max(warmup, length - (schedule.decay or length / 5))
    progress = max(0.0, position - start) / (length - start) if length > start else 0.0
    if schedule.name == "cosine":
        remaining = (1 + math.cos(math.pi * progress)) / 2
    else:
        remaining = 1 - progress
    ratio = schedule.min_lr_ratio
    return peak * (ratio + (1 - ratio) * remaining)
