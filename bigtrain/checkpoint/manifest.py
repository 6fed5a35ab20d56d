"""The manifest of a checkpoint: its contents, and the hashes that show whether it is whole."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import xxhash
from pydantic import ConfigDict, Field

from bigtrain.base import STRICT, BigtrainError, as_record, bare_name, parse_json

MANIFEST = "manifest.json"
COMMITTED = re.compile(r"step-(\d{8,})")


def step_name(step: int) -> str:
    """The name of a step's checkpoint, in any storage."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class FileChecksum:
    """Size and hash of a file."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    size: Natural
    """Bytes."""
    xxh3_128: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """Hash of the contents, 32 hexadecimal digits."""


FORMAT = 1
LARGEST = 256 << 20
"""Bytes of a manifest. One of a hundred thousand tensors and ranks has some 30 million."""

Natural = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class Cursor:
    """The position of the run."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    step: Natural
    """Optimizer steps done."""
    consumed_samples: Natural
    """Training samples done. Together with the plan this is the whole state of the data."""
    plan_id: str
    """Identity of the plan, which gives the order of the samples."""
    optimizer_steps: Natural
    """Updates that the optimizer has applied: `step` minus those skipped for a gradient that was not finite."""


@dataclass(frozen=True)
class TensorPieces:
    """Which files hold which pieces of some tensors, all of which are divided in the same way."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kinds: list[str]
    tensors: list[str]
    """Names of parameters."""
    runs: str
    """Runs of files, in numbers with commas, with spaces between them: see `bigtrain.checkpoint.division.Run`."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSummary:
    """What every rank may know of a checkpoint: it does not grow with the number of files."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    cursor: Cursor
    world_size: Annotated[Natural, Field(ge=1)]
    """Ranks that wrote it."""
    zero_stage: Natural
    """The ZeRO stage of the ranks that wrote it. For people: any stage can load it."""
    mathematics: dict[str, Any]
    """The settings that change the result of training, by dotted key."""
    versions: dict[str, str]
    """Versions of bigtrain and the libraries that it uses."""
    kinds: list[str]
    """The kinds of state of each parameter: `master`, `exp_avg`, ..."""
    tensors: dict[str, list[Natural]]
    """The shape of each parameter."""
    layout: str = ""
    """Identifies which rank owns which state. With an equal layout, a rank finds its own state in its own file."""
    state: dict[str, Any] = field(default_factory=dict)
    """JSON values that the run needs again, such as the W&B run id. See `bigtrain.rundir.run_state`."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When it was written, for people. The step gives the order, never a clock."""


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest(CheckpointSummary):
    """Everything about a checkpoint except the tensors. It names every file, so only rank 0 of a job reads it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    files: dict[str, FileChecksum]
    """Size and hash of each file beside the manifest, in rank order."""
    partners: dict[str, str] = field(default_factory=dict)
    """For each file of a rank that shares pieces with others: a value. Files with equal values hold all of the
    pieces."""
    pieces: list[TensorPieces] | None = None
    """Which files hold which pieces. None where an earlier version wrote it: then only the headers say it."""

    @property
    def summary(self) -> CheckpointSummary:
        """The part that every rank may know."""
        return CheckpointSummary(**{each.name: getattr(self, each.name) for each in fields(CheckpointSummary)})

    def to_json(self) -> str:
        """The text of manifest.json. The field `digest` is a hash over all others."""
        # Not by `asdict`, which copies every value: there may be tens of thousands of files.
        values = {"format": FORMAT, **vars(self)}
        return json.dumps({**values, "digest": _digest(values, MANIFEST)}, indent=1, sort_keys=True, default=vars)


def parse_manifest(path: str, text: bytes) -> CheckpointManifest:
    """The manifest in a file, checked against its own digest.

    Raises:
        BigtrainError: it is damaged, of a later version, or has a path in place of the name of a file.
    """
    values = parse_json(text, path)
    if not isinstance(values, dict):
        raise BigtrainError(f"{path} cannot be read", found=f"a JSON {type(values).__name__}", wanted="a JSON object")
    digest, values = values.get("digest"), {name: value for name, value in values.items() if name != "digest"}
    found = values.get("format")
    if found != FORMAT or isinstance(found, bool):
        raise BigtrainError(f"{path} is of another format", found=repr(found)[:100], wanted=FORMAT, fix=_fix(values))
    if digest != (actual := _digest(values, path)):
        raise BigtrainError(f"{path} is damaged", found=f"digest {actual}", wanted=repr(digest)[:100])
    try:
        manifest = as_record(
            CheckpointManifest, {name: value for name, value in values.items() if name != "format"}, path
        )
    except BigtrainError as error:  # its digest is right, so another version wrote it
        raise BigtrainError(error.what, found=error.found, wanted=error.wanted, fix=_fix(values)) from None
    for name in manifest.files:
        bare_name(name, path)
    return manifest


def _fix(values: dict[str, Any]) -> str:
    versions = values.get("versions")
    writer = versions.get("bigtrain") if isinstance(versions, dict) else None
    version = f"bigtrain {writer[:50]}" if isinstance(writer, str) else "the version of bigtrain"
    return f"use {version}, which wrote it, or an older checkpoint"


def _digest(values: dict[str, Any], path: str) -> str:
    try:
        return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True, default=vars).encode())
    except RecursionError:
        raise BigtrainError(f"{path} cannot be read", found="JSON that is nested too deeply") from None
