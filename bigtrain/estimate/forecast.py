"""What a run needs, takes and costs in one layout, as one answer.

Workload + Layout --> memory.py    --> fits, bytes by kind
                  --> step_time.py --> seconds by part, tokens/s, MFU
Run (tokens, price, failures)      --> hours, GPU-hours, money, energy, goodput
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bigtrain.estimate.constants import FITTED, Constants
from bigtrain.estimate.devices import Device
from bigtrain.estimate.goodput import Costs, Goodput, expected_goodput, optimal_interval
from bigtrain.estimate.layout import Layout
from bigtrain.estimate.memory import MemoryForecast, forecast_memory
from bigtrain.estimate.network import Interconnect
from bigtrain.estimate.step_time import StepForecast, forecast_step
from bigtrain.estimate.workload import Workload


@dataclass(frozen=True)
class RunPlan:
    """What is planned beside the layout."""

    tokens: float
    """Tokens to train on."""
    price: float | None = None
    """Money for one device and hour."""
    device_mtbf_hours: float | None = 50_000.0
    """Hours between two failures of one device, with its share of the node; None: no failures. Llama 3 (2024, section
    3.3.4) reports 419 in 54 days on 16,384 devices."""
    interval_seconds: float | None = None
    """Training between two saves. Default: the one that loses least time."""
    costs: Costs = Costs(stall_seconds=5.0, durable_seconds=60.0, detection_seconds=60.0, restart_seconds=300.0)  # noqa: RUF009
    """What saving and failing cost."""


@dataclass(frozen=True)
class RunForecast:
    """How long a run takes by the clock, and what it costs."""

    hours: float
    """By the clock: training, saves, failures and restarts."""
    training_hours: float
    """Without saves and failures."""
    device_hours: float
    """Hours of all devices."""
    cost: float | None
    """Money, in the unit of the price; None without a price."""
    energy_kwh: float | None
    """Of the devices alone, at their power limit; None where it is unknown."""
    goodput: Goodput | None
    """Where the time goes; None without failures."""


@dataclass(frozen=True)
class Forecast:
    """What a layout needs and reaches."""

    layout: Layout
    device: Device
    fits: bool
    memory: MemoryForecast
    memory_left: float
    """Bytes that remain on the device; negative where it does not fit."""
    step: StepForecast
    tokens_per_step: float
    tokens_per_second_per_device: float
    mfu: float
    """Model FLOP/s as a share of the peak, attention counted over whole sequences (PaLM, appendix B)."""
    mfu_causal: float
    """The same with attention counted over the tokens that a token sees."""
    run: RunForecast | None = None

    @property
    def peak_gib(self) -> float:
        """Peak of the device's memory in GiB, as `nvidia-smi` shows it."""
        return self.memory.total / 2**30

    @property
    def step_seconds(self) -> float:
        """Seconds of a step."""
        return self.step.total


def forecast(
    work: Workload,
    layout: Layout,
    device: Device,
    connected: Interconnect,
    *,
    run: RunPlan | None = None,
    constants: Constants = FITTED,
) -> Forecast:
    """Return what a workload needs and reaches in a layout.

    Args:
        work: the model and how it is computed.
        layout: how it is spread over devices.
        device: each of them.
        connected: how they are connected (`interconnect(device)`).
        run: tokens, price and failures, for hours, money and goodput.
        constants: of the fit.
    """
    memory = forecast_memory(work, layout, constants)
    step = forecast_step(work, layout, device, connected, constants)
    left = memory.left(device, constants)
    tokens = float(layout.global_batch_size * work.sequence_length)
    per_device = tokens / step.total / layout.devices
    peak = device.peak(work.compute)
    return Forecast(
        layout=layout,
        device=device,
        fits=left >= 0,
        memory=memory,
        memory_left=left,
        step=step,
        tokens_per_step=tokens,
        tokens_per_second_per_device=per_device,
        mfu=per_device * work.flops_per_token() / peak,
        mfu_causal=per_device * work.flops_per_token(causal=True) / peak,
        run=_run(run, tokens, step.total, layout.devices, device) if run else None,
    )


def _run(run: RunPlan, tokens_per_step: float, step_seconds: float, devices: int, device: Device) -> RunForecast:
    training = run.tokens / tokens_per_step * step_seconds / 3600
    hours, goodput = training, None
    if run.device_mtbf_hours is not None:
        mtbf = run.device_mtbf_hours * 3600 / devices
        interval = run.interval_seconds or optimal_interval(run.costs.stall_seconds, mtbf)
        goodput = expected_goodput(run.costs, interval, mtbf)
        hours = training / goodput.training
    device_hours = hours * devices
    return RunForecast(
        hours=hours,
        training_hours=training,
        device_hours=device_hours,
        cost=None if run.price is None else run.price * device_hours,
        energy_kwh=None if device.power_watts is None else device.power_watts / 1000 * device_hours,
        goodput=goodput,
    )


def with_run(found: Forecast, run: RunPlan) -> Forecast:
    """Return a forecast with the hours, money and goodput of another run in the same layout."""
    answer = _run(run, found.tokens_per_step, found.step.total, found.layout.devices, found.device)
    return replace(found, run=answer)
