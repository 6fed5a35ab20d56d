"""Which layout is fastest: every one that divides, the memory and time of each, the best of those that fit.

settings x (stage, tensor, context, micro-batch, recomputation)  --layout_of-->  those whose ranks and batch divide
         --forecast-->  those that fit, fastest first  --`accepts`-->  those that the settings allow
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config import Settings, uneven_share
from bigtrain.estimate.devices import Device
from bigtrain.estimate.forecast import Forecast, RunPlan, forecast
from bigtrain.estimate.network import Interconnect
from bigtrain.estimate.remedies import remedies
from bigtrain.estimate.run_workload import layout_of, workload_of
from bigtrain.estimate.workload import Workload

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
RECOMPUTATION = ("none", "selective", "full")
Overrides = Mapping[str, str | int]


@dataclass(frozen=True)
class Candidate:
    """A layout that a search found."""

    overrides: Overrides
    """Settings that make it, by their keys."""
    forecast: Forecast

    @property
    def arguments(self) -> list[str]:
        """The overrides as `bigtrain train` and `bigtrain submit` take them."""
        return [f"{key}={value}" for key, value in self.overrides.items()]

    @property
    def limit(self) -> str:
        """What a step waits for longest beside the products of the model, and its share."""
        parts = {part: seconds for part, seconds in self.forecast.step.parts.items() if part != "matrix_products"}
        longest = max(parts, key=lambda part: parts[part])
        return f"{longest.replace('_', ' ')} {parts[longest] / self.forecast.step_seconds:.0%}"


@dataclass(frozen=True)
class LayoutSearch:
    """What a search found."""

    tried: int
    """Layouts that divide."""
    fitting: int
    """Those of them that fit."""
    refused: int
    """Those that fit, were faster than the last one of `best`, and that the settings do not allow."""
    best: list[Candidate]
    """Fastest first."""
    closest: Candidate | None = None
    """Where nothing fits: the layout that lacks least memory."""


def search(
    settings: Settings,
    devices: int,
    device: Device,
    connected: Interconnect,
    *,
    run: RunPlan | None = None,
    count: int = 5,
    accepts: Callable[[Sequence[str]], bool] = lambda arguments: True,
) -> LayoutSearch:
    """Find the fastest layouts.

    Args:
        settings: of the run; what the search does not change stays as it is.
        devices: how many.
        device: each of them.
        connected: how they are connected.
        run: tokens, price and failures.
        count: how many layouts to return.
        accepts: whether the settings allow these overrides; asked from the fastest on, until `count` are found.
    """
    works: dict[tuple[bool, bool], Workload] = {}  # of what a search changes, a workload depends on these two
    found = []
    for overrides, changed in layouts(settings, devices, connected.node_size):
        kind = changed.engine.zero_stage > 0, changed.engine.sequence_parallel_size > 1
        if kind not in works:
            works[kind] = workload_of(changed)
        made = forecast(works[kind], layout_of(changed, devices), device, connected, run=run)
        found.append(Candidate(overrides, made))
    fitting = sorted(
        (each for each in found if each.forecast.fits),
        key=lambda each: -each.forecast.tokens_per_second_per_device,
    )
    best: list[Candidate] = []
    refused = 0
    for candidate in fitting:
        if accepts(candidate.arguments):
            best.append(candidate)
        else:
            refused += 1
        if len(best) == count:
            break
    closest = max(found, key=lambda each: each.forecast.memory_left, default=None) if not fitting else None
    return LayoutSearch(len(found), len(fitting), refused, best, closest)


def layouts(settings: Settings, devices: int, node_size: int) -> Iterator[tuple[Overrides, Settings]]:
    """Every combination of parallel sizes, ZeRO stage, micro-batch and recomputation whose ranks and batch divide.

    Args:
        settings: of the run.
        devices: how many.
        node_size: devices of a node, within which ranks share a matrix.
    """
    stages = (0, 1, 2, 3) if settings.engine.precision == "fp32" else (1, 2, 3)
    for tensor in _powers(min(devices, node_size)):
        for context in _powers(devices // tensor) if tensor == 1 else (1,):
            model, length = settings.model, settings.data.sequence_length
            if uneven_share(model, length, tensor, context) is not None:
                continue
            for stage in stages if tensor == 1 else (1, 2):
                for hpz in (1, node_size) if stage == 3 and devices > node_size else (1,):
                    for recomputation in RECOMPUTATION if tensor == 1 else ("none", "full"):
                        for rows in MICRO_BATCHES:
                            overrides: dict[str, str | int] = {
                                "engine.zero_stage": stage,
                                "engine.tensor_parallel_size": tensor,
                                "engine.sequence_parallel_size": context,
                                "engine.zero_hpz_partition_size": hpz,
                                "engine.activation_checkpointing": recomputation,
                                "train.micro_batch_size": rows,
                            }
                            changed = with_overrides(settings, overrides)
                            try:
                                layout_of(changed, devices)
                            except BigtrainError:
                                continue
                            yield overrides, changed


def what_would_fit(
    settings: Settings, devices: int, device: Device, connected: Interconnect
) -> tuple[list[str], Forecast] | None:
    """The cheapest changes of the settings that make a run fit, one added to the other; None where none do.

    Args:
        settings: of a run that does not fit.
        devices: how many.
        device: each of them.
        connected: how they are connected.
    """
    taken: dict[str, str | int] = {}
    changed = settings
    while True:
        data_size = layout_of(changed, devices).data
        advice = remedies(changed, data_size=data_size, devices=devices, on_gpu=True)
        advice = [each for each in advice if _divides(with_overrides(changed, {each.key: each.value}), devices)]
        if not advice:
            return None
        for each in advice:
            alone = with_overrides(changed, {each.key: each.value})
            found = forecast(workload_of(alone), layout_of(alone, devices), device, connected)
            if found.fits:
                return [f"{key}={value}" for key, value in (taken | {each.key: each.value}).items()], found
        taken[advice[0].key] = advice[0].value
        changed = with_overrides(changed, {advice[0].key: advice[0].value})


def with_overrides(settings: Settings, overrides: Overrides) -> Settings:
    """Settings with keys of a section changed, without checking them: `accepts` of a search does that."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in overrides.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    return settings.model_copy(
        update={name: getattr(settings, name).model_copy(update=values) for name, values in sections.items()}
    )


def _divides(settings: Settings, devices: int) -> bool:
    try:
        layout_of(settings, devices)
    except BigtrainError:
        return False
    engine = settings.engine
    return (
        uneven_share(
            settings.model,
            settings.data.sequence_length,
            engine.tensor_parallel_size,
            engine.sequence_parallel_size,
        )
        is None
    )


def _powers(largest: int) -> list[int]:
    return [2**power for power in range(max(largest, 1).bit_length())]
