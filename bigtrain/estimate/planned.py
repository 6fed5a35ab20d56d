"""What `bigtrain plan` is asked, and what it answers.

--gpus, --gpu, --nodes, --interconnect  --> Machines --+
--tokens | --hours, --price             --> Wish ------+--> plan --> PlannedRun: the layout of the settings,
settings                                             --+             or the best one of a search
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bigtrain.base import BigtrainError
from bigtrain.config import Settings
from bigtrain.estimate.devices import Device, device
from bigtrain.estimate.forecast import Forecast, RunPlan, forecast, with_run
from bigtrain.estimate.network import Interconnect, interconnect
from bigtrain.estimate.run_workload import layout_of, workload_of
from bigtrain.estimate.search import Candidate, LayoutSearch, search, what_would_fit

MOST_GPUS = 65_536
CURRENCIES = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY"}
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_DOUBLINGS = 3
"""How many times half and twice as many GPUs are looked at for the front of hours against GPUs."""


@dataclass(frozen=True)
class Machines:
    """The machines of a job."""

    device: Device
    gpus: int
    nodes: int
    connected: Interconnect

    @classmethod
    def of(
        cls,
        gpu: str,
        gpus: int,
        *,
        nodes: int | None = None,
        network: str | None = None,
        datasheets: Path | None = None,
    ) -> Machines:
        """The machines by name.

        Args:
            gpu: name of the device.
            gpus: how many.
            nodes: over how many nodes; default: as few as hold them.
            network: between nodes; default: that of the reference server.
            datasheets: a YAML file with devices of the user's own.

        Raises:
            BigtrainError: there is no such device or network, or the devices do not divide over the nodes.
        """
        kind = device(gpu, datasheets)
        if not 1 <= gpus <= MOST_GPUS:
            raise BigtrainError(
                "the number of GPUs is out of range", found=f"--gpus {gpus}", wanted=f"1 to {MOST_GPUS:,}"
            )
        if nodes is not None and (nodes < 1 or gpus % nodes):
            raise BigtrainError(
                "the GPUs do not divide over the nodes",
                found=f"--gpus {gpus} and --nodes {nodes}",
                wanted="a multiple of the nodes",
                fix=f"give --gpus {-(-gpus // max(nodes, 1)) * max(nodes, 1)}, or another number of nodes",
            )
        connected = interconnect(kind, network, gpus // nodes if nodes else None)
        return cls(kind, gpus, nodes or -(-gpus // connected.node_size), connected)

    def with_gpus(self, gpus: int) -> Machines:
        """So many of the same machines."""
        return Machines(self.device, gpus, -(-gpus // self.connected.node_size), self.connected)


@dataclass(frozen=True)
class Price:
    """Money for one device and hour."""

    amount: float
    currency: str

    @classmethod
    def of(cls, text: str) -> Price:
        """Read `2.5USD`, `2.5 USD`, `$2.5` or `EUR 3`.

        Raises:
            BigtrainError: it has no currency or is no number.
        """
        match = re.fullmatch(r"\s*([A-Z]{3}|[$€£¥])?\s*(\d+(?:\.\d+)?)\s*([A-Z]{3}|[$€£¥])?\s*", text)
        if match is None or bool(match[1]) == bool(match[3]):
            raise BigtrainError(
                "the price is not an amount with a currency",
                found=f"--price {text}",
                wanted="money for one GPU and hour, with its currency",
                fix="write for example --price 2.50USD",
            )
        unit = match[1] or match[3]
        return cls(float(match[2]), CURRENCIES.get(unit, unit))


def amount_of(option: str, text: str) -> float:
    """Read a positive number with a unit: `15T`, `300B`, `1.2e9`.

    Args:
        option: that it was given to, for the message.
        text: the number.

    Raises:
        BigtrainError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:[._]\d+)*(?:e\d+)?)\s*([kmgbt]?)\s*", text.lower())
    amount = float(match[1].replace("_", "")) * _UNITS[match[2]] if match else 0.0
    if amount <= 0:
        raise BigtrainError(f"{option} is no positive number", found=text, wanted="a number such as 300B, 15T or 2.5e9")
    return amount


@dataclass(frozen=True)
class Wish:
    """How much a run is to do, and at what price. With neither tokens nor hours: what the settings say."""

    tokens: float | None = None
    hours: float | None = None
    """By the clock."""
    price: Price | None = None

    def __post_init__(self) -> None:
        """Raises BigtrainError: tokens and hours are both given."""
        if self.tokens is not None and self.hours is not None:
            raise BigtrainError(
                "hours and tokens contradict each other: one follows from the other",
                found=f"--tokens {self.tokens:.3g} and --hours {self.hours:g}",
                wanted="one of the two",
                fix="remove one; the answer says the other",
            )

    def run_of(self, found: Forecast, settings: Settings) -> RunPlan:
        """The run that is wished for in a layout."""
        amount = None if self.price is None else self.price.amount
        if self.hours is None:
            consumed = settings.train.batches.consumed_after(settings.total_steps)
            return RunPlan(self.tokens or float(consumed * settings.data.sequence_length), price=amount)
        an_hour = with_run(found, RunPlan(found.tokens_per_step)).run
        assert an_hour is not None
        return RunPlan(found.tokens_per_step * self.hours / an_hour.hours, price=amount)


