"""Whether all ranks run the same programs, in the same environment, with the same settings."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import xxhash

from bigtrain.base.launcher_protocol import LAUNCHER, PROGRESS, STORE
from bigtrain.base.version import __version__
from bigtrain.config.flat import flat
from bigtrain.doctor.check import Measured, Patient
from bigtrain.doctor.finding import Finding

PACKAGES = ("torch", "deepspeed", "numpy", "tokenizers", "safetensors")
ENVIRONMENT = ("BIGTRAIN_", "NCCL_", "TORCH_NCCL_", "GLOO_", "TP_SOCKET_", "OMP_", "UCX_", "FI_", "PYTORCH_")
OF_THIS_PROCESS = (
    LAUNCHER,
    PROGRESS,
    STORE,
    "BIGTRAIN_INTERFACE",
    "GLOO_SOCKET_IFNAME",
    "NCCL_SOCKET_IFNAME",
    "NCCL_IB_HCA",
)
"""Variables that may differ between hosts."""
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
SHOWN = 6


def measure_versions(patient: Patient) -> dict[str, str | None]:
    """What this rank runs on."""
    versions: dict[str, str | None] = {"bigtrain": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    versions["code"] = _code()
    if patient.device.type == "cuda":
        nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        versions |= {
            "CUDA": torch.version.cuda,
            "NCCL": ".".join(map(str, nccl)) if isinstance(nccl, tuple) else str(nccl),
            "driver": driver_version(),
        }
    return versions


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _code() -> str:
    """A hash over our own source: a host with yesterday's checkout has the same version."""
    digest = xxhash.xxh3_64()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def driver_version() -> str | None:
    """Of the GPUs; None where the kernel does not tell."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
        return next((word for word in text.split() if word.count(".") >= 1 and word[0].isdigit()), None)
    except OSError:
        pass
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        out = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.split()
        return out[0] if out else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def judge_versions(measured: Measured, patient: Patient) -> Iterator[Finding]:
    """The same everywhere; those in the minority are named."""
    for name in {name: None for each in measured.values() for name in each}:
        values = {rank: each.get(name) for rank, each in measured.items()}
        usual, _ = Counter(values.values()).most_common(1)[0]
        odd = {rank: value for rank, value in values.items() if value != usual}
        if odd:
            theirs = ", ".join(sorted({str(value) for value in odd.values()}))
            what = "another state of bigtrain's own source" if name == "code" else f"{name} {theirs}"
            yield Finding(
                "versions",
                "failed" if name in ("bigtrain", "code", "torch", "deepspeed", "NCCL") else "warning",
                f"{patient.meeting.who(odd)} has {what}, the others {usual}",
                "the same on all ranks: they exchange tensors, and compute together what must come out the same",
                "install the same environment on all hosts, or use one on a shared file system or in an image",
            )
    first = measured[min(measured)]
    named = [f"{name} {value}" for name, value in first.items() if value is not None and name != "code"]
    yield Finding("versions", "ok", ", ".join(named))


def measure_environment(patient: Patient) -> dict[str, str]:
    """The variables that steer libraries; no secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(ENVIRONMENT) and name not in OF_THIS_PROCESS and not any(each in name for each in SECRET)
    }


def judge_environment(measured: Measured, patient: Patient) -> Iterator[Finding]:
    """The same everywhere, and the same as where the leader runs."""
    for name in sorted({name for each in measured.values() for name in each}):
        values = {rank: each.get(name) for rank, each in measured.items()}
        usual, _ = Counter(values.values()).most_common(1)[0]
        odd = {rank: value for rank, value in values.items() if value != usual}
        if odd:
            theirs = sorted({str(value) for value in odd.values()})
            yield Finding(
                "environment",
                "warning",
                f"{name} is {_or_unset(theirs)} on {patient.meeting.who(odd)}, {_or_unset([str(usual)])} elsewhere",
                "the same on all ranks",
                "export it in the script that starts all of them, see launch/environment.sh",
            )
    names = sorted(measured[min(measured)])
    told = f": {', '.join(names[:SHOWN])}" + (", ..." if len(names) > SHOWN else "") if names else ""
    yield Finding("environment", "ok", f"{len(names)} variable(s) that steer libraries, the same everywhere{told}")


def _or_unset(values: list[str]) -> str:
    return ", ".join("not set" if value == "None" else value for value in values)


def measure_configuration(patient: Patient) -> dict[str, Any]:
    """In what this rank's settings differ from the leader's."""
    assert patient.settings is not None
    mine = flat(patient.settings)
    if patient.meeting.leads:
        patient.meeting.tell("settings", mine)
        return {"hash": settings_hash(mine), "differs": {}}
    theirs = patient.meeting.hear("settings", 5.0)
    differs = {key: [theirs.get(key), mine.get(key)] for key in theirs | mine if theirs.get(key) != mine.get(key)}
    return {"hash": settings_hash(mine), "differs": differs}


def settings_hash(leaves: Mapping[str, Any]) -> str:
    """The same for the same settings."""
    return xxhash.xxh3_64_hexdigest(json.dumps(leaves, sort_keys=True).encode())


def judge_configuration(measured: Measured, patient: Patient) -> Iterator[Finding]:
    """No rank has other settings than the leader; keys, values and ranks are named."""
    assert patient.settings is not None
    leader = patient.meeting.rank
    found: dict[str, dict[str, list[int]]] = {}
    for rank, each in measured.items():
        for key, (_, mine) in each["differs"].items():
            found.setdefault(key, {}).setdefault(json.dumps(mine), []).append(rank)
    ours = flat(patient.settings)
    for key, values in list(found.items())[:SHOWN]:
        theirs = "; ".join(f"{value} on {patient.meeting.who(ranks)}" for value, ranks in values.items())
        yield Finding(
            "configuration",
            "failed",
            f"{key} is {theirs}, and {json.dumps(ours.get(key))} on {patient.meeting.who([leader])}",
            "the same effective settings on all ranks",
            "give all hosts the same file and overrides: a copy on one of them may be old",
        )
    if len(found) > SHOWN:
        yield Finding("configuration", "failed", f"and {len(found) - SHOWN} more keys differ")
    patient.measured["settings_hash"] = settings_hash(ours)
    yield Finding("configuration", "ok", f"{len(ours)} settings, the same everywhere ({settings_hash(ours)})")
