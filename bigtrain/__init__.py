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
    model        the decoder in plain PyTorch     data   text -> tokens -> the batches of a step
    config       the typed tree of settings, YAML, overrides
    base         exit statuses, errors, faults on order, clocks, units; imports no other package

Start reading at `train/loop.py`.
"""

from bigtrain.base.version import __version__

__all__ = ["__version__"]
