"""What a run will cost, before it is queued: nothing here starts a process or imports PyTorch.

goodput.py      the share of a job's time that trains, between failures, saves and restarts
scaling_law.py  the law of loss that small runs follow, and what it says of larger ones
"""

from bigtrain.estimate.goodput import optimal_interval
from bigtrain.estimate.scaling_law import (
    Allocation,
    Interval,
    ScalingLaw,
    TrainedPoint,
    bootstrap_laws,
    fit_law,
    interval,
)

__all__ = [
    "Allocation",
    "Interval",
    "ScalingLaw",
    "TrainedPoint",
    "bootstrap_laws",
    "fit_law",
    "interval",
    "optimal_interval",
]
