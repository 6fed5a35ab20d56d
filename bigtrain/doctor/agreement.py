"""Checks that all ranks run the same programs, in the same environment, with the same settings."""

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

import xxhash

from bigtrain.base import LAUNCHER, PROGRESS, STORE, __version__
from bigtrain.config import flat
from bigtrain.doctor.check import CheckContext, Measured
from bigtrain.doctor.finding import CheckFinding

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
"""Parts of the names of variables whose values are never shown."""
SHOWN = 6
"""Names or keys in a finding, at most."""


def measure_versions(context: CheckContext) -> dict[str, str | None]:
    """Return the version of each program on this rank."""
    versions: dict[str, str | None] = {"bigtrain": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    if context.meeting.me.local_rank == 0:  # the other ranks of the host have the same files
        versions["code"] = _code()
    if context.device.type == "cuda":
        import torch

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
    """A hash of bigtrain's source: a host with yesterday's checkout has the same version number."""
    digest = xxhash.xxh3_64()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def driver_version() -> str | None:
    """Return the version of the GPUs' driver; None where it cannot be found out."""
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


def assess_versions(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Name the ranks whose version of a program is not that of the majority."""
    for name in {name: None for each in measured.values() for name in each}:
        values = {rank: each.get(name) for rank, each in measured.items() if name != "code" or name in each}
        usual, _ = Counter(values.values()).most_common(1)[0]
        outliers = {rank: value for rank, value in values.items() if value != usual}
        if outliers:
            theirs = ", ".join(sorted({str(value) for value in outliers.values()}))
            what = "another state of bigtrain's own source" if name == "code" else f"{name} {theirs}"
            yield CheckFinding(
                "versions",
                "failed" if name in ("bigtrain", "code", "torch", "deepspeed", "NCCL") else "warning",
                f"{context.meeting.label(outliers)} has {what}, the others {usual}",
                "the same on all ranks: they exchange tensors, and their results must be equal",
                "install the same environment on all hosts, or use one on a shared file system or in an image",
            )
    first = measured[min(measured)]
    named = [f"{name} {value}" for name, value in first.items() if value is not None and name != "code"]
    yield CheckFinding("versions", "ok", ", ".join(named))


def measure_environment(context: CheckContext) -> dict[str, str]:
    """Return the environment variables that configure libraries, without secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(ENVIRONMENT) and name not in OF_THIS_PROCESS and not any(each in name for each in SECRET)
    }


def assess_environment(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Name the ranks whose variable differs from that of the majority."""
    for name in sorted({name for each in measured.values() for name in each}):
        values = {rank: each.get(name) for rank, each in measured.items()}
        usual, _ = Counter(values.values()).most_common(1)[0]
        outliers = {rank: value for rank, value in values.items() if value != usual}
        if outliers:
            theirs = _or_unset(sorted({str(value) for value in outliers.values()}))
            yield CheckFinding(
                "environment",
                "warning",
                f"{name} is {theirs} on {context.meeting.label(outliers)}, {_or_unset([str(usual)])} elsewhere",
                "the same on all ranks",
                "export it in the script that starts all of them, see launch/environment.sh",
            )
    names = sorted(measured[min(measured)])
    shown = f": {', '.join(names[:SHOWN])}" + (", ..." if len(names) > SHOWN else "") if names else ""
    text = f"{len(names)} variable(s) that configure libraries, the same on all ranks{shown}"
    yield CheckFinding("environment", "ok", text)


def _or_unset(values: list[str]) -> str:
    return ", ".join("not set" if value == "None" else value for value in values)


def measure_configuration(context: CheckContext) -> dict[str, Any]:
    """Return the settings of this rank that differ from the leader's."""
    assert context.settings is not None
    mine = flat(context.settings)
    if context.meeting.leads:
        context.meeting.publish("settings", mine)
        context.meeting.publish("settings_hash", settings_hash(mine))
        return {"differs": {}}
    seconds = context.meeting.longer(5.0)
    if context.meeting.receive("settings_hash", seconds) == settings_hash(mine):
        return {"differs": {}}
    theirs = context.meeting.receive("settings", seconds)
    differs = {key: [theirs.get(key), mine.get(key)] for key in theirs | mine if theirs.get(key) != mine.get(key)}
    return {"differs": differs}


def settings_hash(leaves: Mapping[str, Any]) -> str:
    """Return a hash of the settings, equal for equal settings."""
    return xxhash.xxh3_64_hexdigest(json.dumps(leaves, sort_keys=True).encode())


def assess_configuration(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Name each key that differs from the leader's, with its values and ranks."""
    assert context.settings is not None
    leader = context.meeting.rank
    found: dict[str, dict[str, list[int]]] = {}
    for rank, each in measured.items():
        for key, (_, mine) in each["differs"].items():
            found.setdefault(key, {}).setdefault(json.dumps(mine), []).append(rank)
    ours = flat(context.settings)
    for key, values in list(found.items())[:SHOWN]:
        theirs = "; ".join(f"{value} on {context.meeting.label(ranks)}" for value, ranks in values.items())
        yield CheckFinding(
            "configuration",
            "failed",
            f"{key} is {theirs}, and {json.dumps(ours.get(key))} on {context.meeting.label([leader])}",
            "the same effective settings on all ranks",
            "give all hosts the same file and overrides: a copy on one of them may be old",
        )
    if len(found) > SHOWN:
        yield CheckFinding("configuration", "failed", f"and {len(found) - SHOWN} more keys differ")
    context.measured["settings_hash"] = settings_hash(ours)
    yield CheckFinding("configuration", "ok", f"{len(ours)} settings, the same on all ranks ({settings_hash(ours)})")
