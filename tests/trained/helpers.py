"""A run of a model with random weights over a small corpus, made without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from bigtrain.base import ALONE
from bigtrain.checkpoint import MASTER, Cursor, Fragment, StorageTiers, save
from bigtrain.config import DataSettings, ModelSettings, Settings, mathematics
from tests.convert.helpers import trained, weights_of


def random_run(directory: Path, model: ModelSettings, data: DataSettings, **sections: Any) -> Settings:
    """Write a run directory `directory/run` with one checkpoint, of step 7, and return its settings."""
    settings = Settings.model_validate(
        {
            "run_dir": str(directory / "run"),
            "model": {name: getattr(model, name) for name in model.model_fields_set},
            "data": data.model_dump(),
            "train": {"steps": 8, "global_batch_size": 4, "micro_batch_size": 2},
            "evaluate": {"max_sequences": 8},
            "engine": {"attn_implementation": "reference", "precision": "fp32"},
            **sections,
        }
    )
    settings.run_dir.mkdir()
    (settings.run_dir / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    save(
        StorageTiers.of(settings.run_dir),
        Cursor(7, 28, "plan", 7),
        [
            Fragment(name, MASTER, tuple(weight.shape), 0, weight.flatten())
            for name, weight in weights_of(trained(model)).items()
        ],
        {"cpu": torch.get_rng_state()},
        mathematics=mathematics(settings),
        zero_stage=0,
        state={},
        ranks=ALONE,
    )
    return settings
