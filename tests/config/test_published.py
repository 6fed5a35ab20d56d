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
    [  # as counted in the published checkpoints
        ("gpt2-124m", 124_439_808),
        ("llama-1b", 1_235_814_400),
        ("llama-8b", 8_030_261_248),
        ("llama-70b", 70_553_706_496),
        ("pythia-160m", 162_322_944),
        ("mistral-7b", 7_241_732_096),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen3-0.6b", 596_049_920),
        ("olmo2-1b", 1_484_916_736),
        ("gemma2-2b", 2_614_341_888),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("bert-base", 109_514_298),
        ("roberta-base", 124_697_433),
        ("albert-base", 11_221_680),
        ("modernbert-base", 149_655_232),
        ("t5-small", 60_506_624),
        ("t5-v1.1-small", 76_961_152),
        ("bart-base", 139_420_416),
        ("xlnet-base", 116_750_336),
        ("opus-mt-en-de", 73_944_309),
    ],
)
def test_a_published_shape_has_exactly_the_published_number_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(load_settings(CONFIGS / f"{name}.yaml").model)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_ground_floor_imports_no_torch() -> None:
    program = "import sys, bigtrain.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
