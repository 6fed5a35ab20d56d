"""The manifest of a checkpoint: its contents, and the hashes that show whether it is whole."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import xxhash

from bigtrain.base import BigtrainError, bare_name

MANIFEST = "manifest.json"
COMMITTED = re.compile(r"step-(\d{8,})")


def step_name(step: int) -> str:
    """The name of a step's checkpoint, in any storage."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class FileChecksum:
    """Size and hash of a file."""

    size: int
    """Bytes."""
    xxh3_128: str
    """Hash of the contents, 32 hexadecimal digits."""


FORMAT = 1


@dataclass(frozen=True)
class Cursor:
    """The position of the run."""

    step: int
    """Optimizer steps done."""
    consumed_samples: int
    """Training samples done. Together with the plan this is the whole state of the data."""
    plan_id: str
    """Identity of the plan, which gives the order of the samples."""
    optimizer_steps: int
    """Updates that the optimizer has applied: `step` minus those skipped for a gradient that was not finite."""


@dataclass(frozen=True)
class CheckpointManifest:
    """Everything about a checkpoint except the tensors."""

    cursor: Cursor
    world_size: int
    """Ranks that wrote it."""
    zero_stage: int
    """The ZeRO stage of the ranks that wrote it. For people: any stage can load it."""
    mathematics: dict[str, Any]
    """The settings that change the result of training, by dotted key."""
    versions: dict[str, str]
    """Versions of bigtrain and the libraries that it uses."""
    kinds: list[str]
    """The kinds of state of each parameter: `master`, `exp_avg`, ..."""
    tensors: dict[str, list[int]]
    """The shape of each parameter."""
    files: dict[str, FileChecksum]
    """Size and hash of each file beside the manifest, in rank order."""
    layout: str = ""
    """Identifies which rank owns which state. With an equal layout, a rank finds its own state in its own file."""
    partners: dict[str, str] = field(default_factory=dict)
    """For each file of a rank that shares pieces with others: a value. Files with equal values hold all of the
    pieces."""
    state: dict[str, Any] = field(default_factory=dict)
    """JSON values that the run needs again, such as the W&B run id. See `bigtrain.rundir.run_state`."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When it was written, for people. The step gives the order, never a clock."""

    def to_json(self) -> str:
        """The text of manifest.json. The field `digest` is a hash over all others."""
        fields = {"format": FORMAT, **asdict(self)}
        return json.dumps({**fields, "digest": _digest(fields)}, indent=1, sort_keys=True)


def parse_manifest(path: str, text: bytes) -> CheckpointManifest:
    """The manifest in a file, checked against its own digest.

    Raises:
        BigtrainError: it is damaged, of a later format, or has a path in place of the name of a file.
    """
    try:
        fields = json.loads(text)
        digest = fields.pop("digest")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BigtrainError(f"{path} cannot be read", found=f"{type(error).__name__}: {error}") from error
    if digest != _digest(fields):
        raise BigtrainError(f"{path} is damaged", found=f"digest {_digest(fields)}", wanted=digest)
    if (found := fields.pop("format")) != FORMAT:
        raise BigtrainError(f"{path} is of another format", found=found, wanted=FORMAT)
    fields["cursor"] = Cursor(**fields["cursor"])
    fields["files"] = {bare_name(name, path): FileChecksum(**checksum) for name, checksum in fields["files"].items()}
    return CheckpointManifest(**fields)


def _digest(fields: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(fields, sort_keys=True).encode())
