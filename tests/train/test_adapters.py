"""An adapter trains beside a frozen base as a plain loop trains it, and its state survives every change of shape."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bigtrain.checkpoint import Checkpoint, tensor_digests
from tests.matrix import one_of_each, selected, thinned
from tests.train.base import write_base
from tests.train.parity import Case, launch, plain_loop
from tests.train.test_parity import TOLERANCES

STEPS = 4


def cases() -> list[Case]:
    """Each method at each stage, and what else changes how a step is computed."""
    return [
        Case(0, 1, 4, 0.1, adapter="lora"),
        Case(0, 2, 1, 0.1, recompute="full", family="bert", tied=True, adapter="dora"),
        Case(1, 2, 4, 0.1, recompute="selective", adapter="dora", drop=0.1),
        Case(1, 2, 1, 0.1, precision="bf16", adapter="lora"),
        Case(1, 4, 1, 0.1, sequence=2, adapter="lora", drop=0.1),
        Case(2, 2, 1, 0.1, adapter="lora", recompute="full"),
        Case(2, 2, 1, 0.1, precision="bf16", adapter="dora", recompute="selective"),
        Case(2, 4, 1, 0.1, family="t5", tied=True, adapter="bottleneck"),
        Case(3, 2, 4, 0.1, recompute="full", adapter="dora", drop=0.1),
        Case(3, 2, 1, 0.1, precision="bf16", adapter="lora"),
        Case(3, 4, 1, 0.1, recompute="selective", adapter="lora", sequence=2),
        Case(3, 2, 1, 0.1, recompute="offloaded", family="gpt2", tied=True, adapter="bottleneck"),
        Case(3, 2, 1, 0.1, offload="cpu", adapter="lora"),
        Case(3, 4, 1, 0.1, secondary=2, adapter="lora"),
        Case(1, 2, 1, 0.01, family="mixtral", adapter="lora"),
        Case(3, 2, 4, 0.01, recompute="full", adapter="prefix_tuning"),
        Case(1, 2, 1, 0.01, precision="bf16", adapter="prefix_tuning", drop=0.1),
        Case(2, 2, 1, 0.001, family="bert", tied=True, adapter="prefix_tuning", recompute="selective"),
        Case(3, 2, 1, 0.01, adapter="prompt_tuning", recompute="selective"),
        Case(0, 2, 4, 0.01, family="gpt2", tied=True, adapter="prompt_tuning"),
        Case(1, 2, 1, 0.1, family="albert", tied=True, adapter="lora"),
    ]


def state_cases() -> list[Case]:
    """Every way in which the state of one adapter can be cut."""
    return [
        Case(0, 2, adapter="dora"),
        Case(1, 1, adapter="dora"),
        Case(1, 2, adapter="dora", precision="bf16"),
        Case(2, 2, adapter="dora", precision="bf16", sequence=2),
        Case(2, 4, adapter="dora"),
        Case(3, 2, adapter="dora", precision="bf16"),
        Case(3, 4, adapter="dora", offload="cpu"),
    ]


QUICK, QUICK_STATES = one_of_each(cases(), asdict), one_of_each(state_cases(), asdict)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def with_base(root: Path) -> Any:
    """A case on the base of its family, each written once."""
    bases: dict[tuple[str, bool], str] = {}

    def find(case: Case) -> Case:
        key = case.family, case.tied
        if key not in bases:
            bases[key] = write_base(case, root / f"base-{len(bases)}").base
        return replace(case, base=bases[key])

    return find


def run(do: str, root: Path, cases: list[Case], with_base: Any, arguments: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for world in sorted({case.world for case in cases}):
        chosen = [case for case in cases if case.world == world]
        jobs = [{"do": do, "case": asdict(with_base(case)), **arguments(case)} for case in chosen]
        directory = root / f"{do}-{world}"
        directory.mkdir()
        found |= zip((case.name for case in chosen), launch(jobs, world, directory), strict=True)
    return found


@pytest.fixture(scope="module")
def curves(request: pytest.FixtureRequest, root: Path, with_base: Any) -> dict[str, Any]:
    return run("curve", root, selected(request, "case"), with_base, lambda case: {})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", thinned(cases(), QUICK), ids=lambda case: case.name)
def test_sixteen_steps_equal_a_plain_loop(curves: dict[str, Any], with_base: Any, case: Case) -> None:
    """Losses, and norms of the gradients of what learns alone, clipped by these."""
    ours, plain = curves[case.name], plain_loop(with_base(case))
    loss, norm = TOLERANCES[case.precision]
    assert ours["losses"] == pytest.approx(plain["losses"], abs=loss)
    assert ours["norms"] == pytest.approx(plain["norms"], rel=norm)
    assert plain["losses"][-1] < plain["losses"][0] - 0.01  # it did train
    assert max(plain["norms"]) > case.clip  # and clipping bit


@pytest.fixture(scope="module")
def states(request: pytest.FixtureRequest) -> list[Case]:
    """The shapes of this session: each is loaded from each."""
    return selected(request, "state")


@pytest.fixture(scope="module")
def first(root: Path, states: list[Case], with_base: Any) -> dict[str, Any]:
    """The second half of each curve, undisturbed; half-way every case has saved."""
    to = lambda case: {"to": str(root / case.name), "steps": STEPS}  # noqa: E731
    return run("train_and_save", root, states, with_base, to)


@pytest.fixture(scope="module")
def resumed(root: Path, states: list[Case], with_base: Any, first: dict[str, Any]) -> dict[str, Any]:
    """The second half again, in new processes."""
    return run("resume", root, states, with_base, lambda case: {"at": str(root / case.name), "steps": STEPS})


@pytest.fixture(scope="module")
def resaved(root: Path, states: list[Case], with_base: Any, first: dict[str, Any]) -> Path:
    """What each case has loaded from each, saved again."""
    again = root / "again"

    def arguments(case: Case) -> dict[str, Any]:
        to = [str(again / case.name / source.name) for source in states]
        return {"at": [str(root / source.name) for source in states], "to": to, "steps": STEPS}

    run("resave", root, states, with_base, arguments)
    return again


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("state", thinned(state_cases(), QUICK_STATES), ids=lambda case: case.name)
def test_resume_in_the_same_shape_repeats_the_curve_bit_for_bit(
    first: dict[str, Any], resumed: dict[str, Any], state: Case
) -> None:
    assert resumed[state.name] == first[state.name]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("state", thinned(state_cases(), QUICK_STATES), ids=lambda case: case.name)
def test_adapters_move_bit_identical_into_every_other_shape(
    root: Path, states: list[Case], resaved: Path, state: Case
) -> None:
    """A checkpoint holds masters and moments of what learns, and no weight of the base."""

    def digests(folder: Path) -> dict[Any, str]:
        return dict(tensor_digests(Checkpoint.at(folder / "checkpoints" / f"step-{STEPS:08d}")))

    before = digests(root / state.name)
    assert {kind for _, kind in before} == {"master", "exp_avg", "exp_avg_sq"}
    parts = {name.rpartition(".")[2] for name, _ in before}
    assert parts == {"lora_A", "lora_B", "lora_magnitude_vector", "weight"}
    assert {name for name, _ in before if name.endswith("weight")} == {"norm.weight"}
    for target in states:
        assert digests(resaved / target.name / state.name) == before, target.name
