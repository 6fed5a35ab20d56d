"""What a run will cost, before it is queued: nothing here starts a process or imports PyTorch.

goodput.py      the share of a job's time that trains, between failures, saves and restarts
scaling_law.py  the law of loss that small runs follow, and what it says of larger ones
ladder_result.py  what a ladder of such runs has found
"""

from bigtrain.estimate.goodput import optimal_interval
from bigtrain.estimate.ladder_result import (
    BackTest,
    Counted,
    LadderResult,
    OptimalSize,
    PendingLadder,
    RungResult,
    SweepPoint,
    SweepResult,
    SweptGrid,
    TargetPrediction,
)
from bigtrain.estimate.scaling_law import (
    EXPONENTS,
    FLOPS_PER_PARAMETER_AND_TOKEN,
    Allocation,
    Interval,
    ScalingLaw,
    TrainedPoint,
    bootstrap_laws,
    fit_law,
    interval,
)

__all__ = [
    "EXPONENTS",
    "FLOPS_PER_PARAMETER_AND_TOKEN",
    "Allocation",
    "BackTest",
    "Counted",
    "Interval",
    "LadderResult",
    "OptimalSize",
    "PendingLadder",
    "RungResult",
    "ScalingLaw",
    "SweepPoint",
    "SweepResult",
    "SweptGrid",
    "TargetPrediction",
    "TrainedPoint",
    "bootstrap_laws",
    "fit_law",
    "interval",
    "optimal_interval",
]
