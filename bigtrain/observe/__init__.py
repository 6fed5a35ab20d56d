"""The speed of a run, and where its metrics and log lines go.

meter           seconds, tokens and model FLOP utilisation (MFU) of each step
  peak_flops      the FLOP/s that count as 100%
live_storages   what a forward pass leaves in memory
run_forecast    what the planner expects of it
tracking        the tracker: Weights & Biases
  wandb_choice    what W&B's own variables and settings files ask for
  wandb_thread    its thread, so that no outage stops a run
terminal        the log, in a file for each rank and on the terminal of rank 0
"""

from bigtrain.observe.live_storages import LiveStorages
from bigtrain.observe.meter import FORWARD, FORWARD_BACKWARD, OPTIMIZER, TRACE_PREFIX, Meter, Reading, StageFlops
from bigtrain.observe.peak_flops import (
    MATMUL_SIZES,
    cpu_name,
    datasheet_flops,
    kind_of,
    measure_matmul_peak,
    peak_of,
    peak_of_all,
)
from bigtrain.observe.run_forecast import forecast_here, peak_memory
from bigtrain.observe.terminal import log_to
from bigtrain.observe.tracking import ALERTS, Tracker, describe_details
from bigtrain.observe.wandb_choice import wandb_mode, wandb_server

__all__ = [
    "ALERTS",
    "FORWARD",
    "FORWARD_BACKWARD",
    "MATMUL_SIZES",
    "OPTIMIZER",
    "TRACE_PREFIX",
    "LiveStorages",
    "Meter",
    "Reading",
    "StageFlops",
    "Tracker",
    "cpu_name",
    "datasheet_flops",
    "describe_details",
    "forecast_here",
    "kind_of",
    "log_to",
    "measure_matmul_peak",
    "peak_memory",
    "peak_of",
    "peak_of_all",
    "wandb_mode",
    "wandb_server",
]
