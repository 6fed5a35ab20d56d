"""The FLOP/s that count as 100% in MFU: the datasheet's for a device of a known name, else those of a matrix product.

A peak is never guessed. Names are compared as a whole, because an H100 PCIe has three quarters of the speed of an H100
SXM. An unknown GPU is measured, and so is a CPU, whose figure depends on clocks and cores. Wherever MFU is shown, the
source of the peak is shown too.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bigtrain.base import reached

MATMUL_SIZES = {"cpu": (1024, 2048), "cuda": (8192,)}
"""Rows and columns of the square matrices that are multiplied."""
ROUNDS_AT_LEAST = 5
"""Products of each size, at least."""
LONGEST_SECONDS = 3.0
"""Seconds after which no other product is started, whatever is missing: a busy CPU may take seconds for one."""


class Rates(NamedTuple):
    """Dense TFLOP/s by the datasheet: without sparsity, accumulating in float32. None: no such type."""

    bf16: float | None
    fp16: float | None
    fp8: float | None
    tf32: float | None
    fp32: float | None


_H100_SXM = Rates(989.5, 989.5, 1979.0, 494.7, 66.9)
_H100_NVL = Rates(835.5, 835.5, 1671.0, 417.5, 60.0)
_A100 = Rates(312.0, 312.0, None, 156.0, 19.5)
_V100_SXM = Rates(None, 125.0, None, None, 15.7)
_V100_PCIE = Rates(None, 112.0, None, None, 14.0)

# By the exact name that torch.cuda.get_device_name returns. Figures "with sparsity" are halved.
DATASHEETS = {
    # NVIDIA H100 Tensor Core GPU datasheet (2024)
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    "NVIDIA H100 PCIe": Rates(756.5, 756.5, 1513.0, 378.0, 51.0),
    "NVIDIA H100 NVL": _H100_NVL,
    # NVIDIA H200 Tensor Core GPU datasheet (2024)
    "NVIDIA H200": _H100_SXM,
    "NVIDIA H200 NVL": _H100_NVL,
    # NVIDIA GH200 Grace Hopper Superchip datasheet (2024)
    "NVIDIA GH200 480GB": _H100_SXM,
    # NVIDIA DGX B200 datasheet (2024): an eighth of 36 PFLOP/s (bf16) and 72 (fp8), halved
    "NVIDIA B200": Rates(2250.0, 2250.0, 4500.0, 1125.0, 75.0),
    # NVIDIA A100 Tensor Core GPU datasheet (2021)
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    # NVIDIA A30, A40 and A10 datasheets (2021)
    "NVIDIA A30": Rates(165.0, 165.0, None, 82.0, 10.3),
    "NVIDIA A40": Rates(149.7, 149.7, None, 74.8, 37.4),
    "NVIDIA A10": Rates(125.0, 125.0, None, 62.5, 31.2),
    # NVIDIA L4 (2023), L40 (2022) and L40S (2023) datasheets
    "NVIDIA L4": Rates(121.0, 121.0, 242.5, 60.0, 30.3),
    "NVIDIA L40": Rates(181.05, 181.05, 362.0, 90.5, 90.5),
    "NVIDIA L40S": Rates(362.05, 362.05, 733.0, 183.0, 91.6),
    # Appendices of the GA102 (2021), AD102 (2022) and RTX Blackwell (2025) whitepapers, "with FP32 accumulate"
    "NVIDIA GeForce RTX 3090": Rates(71.0, 71.0, None, 35.6, 35.6),
    "NVIDIA GeForce RTX 4090": Rates(165.2, 165.2, 330.3, 82.6, 82.6),
    "NVIDIA GeForce RTX 5090": Rates(209.5, 209.5, 419.0, 104.8, 104.8),
    # NVIDIA V100 datasheet (2020)
    "Tesla V100-SXM2-16GB": _V100_SXM,
    "Tesla V100-SXM2-32GB": _V100_SXM,
    "Tesla V100-PCIE-16GB": _V100_PCIE,
    "Tesla V100-PCIE-32GB": _V100_PCIE,
    # NVIDIA T4 datasheet (2019)
    "Tesla T4": Rates(None, 65.0, None, None, 8.1),
    # AMD Instinct MI300X and MI325X accelerator data sheets (2023, 2024)
    "AMD Instinct MI300X": Rates(1307.4, 1307.4, 2614.9, 653.7, 163.4),
    "AMD Instinct MI325X": Rates(1307.4, 1307.4, 2614.9, 653.7, 163.4),
}


@dataclass(frozen=True)
class Peak:
    """The FLOP/s that count as 100%, of one device or of all devices of a run."""

    flops: float
    """FLOP/s; a multiply-add counts as two."""
    measured: float
    """FLOP/s that a large matrix product reached here."""
    datasheet: str | None
    """The device whose datasheet `flops` is from; None where it is `measured`."""
    kind: str
    """The kind of arithmetic: a field of Rates."""
    processor: str = ""
    """What was measured: devices with their number, of a CPU its threads and instructions too."""

    @property
    def source(self) -> str:
        """`datasheet` or `measured`, for records."""
        return "datasheet" if self.datasheet else "measured"

    @property
    def described(self) -> str:
        """The source of the peak, as it follows "MFU, "."""
        if self.datasheet:
            return f"of the datasheet's {_tera(self.flops)} ({self.datasheet}, {self.kind})"
        return f"of the measured matmul peak of {_tera(self.flops)}"

    def with_earlier(self, peaks: Iterable[Mapping[str, Any]]) -> Peak:
        """The same, or the highest of those that were measured at earlier starts of this run on the same processor.

        A CPU that others use too reaches less at one start than at another, and the MFU should not rise for that.

        Args:
            peaks: as `as_record` makes them; others are ignored.
        """
        if self.datasheet:
            return self
        own = self.as_record()
        alike = [peak for peak in peaks if all(peak.get(key) == own[key] for key in ("source", "kind", "processor"))]
        rates = [rate for peak in alike if isinstance(rate := peak.get("flops"), float) and math.isfinite(rate)]
        return replace(self, flops=max(self.flops, *rates, 0.0))

    def as_record(self) -> dict[str, float | str | None]:
        """Return the peak as JSON values."""
        return {
            "flops": self.flops,
            "source": self.source,
            "device": self.datasheet,
            "kind": self.kind,
            "processor": self.processor,
            "measured_matmul_flops": round(self.measured),
        }

    def __str__(self) -> str:
        if self.datasheet:
            return f"{_tera(self.flops)} by the datasheet, of which a matrix product reaches {_tera(self.measured)}"
        if self.flops > self.measured:
            return f"{_tera(self.flops)}, measured at an earlier start; now a product reaches {_tera(self.measured)}"
        return f"{_tera(self.flops)}, measured with a matrix product"


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """Return the peak of one device: by its datasheet, or measured.

    Args:
        device: where the model is trained.
        dtype: the type that it computes with.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    kind = kind_of(dtype)
    measured = measure_matmul_peak(device, dtype)
    rate = datasheet_flops(name, kind)
    return Peak(rate or measured, measured, name if rate else None, kind, name or _cpu())


