"""Model and engine together train as a plain float32 loop in one process does, however the work is spread."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from tests.matrix import one_of_each, selected, thinned
from tests.train.parity import Case, cases, launch, plain_loop

# float32 differs in the order of sums only. In 16 bits every activation is rounded: 8 bits of mantissa in bfloat16,
# 11 in float16; the loss of a whole batch averages most of it, the gradient norm less of it.
TOLERANCES = {"fp32": (5e-6, 1e-5), "bf16": (5e-3, 1e-2), "fp16": (1.5e-3, 1e-2)}

SHAPES = ("mixtral", "gpt2", "modernbert", "t5", "bart", "lstm", "bahdanau", "xlnet")
"""Families of which each brings something of its own to a run: the others are other settings of the same blocks."""
FALLS = {"t5": 0.25, "question_answering": 0.05}
"""By how much a loss falls at least, where that is not 0.6 nats: tied, T5 divides its logits by sqrt(hidden_size), and
where an answer is has to be found among few tokens."""


def kinds_of(case: Case) -> dict[str, Any]:
    """What a case represents in the quick suite."""
    return {key: value for key, value in asdict(case).items() if key != "family" or value in SHAPES}


@pytest.fixture(scope="module")
def curves(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Losses and gradient norms by case, from one launch for each world size."""
    found: dict[str, Any] = {}
    for world in sorted({case.world for case in selected(request, "case")}):
        chosen = [case for case in selected(request, "case") if case.world == world]
        jobs = [{"do": "curve", "case": asdict(case)} for case in chosen]
        results = launch(jobs, world, tmp_path_factory.mktemp(f"world{world}"))
        found |= {case.name: result for case, result in zip(chosen, results, strict=True)}
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", thinned(cases(), keep=one_of_each(cases(), kinds_of)), ids=lambda case: case.name)
def test_sixteen_steps_equal_a_plain_loop(curves: dict[str, Any], case: Case) -> None:
    ours, plain = curves[case.name], plain_loop(case)
    loss, norm = TOLERANCES[case.precision]
    assert ours["losses"] == pytest.approx(plain["losses"], abs=loss)
    assert ours["norms"] == pytest.approx(plain["norms"], rel=norm)
    assert plain["losses"][-1] < plain["losses"][0] - FALLS.get(case.task, FALLS.get(case.family, 0.6))  # it did train
    assert not case.clip or max(plain["norms"]) > case.clip  # and clipping bit
