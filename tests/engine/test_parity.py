"""The engine trains as a plain PyTorch loop does, at every ZeRO stage."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import pytest

from tests.engine.helpers import PARITY_STEPS, parity_cases, plain_loop

# The loops round at the same places, but one different last bit of the clipping factor, or stage 3's own linear layer,
# changes the rounding of a weight here and there.
TOLERANCE = 3e-3


def case_name(index: int) -> str:
    case = parity_cases()[index]
    precision = "float8" if case.get("float8") else case["precision"]
    return f"stage{case['stage']}-{precision}-{'tied' if case.get('tied') else 'clipped'}"


@functools.cache
def reference(case: str) -> dict[str, Any]:
    return plain_loop(json.loads(case), PARITY_STEPS)


def without_stage(case: dict[str, Any]) -> str:
    return json.dumps({**case, "stage": 1}, sort_keys=True)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2], ids=["alone", "two"])
@pytest.mark.parametrize("index", range(len(parity_cases())), ids=case_name)
def test_sixteen_steps_equal_a_plain_loop(first_round: dict[Any, Any], index: int, world: int) -> None:
    case = parity_cases()[index]
    ours, plain = first_round["parity", world][index], reference(without_stage(case))
    assert ours["losses"] == pytest.approx(plain["losses"], abs=TOLERANCE)
    assert ours["norms"] == pytest.approx(plain["norms"], rel=TOLERANCE)
    assert plain["losses"][-1] < plain["losses"][0] - 0.5  # it did train


@pytest.mark.slow
def test_bfloat16_gradients_are_summed_in_float32_bit_for_bit(first_round: dict[Any, Any]) -> None:
    """Four micro-batches, no clipping: stages 1 and 2 give the very losses of the plain loop."""
    for index, case in enumerate(parity_cases()):
        if case["micro_batch_size"] == 2 and case["stage"] < 3:
            plain = reference(without_stage(case))["losses"]
            assert first_round["parity", 1][index]["losses"] == pytest.approx(plain, abs=1e-12)


@pytest.mark.slow
def test_clipping_bites_in_these_cases() -> None:
    """Without this the clipped cases would prove nothing."""
    assert max(reference(without_stage(parity_cases()[0]))["norms"]) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_gradient_that_is_not_finite_changes_nothing_at_any_stage(first_round: dict[Any, Any], world: int) -> None:
    """Even when only one rank has it."""
    results = first_round["not_finite", world]
    assert [(r["applied"], r["norm"], r["unchanged"], r["steps"]) for r in results] == [(False, math.inf, True, 1)] * 4
    assert all(math.isfinite(r["after"]) for r in results)
