"""What a run will cost, before it is queued: nothing here starts a process or imports PyTorch.

goodput.py    the share of a job's time that trains, between failures, saves and restarts
"""

from bigtrain.estimate.goodput import optimal_interval

__all__ = ["optimal_interval"]
