"""Promises of the measured speed: the peak is the device's own or measured, and the parts of a step add up to it."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.observe.meter import FORWARD_BACKWARD, OPTIMIZER, Meter, StageFlops
from bigtrain.observe.peak_flops import DATASHEETS, Peak, datasheet_flops, kind_of, peak_of, peak_of_all

CPU = torch.device("cpu")


def test_published_peaks_are_the_dense_ones() -> None:
    assert datasheet_flops("NVIDIA H100 80GB HBM3", "bf16") == 989.5e12
    assert datasheet_flops("NVIDIA H200", "fp8") == 1979e12
    assert datasheet_flops("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert datasheet_flops("Tesla V100-SXM2-16GB", "bf16") is None  # it has no bfloat16
    assert datasheet_flops("Tesla V100-SXM2-16GB", "fp16") == 125e12


@given(st.sampled_from(sorted(DATASHEETS)), st.data())
def test_a_name_that_is_not_exactly_known_has_no_peak(name: str, data: st.DataObject) -> None:
    end = data.draw(st.integers(1, len(name) - 1))
    for other in (name[:end], name[end:], name.lower(), name + " MIG 1g.10gb", name.removeprefix("NVIDIA ")):
        assert other in DATASHEETS or datasheet_flops(other, "bf16") is None
    assert datasheet_flops("NVIDIA H100", "bf16") is None  # SXM, PCIe or NVL? the name does not say


def test_every_rate_is_in_the_order_of_its_width() -> None:
    for rates in DATASHEETS.values():
        known = [rate for rate in (rates.fp8, rates.fp16, rates.tf32, rates.fp32) if rate is not None]
        assert known == sorted(known, reverse=True) and rates.bf16 in (None, rates.fp16)


def test_on_a_cpu_the_peak_is_measured_and_says_so() -> None:
    peak = peak_of(CPU, torch.bfloat16)
    assert peak.source == "measured" and peak.flops == peak.measured > 1e6 and "measured" in peak.described
    assert peak.as_record()["source"] == "measured" and "measured" in str(peak)
    assert kind_of(torch.float32) == "fp32"


def test_a_busy_cpu_is_compared_with_its_highest_earlier_peak() -> None:
    busy = Peak(1e9, 1e9, None, "bf16", "2 x EPYC (AVX2, 1 thread(s))")
    earlier = [
        {**busy.as_record(), "flops": 3e9},
        {**busy.as_record(), "flops": 2e9},
        {**busy.as_record(), "flops": 9e9, "processor": "4 x EPYC (AVX2, 1 thread(s))"},
        {**busy.as_record(), "flops": 9e9, "kind": "fp32"},
        {**busy.as_record(), "flops": 9e9, "source": "datasheet"},
        {**busy.as_record(), "flops": float("inf")},
        {"flops": 9e9},
        {},
    ]
    best = busy.with_earlier(earlier)
    assert (best.flops, best.measured) == (3e9, 1e9)
    assert "0.003 TFLOP/s, measured at an earlier start; now a product reaches 0.001" in str(best)
    assert busy.with_earlier([]) == busy and best.with_earlier([{**busy.as_record(), "flops": 2e9}]) == best
    gpu = Peak(989.5e12, 700e12, "NVIDIA H100 80GB HBM3", "bf16", "NVIDIA H100 80GB HBM3")
    assert gpu.with_earlier([{**gpu.as_record(), "flops": 9e19}]) == gpu


def test_several_devices_are_their_sum_and_one_measured_makes_all_measured() -> None:
    sxm, pcie = (
        Peak(989.5e12, 700e12, "NVIDIA H100 80GB HBM3", "bf16"),
        Peak(756.5e12, 500e12, "NVIDIA H100 PCIe", "bf16"),
    )
    unknown = Peak(300e12, 300e12, None, "bf16")
    assert peak_of_all([sxm]) == sxm
    both = peak_of_all([sxm, sxm, pcie])
    assert both.flops == pytest.approx(2735.5e12) and both.measured == 1900e12
    assert "2 x NVIDIA H100 80GB HBM3 + 1 x NVIDIA H100 PCIe" in both.described
    mixed = peak_of_all([sxm, unknown])
    assert (mixed.flops, mixed.source) == (1000e12, "measured")


def test_the_parts_of_a_step_are_its_own_and_fit_into_it() -> None:
    peak = Peak(1e9, 1e9, None, "fp32")
    meter = Meter([StageFlops(1, 2e6, 1e6)], peak=peak, total_steps=10, device=CPU)
    meter.start_step()
    for part, seconds in ((None, 0.01), (FORWARD_BACKWARD, 0.04), (OPTIMIZER, 0.02)):
        with meter.timing(part) if part else meter.waiting_for_data():
            time.sleep(seconds)
    first = meter.end_step(1, tokens=100)
    assert first.data_seconds >= 0.01 and first.forward_backward_seconds >= 0.04 and first.optimizer_seconds >= 0.02
    parts = first.data_seconds + first.forward_backward_seconds + first.optimizer_seconds
    assert parts <= first.step_seconds
    assert first.mfu == pytest.approx(100 / first.step_seconds * 2e6 / 1e9) == pytest.approx(2 * first.mfu_causal)
    meter.start_step()
    second = meter.end_step(2, tokens=100)
    assert second.data_seconds == second.forward_backward_seconds == second.optimizer_seconds == 0.0
