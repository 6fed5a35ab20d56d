"""bigtrain: distributed pre-training of large language models.

The rooms of the house, top floor first; imports go down only (checked by import-linter)::

    cli/         the commands: each parses, calls one function below, prints
    run/         one training run: loop, evaluation, meter, tracking, signals
    convert/     checkpoint -> Hugging Face
    estimate/    what a run will cost: goodput under failures
    engine/      DeepSpeed behind a narrow interface: topology, optimizer, schedule, step
    checkpoint/  topology-free checkpoints: write, commit, verify, load
    model/       the decoder in plain PyTorch; knows no engine
    data/        corpus -> tokenizer -> shards -> plan -> packing -> loader
    config/      the typed tree of settings, YAML, overrides, errors that help
"""

from bigtrain.base.version import __version__

__all__ = ["__version__"]
