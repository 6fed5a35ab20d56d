"""What the commands print with `--json`: one type each. `bigtrain.cli.json_schemas` makes JSON schemas of them.

Most commands print what a package returns. Here is the rest: results that a command puts together itself, and the
form in which results of packages below are printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class BuiltSource:
    """One split of a source."""

    source: str
    split: Literal["train", "validation"]
    documents: int
    tokens: int
    shards: int


@dataclass(frozen=True)
class BuiltData:
    """The token shards in a data directory."""

    directory: str
    sources: list[BuiltSource]


@dataclass(frozen=True)
class VerifiedData:
    """What was read and checked of a data directory."""

    ok: bool
    """Whether there are no problems."""
    datasets: int
    shards: int
    packs: int
    """Pack files."""
    blocks: int
    bytes: int
    documents: int
    tokens: int
    problems: list[str]
    """One sentence each."""


@dataclass(frozen=True)
class RunDataCard:
    """The data card of a run: what it was trained on."""

    run: str
    """The name of the run directory."""
    step: int
    """What was consumed is counted up to this step."""
    version: str
    """Of bigtrain."""
    consumed_samples: int
    sequence_length: int
    packing: str
    plan_id: str
    seed: int
    tokenizer: dict[str, Any]
    """`hash`, `vocab_size`, `end_of_text` and `path`, which is null for a tokenizer that was trained here."""
    dedup: str
    near_duplicates: dict[str, Any] | None
    """The settings of near-duplicate detection; null without it."""
    decontaminate: dict[str, Any] | None
    validation_fraction: float
    phases: list[dict[str, Any]]
    """As in the settings, as the next."""
    skip: list[dict[str, Any]]
    sources: list[dict[str, Any]]
    """The settings of each source, with `parents`, `train` and `validation` (`dataset_id`, `documents`, `tokens`),
    `samples`, `share` and `epochs`."""


@dataclass(frozen=True)
class KeyDifference:
    """A setting with two values; null also stands for a key that one side does not have."""

    key: str
    left: Any
    right: Any


@dataclass(frozen=True)
class ExplainedKey:
    """A setting."""

    key: str
    meaning: str
    type: str
    required: bool
    default: Any
    on_resume: str
    """Whether a run that goes on may have another value."""
    allowed: list[Any] | None = None
    """The values that it may have, where they are few."""


@dataclass(frozen=True)
class ExplainedSection:
    """A section of the settings."""

    key: str
    """Empty for the settings as a whole."""
    meaning: str
    type: str
    required: bool
    keys: list[ExplainedSection | ExplainedKey]
    """What stands directly in it."""


@dataclass(frozen=True)
class DoctorCheck:
    """The outcome of a check of `bigtrain doctor`, or of a part of it."""

    check: str
    status: Literal["ok", "warning", "failed"]
    found: str
    wanted: str | None
    """Null where nothing is wrong, as the next."""
    fix: str | None
    hosts: list[str]
    """Machines that are at fault themselves, by the names that the scheduler knows."""


@dataclass(frozen=True)
class DoctorResult:
    """What `bigtrain doctor` found."""

    ok: bool
    """Whether no check failed."""
    world_size: int
    """Ranks."""
    hosts: list[str]
    seconds: float
    checks: list[DoctorCheck]


@dataclass(frozen=True)
class SlurmSubmission:
    """The jobs that were handed to Slurm."""

    jobs: list[str]
    """Their numbers; empty with `--dry-run`."""
    commands: list[list[str]]
    """The `sbatch` command of each job, by arguments."""


@dataclass(frozen=True)
class KubernetesSubmission:
    """The objects that were handed to Kubernetes."""

    manifests: list[dict[str, Any]]
    kubectl: str
    """What kubectl printed; empty with `--dry-run`."""
