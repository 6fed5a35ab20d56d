"""Who does the work of a build: one interface, and nothing in a piece of work knows which one it is.

    executor.py     BuildExecutor.map_in_order(function, items): results in order, failures tried again, poison isolated
      |
      +-- inline.py        this process
      +-- processes.py     processes of this machine; the default
      +-- ray_cluster.py   the machines of a Ray cluster (extra `ray`)

    task.py         the other side: runs a function for an item in a worker, and records which document it is at
    opened.py       which of them `--on` names

Results are small. Data go through a `WorkFolder`, where any worker finds them.
"""

from bigtrain.data.build.execute.executor import BuildExecutor, FailurePolicy
from bigtrain.data.build.execute.inline import Inline
from bigtrain.data.build.execute.opened import open_executor
from bigtrain.data.build.execute.processes import Processes
from bigtrain.data.build.execute.task import is_careful, is_poison, note, noted_reading

__all__ = [
    "BuildExecutor",
    "FailurePolicy",
    "Inline",
    "Processes",
    "is_careful",
    "is_poison",
    "note",
    "noted_reading",
    "open_executor",
]
