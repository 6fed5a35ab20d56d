"""The configurations in configs/ are valid and have the published shapes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bigtrain.config import load_settings
from bigtrain.model import build_model

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_valid(path: Path) -> None:
    load_settings(path)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as counted in the published checkpoints: openai-community/gpt2, Llama-3.2-1B, Meta-Llama-3-8B, Meta-Llama-3-70B
        ("gpt2-124m", 124_439_808),
        ("llama-1b", 1_235_814_400),
        ("llama-8b", 8_030_261_248),
        ("llama-70b", 70_553_706_496),
    ],
)
def test_a_published_shape_has_exactly_the_published_number_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(load_settings(CONFIGS / f"{name}.yaml").model)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_ground_floor_imports_no_torch() -> None:
    program = "import sys, bigtrain.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
