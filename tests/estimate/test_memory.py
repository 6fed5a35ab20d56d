"""Memory by kind: the published formulas exactly, and no layout that divides more needs more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.estimate import FITTED, BlockWork, Layout, Workload, device, forecast_memory
from bigtrain.estimate.memory import micro_batches_in_flight
from tests.estimate.cases import ADAM, gpt, layouts, llama_8b

EXACT = replace(FITTED, backward_copies=0.0, fragmentation=0.0)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_states_are_those_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    """7.5B parameters on 64 devices (Rajbhandari et al., 2020, figure 1)."""
    work = Workload((BlockWork(1, (), other_parameters=7_500_000_000),), 0, 1, None, False, 1, ADAM)
    states = forecast_memory(work, Layout(data=64, zero_stage=stage)).states
    assert states / 1e9 == pytest.approx(gigabytes, rel=0.005)


@pytest.mark.parametrize(
    ("layout", "per_layer"),
    [
        (Layout(), lambda s, b, h, a, t: s * b * h * (34 + 5 * a * s / h)),
        (Layout(tensor=4), lambda s, b, h, a, t: s * b * h * (10 + 24 / t + 5 * a * s / (h * t))),
        (Layout(tensor=4, tensor_shares_tokens=True), lambda s, b, h, a, t: s * b * h / t * (34 + 5 * a * s / h)),
        (Layout(tensor=4, tensor_shares_tokens=True, recomputation="scores"), lambda s, b, h, a, t: 34 * s * b * h / t),
        (Layout(recomputation="full"), lambda s, b, h, a, t: 2 * s * b * h),
    ],
)  # fmt: skip
def test_kept_activations_are_korthikanti_s(layout: Layout, per_layer: object) -> None:
    """Table 2 of Korthikanti et al. (2022), to the byte: attention without a flash kernel, dropout, 16 bits."""
    hidden, heads, length, micro = 6144, 64, 2048, 4
    found = forecast_memory(gpt(48, hidden, heads, length), replace(layout, micro_batch_size=micro), EXACT)
    wanted = 48 * per_layer(length, micro, hidden, heads, layout.tensor)  # type: ignore[operator]
    assert found.activations_kept == pytest.approx(wanted, rel=1e-12)


def played(stages: int, stage: int, micro_batches: int) -> int:
    """The most micro-batches whose backward pass is still to come, when 1F1B is played step by step."""
    warm = min(stages - stage - 1, micro_batches)
    waiting = most = warm
    for _ in range(micro_batches - warm):
        waiting += 1
        most = max(most, waiting)
        waiting -= 1
    return most


@given(stages=st.integers(1, 12), micro_batches=st.integers(1, 30), data=st.data())
def test_a_stage_keeps_what_1f1b_has_in_flight(stages: int, micro_batches: int, data: st.DataObject) -> None:
    stage = data.draw(st.integers(0, stages - 1))
    layout = Layout(pipeline=stages, accumulation_steps=micro_batches)
    assert micro_batches_in_flight(layout, stage) == played(stages, stage, micro_batches)


@given(layout=layouts(), kind=st.sampled_from(["weights", "gradients", "master_weights", "moments"]))
def test_more_devices_never_need_more_for_states(layout: Layout, kind: str) -> None:
    work = llama_8b()
    more = replace(layout, data=2 * layout.data)
    assert getattr(forecast_memory(work, more), kind) <= getattr(forecast_memory(work, layout), kind)


@given(layout=layouts())
def test_a_higher_stage_never_needs_more_for_states(layout: Layout) -> None:
    states = [forecast_memory(llama_8b(), replace(layout, zero_stage=stage)).states for stage in range(4)]
    assert states == sorted(states, reverse=True)


@given(layout=layouts())
def test_recomputation_never_keeps_more(layout: Layout) -> None:
    kept = [
        forecast_memory(gpt(8, 1024, 16, 1024), replace(layout, recomputation=mode)).activations_kept
        for mode in ("none", "scores", "selective", "full", "offloaded")
    ]
    assert kept == sorted(kept, reverse=True)


@given(layout=layouts())
def test_the_figures_of_memory_are_nested(layout: Layout) -> None:
    """States are allocated, what is allocated is reserved, and nvidia-smi shows all of it; every kind counts once."""
    found = forecast_memory(llama_8b(), layout)
    assert 0 < found.states <= found.allocated * 1.0001 and found.allocated <= found.reserved <= found.total
    assert min(found.kinds.values()) >= 0 and sum(found.kinds.values()) == pytest.approx(found.total)
    card = device("h100")
    assert found.left(card) == pytest.approx(card.memory_bytes - FITTED.reserve_bytes - found.total)


@given(budget=st.floats(0, 1))
def test_a_memory_budget_lies_between_full_and_selective(budget: float) -> None:
    def kept(mode: str, share: float = 1.0) -> float:
        layout = Layout(recomputation=mode, kept_products=share)  # type: ignore[arg-type]
        return forecast_memory(llama_8b(), layout).activations_kept

    assert kept("full") <= kept("selective", budget) <= kept("selective")


def test_offloaded_states_take_no_memory_of_the_device() -> None:
    found = forecast_memory(llama_8b(), Layout(data=8, zero_stage=3, offload_optimizer=True, offload_weights=True))
    assert found.master_weights == found.moments == found.weights == 0 and found.gradients > 0