def peak_of_all(peaks: Sequence[Peak]) -> Peak:
    """Return the sum of several devices' peaks; all count as measured where one has no datasheet."""
    measured = sum(peak.measured for peak in peaks)
    processors = _counted([peak.processor for peak in peaks])
    if any(peak.datasheet is None for peak in peaks):
        return Peak(measured, measured, None, peaks[0].kind, processors)
    of = _counted([str(peak.datasheet) for peak in peaks])
    return Peak(sum(peak.flops for peak in peaks), measured, of, peaks[0].kind, processors)


def _counted(names: Sequence[str]) -> str:
    """Names with their numbers; one alone stays as it is."""
    if len(names) == 1:
        return names[0]
    return " + ".join(f"{number} x {name}" for name, number in sorted(Counter(names).items()))


def cpu_name() -> str:
    """The model of this CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _cpu() -> str:
    """This CPU as PyTorch uses it. Models of virtual machines share names, so the instructions are named too."""
    return f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s))"


def datasheet_flops(name: str | None, kind: str) -> float | None:
    """Return the FLOP/s in a device's datasheet; None for an unknown name, or where there is no such figure."""
    rates = DATASHEETS.get(name) if name is not None else None
    rate: float | None = getattr(rates, kind) if rates is not None else None
    return None if rate is None else rate * 1e12


def kind_of(dtype: torch.dtype) -> str:
    """Return the field of Rates for matrix products of this type."""
    if dtype == torch.float32:
        return "fp32" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def measure_matmul_peak(
    device: torch.device, dtype: torch.dtype, seconds: float = 0.3, sizes: Sequence[int] | None = None
) -> float:
    """Measure the FLOP/s that this process reaches in a square matrix product on random data.

    Args:
        device: where to multiply.
        dtype: the type that the model computes with.
        seconds: how long to measure.
        sizes: of the matrices; default: MATMUL_SIZES.

    Returns:
        The best rate in FLOP/s, because other processes on the machine may disturb some rounds.
    """
    sizes = sizes or MATMUL_SIZES[device.type]
    rates: list[float] = []
    started = time.perf_counter()
    for size in sizes:
        if rates and time.perf_counter() - started > LONGEST_SECONDS:
            break
        rates.append(_matmul_rate(size, device, dtype, seconds / len(sizes)))
    return max(rates)


def _matmul_rate(size: int, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = left @ right  # the first call, which may prepare something, is not counted
    best, rounds, begun = 0.0, 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds or (rounds < ROUNDS_AT_LEAST and passed < LONGEST_SECONDS):
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        reached("matmul")
        _synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
        rounds += 1
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.4g} TFLOP/s"
