"""Detectors that watch a run while it trains.

spikes          losses and gradient norms that are outliers, and whether the run has to respond
watchdog        a run that hangs: it is diagnosed, and every rank ends
  heartbeat       how far a rank's loop has come
  hang            the diagnosis: which rank the others wait for, and where it is
  thread_dump     what each thread of a rank is doing
stragglers      ranks that are slower than the others
replicas        ranks whose copies of the weights are no longer equal
  fingerprint     64 bits that differ when the weights differ
out_of_memory   work that does not fit into memory, and which settings would make it fit
"""

from bigtrain.health.heartbeat import Heartbeat, LoopPhase
from bigtrain.health.out_of_memory import enough_memory
from bigtrain.health.replicas import compare, corruption
from bigtrain.health.spikes import Assessment, Guard
from bigtrain.health.stragglers import OwnWork
from bigtrain.health.watchdog import Watchdog

__all__ = [
    "Assessment",
    "Guard",
    "Heartbeat",
    "LoopPhase",
    "OwnWork",
    "Watchdog",
    "compare",
    "corruption",
    "enough_memory",
]
