"""What a run will need, take and cost, before it is queued: nothing here starts a process or imports PyTorch.

    devices.yaml -> devices.py --> network.py --+
    settings, ModelShapes -> workload.py -------+--> memory.py, step_time.py --> forecast.py <-- goodput.py
    parallel sizes -> layout.py ----------------+            ^
                                                      constants.py  (fitted by benchmarks/planner.py)

devices.py    datasheets, known ones and a user's own
network.py    seconds of a collective over a group of ranks
workload.py   what a model asks of devices: products, attention, kept activations, bytes of states
layout.py     parallel sizes, groups of ranks, what ZeRO divides
memory.py     bytes by kind for the rank that needs most
step_time.py  seconds of a step by part
communication.py  what ranks exchange in a step, and how much of it computation hides
forecast.py   whether it fits, tokens/s, MFU, hours, money, energy
constants.py  the few fitted numbers, each with its meaning
run_workload.py  a run's settings as a workload and a layout
search.py     which layout is fastest; what would fit
remedies.py   settings that save memory, cheapest first
planned.py    what `bigtrain plan` is asked, and what it answers
goodput.py    the share of a job's time that trains, between failures, saves and restarts
ladder_result.py  what a ladder of small runs has found
scaling_law.py  the law of loss that small runs follow, and what it says of larger ones
"""

from bigtrain.estimate.communication import Communication
from bigtrain.estimate.constants import FITTED, Constants
from bigtrain.estimate.devices import Device, device, device_names, known_device, read_datasheets
from bigtrain.estimate.forecast import Forecast, RunForecast, RunPlan, forecast, with_run
from bigtrain.estimate.goodput import Costs, Goodput, expected_goodput, optimal_interval
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
from bigtrain.estimate.layout import Group, Layout
from bigtrain.estimate.memory import MemoryForecast, forecast_memory
from bigtrain.estimate.network import NETWORKS_GBIT, Interconnect, interconnect
from bigtrain.estimate.planned import Machines, PlannedLayout, PlannedRun, Price, Wish, amount_of, plan
from bigtrain.estimate.remedies import Remedy, remedies
from bigtrain.estimate.run_workload import layout_of, workload_of
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
from bigtrain.estimate.step_time import StepForecast, forecast_step
from bigtrain.estimate.workload import (
    AttentionKernel,
    AttentionWork,
    BlockWork,
    Compute,
    Elementwise,
    Kept,
    Pass,
    Product,
    StateBytes,
    Workload,
    transformer,
)

__all__ = [
    "EXPONENTS",
    "FITTED",
    "FLOPS_PER_PARAMETER_AND_TOKEN",
    "NETWORKS_GBIT",
    "Allocation",
    "AttentionKernel",
    "AttentionWork",
    "BackTest",
    "BlockWork",
    "Communication",
    "Compute",
    "Constants",
    "Costs",
    "Counted",
    "Device",
    "Elementwise",
    "Forecast",
    "Goodput",
    "Group",
    "Interconnect",
    "Interval",
    "Kept",
    "LadderResult",
    "Layout",
    "Machines",
    "MemoryForecast",
    "OptimalSize",
    "Pass",
    "PendingLadder",
    "PlannedLayout",
    "PlannedRun",
    "Price",
    "Product",
    "Remedy",
    "RunForecast",
    "RunPlan",
    "RungResult",
    "ScalingLaw",
    "StateBytes",
    "StepForecast",
    "SweepPoint",
    "SweepResult",
    "SweptGrid",
    "TargetPrediction",
    "TrainedPoint",
    "Wish",
    "Workload",
    "amount_of",
    "bootstrap_laws",
    "device",
    "device_names",
    "expected_goodput",
    "fit_law",
    "forecast",
    "forecast_memory",
    "forecast_step",
    "interconnect",
    "interval",
    "known_device",
    "layout_of",
    "optimal_interval",
    "plan",
    "read_datasheets",
    "remedies",
    "transformer",
    "with_run",
    "workload_of",
]
