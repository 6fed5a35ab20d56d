"""bigtrain: distributed pre-training of large language models.

The packages, top layer first. Imports go down only; import-linter checks it, exhaustively::

    cli          the commands: each parses, calls one function of a package below, prints
    trials       training that is started to learn something: replay, profile, verify-resume
    train        one training run: the loop, its set-up, a step, when to save, what to do about an anomaly
    doctor       preflight checks            report     pages that people read
    submit       Slurm and Kubernetes jobs   launcher   torchrun with restarts
    health       watches a run: spikes, hangs, stragglers, corrupted replicas, out of memory
    trained      uses a trained model: evaluate, generate, export, import
    observe      measures a run: meter, peak FLOP/s, trackers, log
    estimate     what a run will cost; without PyTorch
    convert      formats of other tools      rundir     the folder of a run, readable without PyTorch
    engine       DeepSpeed with a narrow interface: topology, optimizer, schedule, step
    checkpoint   topology-free checkpoints: write, commit, verify, load
    model        the models in plain PyTorch      data   text -> tokens -> the batches of a step
    config       the typed tree of settings, YAML, overrides
    base         exit statuses, errors, faults on order, clocks, units; imports no other package

Start reading at `train/loop.py`.
"""

import os
import sys


def _without_working_directory() -> None:
    """Keep a user's secrets.py, statistics.py or wandb.py in the working directory from replacing the real module.

    `python -m` looks there first. It is looked at last, and only where bigtrain itself is found nowhere else. Processes
    that this one starts do the same, by PYTHONSAFEPATH.
    """
    if sys.argv[:1] != ["-m"] or sys.flags.safe_path or not sys.path:
        return
    directory = sys.path.pop(0)
    if any(finder.find_spec("bigtrain", None) for finder in sys.meta_path):
        os.environ["PYTHONSAFEPATH"] = "1"
    else:
        sys.path.append(directory)


_without_working_directory()

from bigtrain.base.version import __version__  # noqa: E402

__all__ = ["__version__"]
