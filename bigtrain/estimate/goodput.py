"""Goodput: the share of a job's time that goes into steps which count, as a formula.

A job trains for t seconds, stands still for d while a save takes its copy, trains on, and the save is durable b seconds
after it began. Failures of the whole job come at random, one in M seconds on average (Poisson: for N devices of one
failure in H hours each, M = H / N). A failure is noticed after D, and R later the first step of the next start begins,
unless another failure comes before it. What was trained since the last durable save is trained again::

    |<-- t -->|d|<-- t -->|d|<-- t --  X        .. D ..|...... R ......|<-- t -->|
                 ... durable             failure         noticed          first step, back at the last durable save
                 <-- b -->

From the first step of a start to its failure is an exponential time T, whatever went before. The n-th save of a start
is durable n (t + d) + w seconds after its first step, w = b - d, so a start brings as many intervals as of these times
are below T. With a = 1 / M:

    saves a start brings          E[n] = sum over n of P(T > n (t + d) + w) = exp(-a w) / (exp(a (t + d)) - 1)
    from a failure to a step      X = (D + (1 - exp(-a R)) / a) exp(a R)
    goodput                       t E[n] / (M + X)

With w = 0 and D = 0 this is equation 20 of J. T. Daly, "A higher order estimate of the optimum checkpoint interval for
restart dumps", Future Generation Computer Systems 22 (2006). Neither w nor X depends on t, so neither moves the best
interval: it is Daly's, and where d is small against M the sqrt(2 d M) of J. W. Young, "A first order approximation to
the optimum checkpoint interval", Communications of the ACM 17 (1974).

A test compares the formula with a simulation, `benchmarks/goodput.py` with a run whose ranks are killed at random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """What saving and failing cost a job, in seconds."""

    stall_seconds: float
    """d: what the training stands still for at each save."""
    durable_seconds: float
    """b: from the start of a save until a failure can no longer take it away; at least d."""
    detection_seconds: float
    """D: from a failure until somebody knows of it."""
    restart_seconds: float
    """R: from there to the start of the next step: machines, processes, imports, the checkpoint."""


@dataclass(frozen=True)
class Goodput:
    """Where a job's time goes, in shares that add up to one."""

    training: float
    """Steps that count: the goodput."""
    saving: float
    """Standing still for saves that were of use."""
    repeated: float
    """Steps that had to be done again, with the saves between them that came to nothing."""
    detection: float
    """Between a failure and its being noticed."""
    restart: float
    """Between that and the next step."""


def optimal_interval(save_seconds: float, mtbf_seconds: float) -> float:
    """Seconds of training between the end of one save and the start of the next (Daly, 2006, equation 37).

    Args:
        save_seconds: d, what a save holds the training up for.
        mtbf_seconds: M, the mean time between failures of the whole job.
    """
    if save_seconds >= 2 * mtbf_seconds:
        return mtbf_seconds
    share = save_seconds / (2 * mtbf_seconds)
    return math.sqrt(2 * save_seconds * mtbf_seconds) * (1 + math.sqrt(share) / 3 + share / 9) - save_seconds


def expected_goodput(costs: Costs, interval_seconds: float, mtbf_seconds: float) -> Goodput:
    """Where the time of a long job goes.

    Args:
        costs: what saving and failing cost.
        interval_seconds: t, training between the end of one save and the start of the next.
        mtbf_seconds: M, the mean time between failures of the whole job.
    """
    rate = 1 / mtbf_seconds
    pending = max(costs.durable_seconds - costs.stall_seconds, 0.0)
    saves = math.exp(-rate * pending) / math.expm1(rate * (interval_seconds + costs.stall_seconds))
    attempts = math.exp(rate * costs.restart_seconds)  # to restart, until one is not struck by the next failure
    detection = costs.detection_seconds * attempts
    restart = -math.expm1(-rate * costs.restart_seconds) / rate * attempts
    cycle = mtbf_seconds + detection + restart
    training, saving = interval_seconds * saves, costs.stall_seconds * saves
    return Goodput(
        training=training / cycle,
        saving=saving / cycle,
        repeated=(mtbf_seconds - training - saving) / cycle,
        detection=detection / cycle,
        restart=restart / cycle,
    )
