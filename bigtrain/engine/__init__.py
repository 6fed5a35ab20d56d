"""DeepSpeed with a narrow interface: the rest of bigtrain sees an engine, a topology and fragments of state.

engine               forward, backward, update, evaluation, state: all that a run needs of DeepSpeed
  deepspeed_import     DeepSpeed imported without its side effects; deepspeed_config: its settings from ours
  requirements         what this machine can do
  construction         a model built in the shape that a ZeRO stage needs
topology             the ranks, their groups and sums, and how values go from rank to rank
optimizer            AdamW, Muon (muon, muon_rounds) and Lion (lion) by parameter group
schedule             the learning rate of a step
fragments            which piece of which parameter a rank owns, for checkpoints
  copies, held         copies of weights to compare, and the bytes of each kind of memory
precision            the dtype of each setting of `engine.precision`
"""

from bigtrain.engine.construction import construction, whole_parameters
from bigtrain.engine.copies import Part
from bigtrain.engine.engine import Engine
from bigtrain.engine.precision import COMPUTE_DTYPES
from bigtrain.engine.requirements import check_machine
from bigtrain.engine.schedule import learning_rate
from bigtrain.engine.topology import Topology, choose_device, connect, leave, start

__all__ = [
    "COMPUTE_DTYPES",
    "Engine",
    "Part",
    "Topology",
    "check_machine",
    "choose_device",
    "connect",
    "construction",
    "learning_rate",
    "leave",
    "start",
    "whole_parameters",
]
