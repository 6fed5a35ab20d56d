"""Published figures of memory, and marks of what did not fit, as cases that the planner can forecast.

What is compared depends on what was measured: PyTorch's allocated or reserved memory, what `nvidia-smi` shows, or the
states of a formula. Where a source does not say which, reserved memory is assumed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner_rows import Case, Row, Unpredicted, case_of, number

from bigtrain.estimate import (
    BlockWork,
    Constants,
    Layout,
    MemoryForecast,
    StateBytes,
    Workload,
    forecast_memory,
)

OF_KIND = {
    "peak_reserved": "reserved",
    "peak_allocated": "allocated",
    "peak_active": "allocated",
    "steady_allocated": "states",
    "nvidia_smi": "total",
    "peak_stated": "reserved",
    "stated_unspecified": "reserved",
    "analytic_model_states": "states",
}
"""Which figure of a forecast each kind of measurement is."""


@dataclass(frozen=True)
class MemoryCase:
    """A row with a figure of memory."""

    row: Row
    work: Workload
    layout: Layout
    kind: str
    complete: bool
    measured_gib: float

    @property
    def source(self) -> str:
        return self.row.get("source_id", "")

    def forecast(self, constants: Constants) -> float:
        """GiB of the kind that was measured."""
        found: MemoryForecast = forecast_memory(self.work, self.layout, constants)
        size: float = getattr(found, OF_KIND[self.kind])
        return size / 2**30


@dataclass(frozen=True)
class CapacityMark:
    """A row that says whether a layout fitted."""

    case: Case
    fits: bool

    @property
    def row(self) -> Row:
        return self.case.row

    @property
    def source(self) -> str:
        return self.case.source

    @property
    def complete(self) -> bool:
        """Whether no input is missing, and nothing is offloaded to the host in a way that no column states."""
        return not self.row.get("missing_inputs") and "offload" not in self.row.get("scope", "")

    def forecast_fits(self, constants: Constants) -> bool:
        memory = forecast_memory(self.case.work, self.case.layout, constants)
        return memory.left(self.case.device, constants) >= 0


def memory_cases(rows: Iterable[Row]) -> tuple[list[MemoryCase], dict[str, int]]:
    """The rows with a figure that can be forecast, and how many cannot, by reason; marks do not count."""
    found, missing = [], Counter[str]()
    for row in rows:
        kind = row.get("kind", "").split(" ")[0]
        if kind == "oom":
            continue
        try:
            found.append(_memory_case(row, kind))
        except Unpredicted as reason:
            missing[str(reason)] += 1
    return found, dict(missing.most_common())


def _memory_case(row: Row, kind: str) -> MemoryCase:
    measured = number(row, "memory_gib")
    if measured is None or kind not in OF_KIND:
        raise Unpredicted("no memory" if measured is None else f"unknown kind {kind}")
    if kind == "analytic_model_states":
        return MemoryCase(row, *_states_alone(row), kind, False, measured)
    case = case_of(row)
    return MemoryCase(row, case.work, case.layout, kind, case.complete, measured)


def _states_alone(row: Row) -> tuple[Workload, Layout]:
    """Parameters without shapes: enough for their states, in 16 bits with Adam in float32."""
    parameters, replicas = number(row, "parameters"), number(row, "dp") or number(row, "gpus")
    stage = row.get("zero_stage_equiv", "")
    if parameters is None or replicas is None or stage not in ("0", "1", "2", "3"):
        raise Unpredicted("no parameters, dp or zero_stage_equiv")
    block = BlockWork(1, (), other_parameters=round(parameters))
    offload = row.get("offload", "").lower()
    work = Workload((block,), 0, 1, None, False, 1, StateBytes(weights=2, gradients=2, master=4, moments=8))
    layout = Layout(
        data=max(1, round(replicas)),
        zero_stage=int(stage),
        offload_optimizer="optimizer" in offload,
        offload_weights="param" in offload,
    )
    return work, layout


def capacity_cases(throughput: Sequence[Row], memory: Sequence[Row]) -> tuple[list[CapacityMark], dict[str, int]]:
    """Rows marked as out of memory, and the rows of the same sources that ran."""
    marked = [row for row in memory if row.get("kind", "").startswith("oom")]
    sources = {row.get("source_id") for row in marked}
    ran = [row for row in throughput if row.get("source_id") in sources]
    found, missing = [], Counter[str]()
    for rows, fits in ((marked, False), (ran, True)):
        for row in rows:
            try:
                found.append(CapacityMark(case_of(row), fits))
            except Unpredicted as reason:
                missing[str(reason)] += 1
    return found, dict(missing.most_common())
