"""Seconds of a step: exact counts where there are formulas, and every part where it has to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.estimate import (
    FITTED,
    Interconnect,
    Layout,
    RunPlan,
    Workload,
    device,
    forecast,
    forecast_step,
    interconnect,
    transformer,
)  # fmt: skip
from tests.estimate.cases import ADAM, gpt, layouts, llama_8b

H100 = device("h100")
CONNECTED = interconnect(H100)
NOTHING_ELSE = replace(FITTED, step_overhead=0.0, straggling=0.0)


@pytest.mark.parametrize(
    ("work", "parameters"),
    [
        # the published numbers: model cards of Llama 3.1 8B and Llama 2 7B, and of GPT-2 at Hugging Face
        (llama_8b(), 8_030_261_248),
        (transformer(layers=32, hidden=4096, heads=32, feed_forward=11008, vocabulary=32000, sequence_length=4096,
                     states=ADAM), 6_738_415_616),
        (gpt(12, 768, 12, 1024, vocabulary=50257), 124_439_808),
    ],
)  # fmt: skip
def test_parameters_are_the_published_ones(work: Workload, parameters: int) -> None:
    assert work.parameters == parameters


@given(
    layers=st.integers(1, 100),
    width=st.integers(1, 64),
    length=st.sampled_from([128, 2048]),
    vocabulary=st.integers(1, 10**6),
)
def test_flops_are_megatron_s_formula(layers: int, width: int, length: int, vocabulary: int) -> None:
    """72 B s L h^2 (1 + s / 6h + V / 12 L h) of a step (Narayanan et al., 2021, without recomputation)."""
    hidden = 128 * width
    work = gpt(layers, hidden, width, length, vocabulary)
    wanted = 72 * layers * hidden**2 * (1 + length / (6 * hidden) + vocabulary / (12 * layers * hidden))
    assert work.flops_per_token() == pytest.approx(wanted)
    assert work.flops_per_token(causal=True) < work.flops_per_token()


@given(layout=layouts(), name=st.sampled_from(["h100", "a100-40", "v100", "mi300x", "gb200"]))
def test_every_part_is_positive_and_counts_once(layout: Layout, name: str) -> None:
    of = device(name)
    found = forecast_step(llama_8b(), layout, of, interconnect(of))
    assert min(found.parts.values()) >= 0 and found.total == pytest.approx(sum(found.parts.values()))
    assert found.matrix_products > 0 and found.optimizer > 0
    for each in found.communication:
        assert 0 <= each.overlapped <= each.total * 1.0001 and each.link in ("link", "network")


@given(
    layout=layouts(),
    changes=st.sampled_from([{"attention_kernel": "unfused"}, {"elementwise": "eager"}, {"compute": "fp8"}]),
)
def test_no_layout_reaches_more_than_the_peak(layout: Layout, changes: dict[str, Any]) -> None:
    found = forecast(llama_8b(**changes), layout, H100, CONNECTED)
    assert 0 < found.mfu_causal < found.mfu < 1


@given(stages=st.sampled_from([2, 4, 8]), parts=st.sampled_from([1, 2, 4]), micro_batches=st.integers(1, 64))
def test_the_bubble_is_the_published_share(stages: int, parts: int, micro_batches: int) -> None:
    """(p - 1) / (v m) of the time that computes (Narayanan et al., 2021, section 2.2), without a head."""
    work = replace(gpt(32, 1024, 16, 1024), head=None, tied=False)
    layout = Layout(pipeline=stages, virtual_stages=parts, accumulation_steps=micro_batches)
    found = forecast_step(work, layout, H100, CONNECTED, NOTHING_ELSE)
    computing = found.matrix_products + found.attention + found.elementwise + found.launch
    assert found.pipeline_bubble / computing == pytest.approx((stages - 1) / (parts * micro_batches))


def test_full_recomputation_costs_a_forward_pass() -> None:
    """A third of forward and backward, a little less with the head, which is not computed again."""
    plain = forecast_step(llama_8b(), Layout(), H100, CONNECTED)
    full = forecast_step(llama_8b(), Layout(recomputation="full"), H100, CONNECTED)
    once = (plain.total - plain.optimizer - plain.overhead) / 3
    assert 0.8 * once < full.recomputation < once
    assert plain.recomputation == 0


@given(layout=layouts())
def test_a_faster_network_is_never_slower(layout: Layout) -> None:
    slow = Interconnect(100.0, 10.0, 8)
    fast = Interconnect(200.0, 20.0, 8)
    work = llama_8b()
    assert forecast_step(work, layout, H100, fast).total <= forecast_step(work, layout, H100, slow).total


@given(layout=layouts())
def test_recomputing_more_is_never_faster(layout: Layout) -> None:
    seconds = [
        forecast_step(llama_8b(), replace(layout, recomputation=mode), H100, CONNECTED).total
        for mode in ("none", "selective", "full")
    ]
    assert seconds == sorted(seconds)


def test_hours_money_and_energy_follow_from_the_step() -> None:
    layout = Layout(data=64, zero_stage=3, micro_batch_size=2)
    run = RunPlan(tokens=1e12, price=2.0, device_mtbf_hours=None)
    found = forecast(llama_8b(), layout, H100, CONNECTED, run=run)
    assert found.run is not None and found.run.cost is not None and found.run.energy_kwh is not None
    hours = 1e12 / (64 * found.tokens_per_second_per_device) / 3600
    assert found.run.hours == found.run.training_hours == pytest.approx(hours)
    assert found.run.cost == pytest.approx(2 * 64 * hours) and found.run.energy_kwh == pytest.approx(0.7 * 64 * hours)
    failing = forecast(llama_8b(), layout, H100, CONNECTED, run=replace(run, device_mtbf_hours=10_000.0))
    assert failing.run is not None and failing.run.goodput is not None
    assert failing.run.hours == pytest.approx(hours / failing.run.goodput.training) and failing.run.hours > hours


@given(layout=layouts(), node=st.sampled_from([4, 8, 72]))
def test_the_devices_are_the_product_of_the_groups(layout: Layout, node: int) -> None:
    groups = (layout.tensor_group(node), layout.context_group(node), layout.replica_group(node))
    assert layout.devices == layout.tensor * layout.replicas * layout.pipeline
    for group in groups:
        assert 1 <= group.per_node <= min(group.size, node) and group.nodes * group.per_node >= group.size
