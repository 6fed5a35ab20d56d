"""What an accelerator can do, by its datasheet and by the best matrix product that anybody measured on it.

    devices.yaml, or a user's own file -> Device -> step_time.py (rates), memory.py (size), forecast.py (power)

Names are compared without case, vendor and punctuation, so `H100-SXM` and `nvidia h100 sxm` are one device.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bigtrain.base import BigtrainError, text_of

OWN_DATASHEETS = "BIGTRAIN_DATASHEETS"
"""Environment variable: a YAML file with datasheets of the user's own devices."""
DATASHEETS = Path(__file__).with_name("devices.yaml")
_VENDORS = ("nvidia-", "amd-", "intel-")
_LOWER_PRECISION = {"fp4": "fp8", "fp8": "bf16", "bf16": "fp16", "fp16": "tf32", "tf32": "fp32"}
"""What a device without an arithmetic type computes in instead."""


@dataclass(frozen=True)
class Device:
    """One accelerator. Of a board with two dies that count as two devices, it is one die."""

    name: str
    tflops: Mapping[str, float]
    """Dense peak in TFLOP/s by type: bf16, fp16, fp8, fp4, tf32, fp32."""
    memory_mib: float
    """Memory in MiB, the total that `nvidia-smi` shows."""
    memory_gbs: float
    """Bandwidth of the memory in GB/s."""
    link_gbs: float
    """Bandwidth to the other devices of a node, in GB/s, one way (NVLink, Infinity Fabric, else PCIe)."""
    multiprocessors: int
    """Units that each compute a tile of a matrix product at a time."""
    aliases: tuple[str, ...] = ()
    generation: str = ""
    """The architecture, on which the rate of attention kernels depends: ampere, hopper, ..."""
    matmul_tflops: Mapping[str, float] = field(default_factory=dict)
    """TFLOP/s of the best measured matrix product by type. Without one, a share of the peak is assumed."""
    linked_devices: int = 8
    """Devices that the link connects: 8 in a node with NVLink, 72 in a rack."""
    network_gbit: float = 100.0
    """Gbit/s of the network card of one device in the reference server."""
    power_watts: float | None = None
    """Power limit of one device; None: unknown, and energy is not forecast."""
    source: str = ""

    @property
    def memory_bytes(self) -> float:
        """Memory in bytes."""
        return self.memory_mib * 2**20

    def peak(self, precision: str) -> float:
        """Return the datasheet's FLOP/s of a type; without that type, of the next one that the device has."""
        return _of_type(self.tflops, precision) * 1e12

    def reachable(self, precision: str, share_of_peak: float) -> float:
        """Return the FLOP/s of the best matrix product.

        Args:
            precision: bf16, fp16, fp8, fp4, tf32 or fp32.
            share_of_peak: what share of the peak is assumed without a measurement.
        """
        peak = self.peak(precision)
        measured = self.matmul_tflops.get({"fp16": "bf16"}.get(precision, precision))
        return measured * 1e12 if measured else share_of_peak * peak


def _of_type(rates: Mapping[str, float], precision: str) -> float:
    while precision not in rates:
        precision = _LOWER_PRECISION[precision]
    return rates[precision]


def device(name: str, datasheets: Path | None = None) -> Device:
    """Return a device by its name or an alias.

    Args:
        name: for example `h100`, `A100-SXM-40` or `NVIDIA H200 SXM`.
        datasheets: a YAML file with devices of the user's own, which come before the known ones. Default: that of
            BIGTRAIN_DATASHEETS.

    Raises:
        BigtrainError: there is no such device, or the file is not a list of datasheets.
    """
    known = _all(datasheets)
    found = known.get(_normalised(name))
    if found is None:
        nearest = difflib.get_close_matches(_normalised(name), known, n=3, cutoff=0.4)
        names = ", ".join(dict.fromkeys(known[near].name for near in nearest)) or ", ".join(device_names())
        raise BigtrainError(
            f"there is no datasheet of the device {name!r}",
            found=name,
            wanted=names,
            fix="take one of these, or give a datasheet in YAML with the keys of bigtrain/estimate/devices.yaml",
        )
    return found


def known_device(name: str) -> Device | None:
    """Return a device by its name or an alias; None where its datasheet is not known.

    Raises:
        BigtrainError: the file that BIGTRAIN_DATASHEETS names holds no datasheets.
    """
    return _all(None).get(_normalised(name))


def device_names() -> list[str]:
    """Return the names of all known devices."""
    return list(dict.fromkeys(known.name for known in _known().values()))


def read_datasheets(file: Path) -> list[Device]:
    """Read devices from a YAML file: a mapping of names to the fields of `Device`.

    Raises:
        BigtrainError: the file is not such a mapping.
    """
    wanted = "a mapping of names to tflops, memory_mib, memory_gbs, link_gbs, multiprocessors, ..."
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BigtrainError(f"{file}: the datasheets cannot be read", found=error, wanted=wanted) from error
    if not isinstance(document, dict):
        raise BigtrainError(f"{file}: this is no file of datasheets", found=type(document).__name__, wanted=wanted)
    return [_device_of(file, str(name), entry) for name, entry in document.items()]


_TEXTS = ("generation", "source")
_RATES = ("tflops", "matmul_tflops")
_TYPES = frozenset({"bf16", "fp16", "fp8", "fp4", "tf32", "fp32"})
_REQUIRED = ("tflops", "memory_mib", "memory_gbs", "link_gbs", "multiprocessors")


def _device_of(file: Path, name: str, entry: object) -> Device:
    def refuse(what: str, found: object, wanted: object) -> BigtrainError:
        return BigtrainError(f"{file}: {name}: {what}", found=found, wanted=wanted, fix=f"correct {name} in the file")

    if not isinstance(entry, dict):
        raise refuse("a datasheet is a mapping", type(entry).__name__, "keys as in bigtrain/estimate/devices.yaml")
    keys = {known.name for known in fields(Device)} - {"name"}
    if unknown := set(entry) - keys:
        raise refuse("a datasheet has no such key", ", ".join(map(str, unknown)), ", ".join(sorted(keys)))
    if missing := [key for key in _REQUIRED if key not in entry]:
        raise refuse("a datasheet needs more keys", ", ".join(entry), ", ".join(missing))
    checked: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "aliases":
            checked[key] = tuple(map(str, value)) if isinstance(value, list) else (str(value),)
        elif key in _TEXTS:
            checked[key] = str(value)
        elif key in _RATES:
            if not isinstance(value, dict) or set(value) - _TYPES or not all(map(_is_positive, value.values())):
                raise refuse(f"{key} is wrong", value, f"positive TFLOP/s for any of {', '.join(sorted(_TYPES))}")
            if key == "tflops" and not {"fp32", "bf16", "fp16"} & set(value):
                raise refuse("tflops has no type that a model trains in", value, "bf16, fp16 or fp32")
            checked[key] = {"fp32": min(value.values())} | value if key == "tflops" else value
        elif not _is_positive(value):
            raise refuse(f"{key} is wrong", value, "a positive number")
        else:
            checked[key] = value
    return Device(name=name, **checked)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _normalised(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    for vendor in _VENDORS:
        plain = plain.removeprefix(vendor)
    return plain


def _named(file: Path) -> dict[str, Device]:
    return {_normalised(name): found for found in read_datasheets(file) for name in (found.name, *found.aliases)}


def _all(datasheets: Path | None) -> dict[str, Device]:
    own = datasheets or (Path(named) if (named := text_of(OWN_DATASHEETS)) else None)
    return _known() | (_named(own) if own else {})


@cache
def _known() -> dict[str, Device]:
    return _named(DATASHEETS)
