"""What a trace says is what is in it: every instant counts once, every kernel for the operator that launched it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.trials.profile import breakdown
from bigtrain.trials.trace import intersect, length, matmul_flops, read_trace, subtract, summarize, union

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda p: (float(min(p)), float(max(p)))))


def instants(spans: list[tuple[float, float]]) -> set[int]:
    return {t for start, end in spans for t in range(int(start), int(end))}


@given(SPANS, SPANS)
def test_spans_are_sets_of_instants(left: Any, right: Any) -> None:
    a, b = union(left), union(right)
    assert instants(a) == instants(left) and length(a) == len(instants(left))
    assert instants(intersect(a, b)) == instants(left) & instants(right)
    assert instants(subtract(a, b)) == instants(left) - instants(right)


def event(name: str, category: str, start: float, end: float, thread: int = 1, **args: Any) -> dict[str, Any]:
    """Milliseconds here, microseconds in a trace."""
    return {
        "ph": "X", "name": name, "cat": category, "ts": 1e9 + start * 1e3, "dur": (end - start) * 1e3, "tid": thread,
        "args": {key.replace("_", " "): value for key, value in args.items()},
    }  # fmt: skip


def cpu_trace() -> list[dict[str, Any]]:
    return [
        event("bigtrain.step", "user_annotation", 0, 100),
        event("bigtrain.forward_backward", "user_annotation", 0, 60),
        event("bigtrain.optimizer", "user_annotation", 60, 95),
        event("aten::linear", "cpu_op", 10, 40),
        event("aten::mm", "cpu_op", 12, 38, Input_Dims=[[4, 8], [8, 16]]),
        event("aten::copy_", "cpu_op", 13, 18),
        event("aten::mul", "cpu_op", 62, 66),
        event("gloo:all_reduce", "user_annotation", 30, 50, thread=7),  # 10 ms of it beside the product
        event("gloo:all_reduce", "user_annotation", 64, 80, thread=7),  # 2 ms of it beside aten::mul
        event("c10d::allreduce_", "cpu_op", 63.5, 81),
        event("aten::mul", "cpu_op", 120, 150),  # behind the step
        event("aten::mul", "cpu_op", 20, 90, thread=3),  # another thread's
    ]


def test_on_a_cpu_an_operator_costs_what_it_does_itself() -> None:
    summary = summarize(cpu_trace(), ("forward_backward", "optimizer"))
    cost = {operator.name: round(operator.seconds * 1000, 6) for operator in summary.operators}
    assert cost == {
        "aten::mm 4x8 @ 8x16": 26 - 5,
        "aten::copy_": 5,
        "aten::linear": 4,
        "aten::mul": 4,
        "gloo:all_reduce": 10 + 14,
    }
    product = next(o for o in summary.operators if o.name.startswith("aten::mm"))
    assert product.flops == 2 * 4 * 8 * 16 and product.rate == pytest.approx(1024 / 0.021)
    assert summary.step_seconds == pytest.approx(0.1) and summary.steps == 1
    assert summary.communication == pytest.approx({"forward_backward": 0.010, "optimizer": 0.014, "": 0.0})
    assert summary.idle_seconds == pytest.approx(0.1 - 0.030 - 0.004 - 0.024)


def test_on_a_gpu_a_kernel_costs_the_operator_that_launched_it() -> None:
    events = [
        event("bigtrain.step", "user_annotation", 0, 100),
        event("bigtrain.forward_backward", "user_annotation", 0, 10),
        event("bigtrain.forward_backward", "gpu_user_annotation", 10, 90, thread=7),
        event("aten::mm", "cpu_op", 1, 2, External_id=5, Input_Dims=[[2, 4], [4, 8]]),
        event("aten::sum", "cpu_op", 3, 4, External_id=6),
        event("CompiledFunction", "cpu_op", 5, 6, External_id=8),
        event("nvjet_sm90", "kernel", 10, 30, thread=7, External_id=5),
        event("splitk_reduce", "kernel", 30, 35, thread=7, External_id=5),
        event("reduce_kernel", "kernel", 35, 45, thread=7, External_id=6),
        event("triton_poi_fused_mul_0", "kernel", 45, 50, thread=7, External_id=8),
        event("ncclDevKernel_AllReduce_Sum_f32(x)", "kernel", 40, 70, thread=9, External_id=9),
        event("Memcpy HtoD", "gpu_memcpy", 70, 72, thread=7),
    ]
    summary = summarize(events, ("forward_backward",))
    cost = {operator.name: round(operator.seconds * 1000, 6) for operator in summary.operators}
    assert cost == {
        "aten::mm 2x4 @ 4x8": 25,
        "aten::sum": 10,
        "triton_poi_fused_mul_0": 5,
        "ncclDevKernel_AllReduce_Sum_f32": 20,  # 10 of its 30 are hidden
        "Memcpy HtoD": 2,
    }
    assert summary.operators[0].flops == 2 * 2 * 4 * 8  # once, though two kernels did it
    assert summary.communication == pytest.approx({"forward_backward": 0.020, "": 0.0})
    assert summary.idle_seconds == pytest.approx(0.1 - 0.040 - 0.020 - 0.002)


@pytest.mark.parametrize(
    ("name", "shapes", "flops"),
    [
        ("aten::mm", [[2, 3], [3, 5]], 60),
        ("aten::bmm", [[7, 2, 3], [7, 3, 5]], 420),
        ("aten::addmm", [[5], [2, 3], [3, 5]], 60),
        ("aten::baddbmm", [[7, 2, 5], [7, 2, 3], [7, 3, 5]], 420),
        ("aten::mm", [], None),
        ("aten::mul", [[2, 3], [3, 5]], None),
    ],
)
def test_flops_of_a_product_are_two_a_multiply_add(name: str, shapes: list[Any], flops: float | None) -> None:
    assert matmul_flops(event(name, "cpu_op", 0, 1, Input_Dims=shapes)) == flops


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.lists(st.floats(0, 2), min_size=3, max_size=3))
def test_the_breakdown_adds_up_to_the_step_without_negative_parts(seconds: Any, hidden: Any) -> None:
    """The parts of the breakdown add up to the step, and none is negative."""
    communication = dict(zip(("forward_backward", "optimizer", ""), hidden, strict=True))
    found = breakdown(sum(seconds), *seconds[:3], communication)
    assert sum(found.values()) == pytest.approx(sum(seconds))
    assert all(part >= -1e-12 for part in found.values())


def test_a_trace_is_read_gzipped_or_not(tmp_path: Path) -> None:
    document = json.dumps({"traceEvents": [*cpu_trace(), {"ph": "M", "name": "process_name"}]})
    plain, packed = tmp_path / "t.json", tmp_path / "t.json.gz"
    plain.write_text(document)
    packed.write_bytes(gzip.compress(document.encode()))
    assert read_trace(plain) == read_trace(packed) == cpu_trace()