@dataclass(frozen=True)
class PlannedLayout:
    """One layout, and what it needs, takes and costs."""

    overrides: list[str]
    """Settings that make it, as `bigtrain train` and `bigtrain submit` take them."""
    fits: bool
    memory: dict[str, float]
    """Bytes by kind, of the rank that needs most."""
    peak_gib: float
    """Their sum in GiB: what `nvidia-smi` shows."""
    left_gib: float
    """What remains of the device's memory; negative where it does not fit."""
    step_seconds: dict[str, float]
    """Seconds of a step by part. They add up to `seconds`."""
    seconds: float
    """Of a step."""
    tokens_per_second_per_gpu: float
    mfu: float
    """Model FLOP/s as a share of the datasheet's peak, attention counted over whole sequences."""
    mfu_causal: float
    """The same with attention counted over the tokens that a token sees."""
    limit: str
    """What a step waits for longest beside the products of the model."""
    tokens: float
    """Of the run."""
    hours: float
    """Of the run by the clock: with saves, failures and restarts."""
    gpu_hours: float
    cost: float | None
    """Of the run, in `currency`; null without a price."""
    energy_kwh: float | None
    """Of the GPUs alone, at their power limit; null where it is unknown."""
    goodput: dict[str, float] | None
    """Where the time of the run goes, in shares."""

    @property
    def name(self) -> str:
        """The layout in a few words; that of the settings has no overrides."""
        words = []
        for override in self.overrides:
            key, value = override.split("=")
            if key == "engine.activation_checkpointing":
                words += [value] if value != "none" else []
            elif value != "1" or key in _ALWAYS_NAMED:
                words.append(f"{_SHORT[key]} {value}")
        return ", ".join(words) or "as the settings say"


_ALWAYS_NAMED = ("engine.zero_stage", "train.micro_batch_size")
_SHORT = {
    "engine.zero_stage": "stage",
    "engine.tensor_parallel_size": "tensor",
    "engine.sequence_parallel_size": "sequence",
    "engine.zero_hpz_partition_size": "hpz",
    "train.micro_batch_size": "rows",
}
"""Words for settings that a search changes."""


@dataclass(frozen=True)
class PlannedStage:
    """What the steps of one length of samples need and take."""

    first_step: int
    sequence_length: int
    """Tokens in a sample."""
    micro_batch_size: int
    """Samples in one forward pass."""
    fits: bool
    peak_gib: float
    seconds: float
    """Of a step."""
    tokens: float
    """Of all its steps."""
    hours: float
    """By the clock, as those of the run."""


@dataclass(frozen=True)
class FrontPoint:
    """The best layout of one number of GPUs."""

    gpus: int
    hours: float
    gpu_hours: float
    overrides: list[str]


@dataclass(frozen=True)
class PlannedRun(PlannedLayout):
    """What `bigtrain plan` answers: the layout of the settings, or the best one of a search."""

    gpu: str
    gpus: int
    nodes: int
    network_gbit: float
    """Of one GPU, one way."""
    parameters: int
    flops_per_token: float
    """Forward and backward, by the field's convention: 6 N + 12 L H Q T."""
    currency: str | None
    remedies: list[str]
    """Where it does not fit: the cheapest changes that make it fit; empty where none do."""
    tried: int
    """Layouts that a search tried."""
    fitting: int
    """Those of them that fit."""
    best: list[PlannedLayout]
    """The fastest layouts of a search."""
    front: list[FrontPoint]
    """The best layout for numbers of GPUs around the one asked for."""
    stages: list[PlannedStage]
    """Where the length of the samples changes: each length in the layout of the first. Time and cost of the run are
    their sums, and it fits where all of them do; empty where the length stays."""


