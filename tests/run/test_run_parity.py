"""Model and engine together train as a plain float32 loop in one process does, however the work is spread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from parity import Case, cases, plain_loop

# float32 differs in the order of sums only. In 16 bits every activation is rounded: 8 bits of mantissa in bfloat16,
# 11 in float16; the loss of a whole batch averages most of it, the gradient norm less of it.
TOLERANCES = {"fp32": (1e-4, 1e-3), "bf16": (8e-3, 4e-2), "fp16": (1.5e-3, 1e-2)}


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Losses and gradient norms by case, from one launch for each world size."""
    found: dict[str, Any] = {}
    for world in sorted({case.world for case in cases()}):
        chosen = [case for case in cases() if case.world == world]
        directory = tmp_path_factory.mktemp(f"world{world}")
        (directory / "job.json").write_text(json.dumps([asdict(case) for case in chosen]))
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        worker = str(Path(__file__).with_name("parity_worker.py"))
        finished = subprocess.run(
            [sys.executable, *(torchrun if world > 1 else []), worker, str(directory)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-6000:]
        results = json.loads((directory / "result.json").read_text())
        found |= {case.name: result for case, result in zip(chosen, results, strict=True)}
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_fifty_steps_equal_a_plain_loop(curves: dict[str, Any], case: Case) -> None:
    ours, plain = curves[case.name], plain_loop(case)
    loss, norm = TOLERANCES[case.precision]
    assert ours["losses"] == pytest.approx(plain["losses"], abs=loss)
    assert ours["norms"] == pytest.approx(plain["norms"], rel=norm)
    assert plain["losses"][-1] < plain["losses"][0] - 0.8  # it did train
    assert not case.clip or max(plain["norms"]) > case.clip  # and clipping bit
