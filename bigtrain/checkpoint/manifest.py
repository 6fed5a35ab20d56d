"""The manifest: what a checkpoint is, and the proof that it is whole."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import xxhash

from bigtrain.base.errors import BigtrainError
from bigtrain.base.file_names import bare_name

MANIFEST = "manifest.json"
COMMITTED = re.compile(r"step-(\d{8,})")


def step_name(step: int) -> str:
    """The name of a step's checkpoint, in any storage."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class FileChecksum:
    """What a file must be, byte for byte."""

    size: int
    """Bytes."""
    xxh3_128: str
    """Hash of the contents, 32 hexadecimal digits."""


FORMAT = 1


@dataclass(frozen=True)
class Cursor:
    """Where the run is."""

    step: int
    """Optimizer steps done."""
    consumed_samples: int
    """Training samples done: the whole state of the data, together with the plan."""
    plan_id: str
    """The plan that says which samples those were."""
    optimizer_steps: int
    """Updates the optimizer has applied: `step` less those skipped for a gradient that was not finite."""


@dataclass(frozen=True)
class CheckpointManifest:
    """Everything about a checkpoint but the tensors."""

    cursor: Cursor
    world_size: int
    """Ranks that wrote it."""
    zero_stage: int
    """The stage it was written at. For people: any other can load it."""
    mathematics: dict[str, Any]
    """The settings that change the result of training, by dotted key."""
    versions: dict[str, str]
    """Of bigtrain and the libraries beneath it."""
    kinds: list[str]
    """What is stored of each parameter: `master`, `exp_avg`, ..."""
    tensors: dict[str, list[int]]
    """The shape of each parameter."""
    files: dict[str, FileChecksum]
    """Size and hash of each file beside the manifest, in rank order."""
    layout: str = ""
    """What decides which rank owns what. Where it is the same, a rank finds its own state in its own file again."""
    partners: dict[str, str] = field(default_factory=dict)
    """Of each file with parts of what several ranks hold: files with the same value make up the whole of it."""
    state: dict[str, Any] = field(default_factory=dict)
    """Whatever the run wants back, such as the W&B run id. JSON."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """For people: when it was written. Order comes from the step, never from a clock."""

    def to_json(self) -> str:
        """The text of manifest.json; its last field is a hash over all others."""
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