def plan(
    settings: Settings,
    machines: Machines,
    wish: Wish,
    *,
    searches: bool = False,
    accepts: Callable[[Sequence[str]], bool] = lambda arguments: True,
) -> PlannedRun:
    """Forecast a run.

    Args:
        settings: of the run.
        machines: that it is to run on.
        wish: how much it is to do.
        searches: look for the fastest layout, in the place of that of the settings.
        accepts: whether the settings allow overrides.

    Raises:
        BigtrainError: the GPUs or the global batch do not divide.
    """
    found, best, front = None, [], []
    work = workload_of(settings)
    if searches:
        found = _search(settings, machines, accepts)
        chosen = found.best[0] if found.best else found.closest
        if chosen is None:
            layout_of(settings, machines.gpus)  # says what does not divide
            raise BigtrainError(
                "no layout divides these GPUs and this batch",
                found=f"{machines.gpus} GPUs, train.global_batch_size {settings.train.global_batch_size}",
                wanted="a global batch that is a multiple of the data-parallel size",
                fix="change train.global_batch_size or --gpus",
            )
        best = [_planned(each, settings, wish) for each in found.best]
        front = list(_front(settings, machines, wish, accepts))
    else:
        layout = layout_of(settings, machines.gpus)
        chosen = Candidate({}, forecast(work, layout, machines.device, machines.connected))
    remedies: list[str] = []
    if not chosen.forecast.fits:
        way_out = what_would_fit(settings, machines.gpus, machines.device, machines.connected)
        remedies = list(way_out[0]) if way_out else []
    planned = _planned(chosen, settings, wish)
    stages = _stages(chosen.forecast, settings, machines, wish) if len(settings.stages) > 1 else []
    return PlannedRun(
        **vars(_in_stages(planned, stages) if stages else planned),
        gpu=machines.device.name,
        gpus=machines.gpus,
        nodes=machines.nodes,
        network_gbit=machines.connected.network_gbs * 8,
        parameters=work.parameters,
        flops_per_token=work.flops_per_token(),
        currency=wish.price.currency if wish.price else None,
        remedies=remedies,
        tried=found.tried if found else 1,
        fitting=found.fitting if found else int(chosen.forecast.fits),
        best=best,
        front=front,
        stages=stages,
    )


def _stages(first: Forecast, settings: Settings, machines: Machines, wish: Wish) -> list[PlannedStage]:
    """Each stage of a run, in the layout of the first."""
    total = wish.run_of(first, settings).tokens
    stages, planned = settings.stages, []
    ends = [*(stage.first_step for stage in stages[1:]), settings.total_steps + 1]
    for stage, end in zip(stages, ends, strict=True):
        staged = settings.at_step(stage.first_step)
        batch = settings.batches.stage_of(stage.first_step)
        rows = batch.micro_batch_size(first.layout.micro_batch_size)
        held = first.layout.data * rows
        layout = replace(
            first.layout, micro_batch_size=rows, accumulation_steps=max(1, staged.train.global_batch_size // held)
        )
        found = forecast(workload_of(staged), layout, machines.device, machines.connected)
        tokens = total * max(0, min(end, settings.total_steps + 1) - stage.first_step) / settings.total_steps
        outcome = with_run(found, RunPlan(tokens)).run
        assert outcome is not None
        planned.append(
            PlannedStage(
                first_step=stage.first_step,
                sequence_length=stage.sequence_length,
                micro_batch_size=rows,
                fits=found.fits,
                peak_gib=found.peak_gib,
                seconds=found.step_seconds,
                tokens=tokens,
                hours=outcome.hours,
            )
        )
    return planned


def _in_stages(planned: PlannedLayout, stages: Sequence[PlannedStage]) -> PlannedLayout:
    """A layout with the time and the cost of all stages; it fits where all of them do."""
    times = sum(stage.hours for stage in stages) / planned.hours
    return replace(
        planned,
        fits=all(stage.fits for stage in stages),
        hours=planned.hours * times,
        gpu_hours=planned.gpu_hours * times,
        cost=None if planned.cost is None else planned.cost * times,
        energy_kwh=None if planned.energy_kwh is None else planned.energy_kwh * times,
    )


def _search(
    settings: Settings, machines: Machines, accepts: Callable[[Sequence[str]], bool], count: int = 5
) -> LayoutSearch:
    return search(settings, machines.gpus, machines.device, machines.connected, count=count, accepts=accepts)


def _front(
    settings: Settings, machines: Machines, wish: Wish, accepts: Callable[[Sequence[str]], bool]
) -> list[FrontPoint]:
    """The best layout of each number of GPUs around that of the job, where one fits."""
    points = []
    for power in range(-_DOUBLINGS, _DOUBLINGS + 1):
        gpus = machines.gpus * 2**power
        if gpus != int(gpus) or not 1 <= gpus <= MOST_GPUS:
            continue
        if best := _search(settings, machines.with_gpus(int(gpus)), accepts, count=1).best:
            planned = _planned(best[0], settings, wish)
            points.append(FrontPoint(int(gpus), planned.hours, planned.gpu_hours, planned.overrides))
    return points


def _planned(candidate: Candidate, settings: Settings, wish: Wish) -> PlannedLayout:
    found = candidate.forecast
    run = wish.run_of(found, settings)
    outcome = with_run(found, run).run
    assert outcome is not None
    return PlannedLayout(
        overrides=candidate.arguments,
        fits=found.fits,
        memory=found.memory.kinds,
        peak_gib=found.peak_gib,
        left_gib=found.memory_left / 2**30,
        step_seconds=found.step.parts,
        seconds=found.step_seconds,
        tokens_per_second_per_gpu=found.tokens_per_second_per_device,
        mfu=found.mfu,
        mfu_causal=found.mfu_causal,
        limit=candidate.limit,
        tokens=run.tokens,
        hours=outcome.hours,
        gpu_hours=outcome.device_hours,
        cost=outcome.cost,
        energy_kwh=outcome.energy_kwh,
        goodput=asdict(outcome.goodput) if outcome.goodput else None,
    )
