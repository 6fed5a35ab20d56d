"""The checkpoints of a run, for the commands and for code that opens a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bigtrain.base import BigtrainError
from bigtrain.checkpoint import Checkpoint, compare, newest_verified, prune, verify
from bigtrain.rundir import RunDirectory, RunState


def open_checkpoint(run: RunDirectory, step: int | None) -> Checkpoint:
    """The checkpoint of a step, or the newest verified one.

    Raises:
        BigtrainError: there is none, or it is damaged.
    """
    if step is None:
        search = newest_verified(run.tiers())
        if search.newest is not None:
            return search.newest
        raise BigtrainError(
            f"{run.root} has no checkpoint that can be trusted",
            found="; ".join(f"{r.checkpoint.name}: {', '.join(r.problems)}" for r in search.rejected) or "none",
            fix="train first: bigtrain train CONFIG",
        )
    problems = {}
    for checkpoint in checkpoints_of_step(run, step):
        if not (found := verify(checkpoint)):
            return checkpoint
        problems[checkpoint.location] = "; ".join(found)
    raise BigtrainError(f"{' and '.join(problems)} cannot be trusted", found="; ".join(problems.values()))


def checkpoints_of_step(run: RunDirectory, step: int) -> list[Checkpoint]:
    """The checkpoints of a step, verified or not: one, or with a local tier two.

    Raises:
        BigtrainError: there is none; it lists the steps that have one.
    """
    there = run.tiers().all()
    if chosen := [checkpoint for checkpoint in there if checkpoint.step == step]:
        return chosen
    raise BigtrainError(
        f"{run.root} has no checkpoint of step {step}",
        found="steps " + ", ".join(map(str, sorted({c.step for c in there}))) if there else "no checkpoint at all",
        fix="give one of these steps, or none for the newest",
    )


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """A checkpoint, every file of which was hashed."""

    checkpoint: str
    """Its folder or URL."""
    problems: list[str]
    """What is wrong; empty where every byte is right."""


def verify_checkpoints(run: Path, step: int | None = None) -> list[VerifiedCheckpoint]:
    """Hash every file of the checkpoints of a run, or of one of them.

    Of the local tier, only the files of this node are read.
    """
    directory = RunDirectory.of_existing_run(run)
    tiers = directory.tiers()
    chosen = tiers.all() if step is None else checkpoints_of_step(directory, step)
    return [
        VerifiedCheckpoint(checkpoint.location, verify(checkpoint, others_elsewhere=tiers.is_local(checkpoint)))
        for checkpoint in chosen
    ]


@dataclass(frozen=True, kw_only=True)
class CommittedCheckpoint:
    """A committed checkpoint, from its manifest; numbers are null where the manifest cannot be read."""

    step: int
    samples: int | None
    """That the run had trained on."""
    written_by: Annotated[str, Field(alias="written by")]
    """The ranks and the ZeRO stage; or what is wrong with the manifest."""
    bytes: int | None
    created: str
    tier: Literal["local", "durable"] | None = None
    """Only for a run with a local tier."""
    path: str
    """Its folder or URL."""


def describe_checkpoints(run: Path) -> list[CommittedCheckpoint]:
    """The committed checkpoints of a run, oldest first."""
    tiers = RunDirectory.of_existing_run(run).tiers()
    rows = []
    for checkpoint in tiers.all():
        samples, size, created = None, None, ""
        try:
            manifest = checkpoint.manifest
        except BigtrainError as error:
            written_by = f"bad: {error.what}"
        else:
            samples = manifest.cursor.consumed_samples
            written_by = f"{manifest.world_size} rank(s), ZeRO {manifest.zero_stage}"
            size = sum(checksum.size for checksum in manifest.files.values())
            created = manifest.created
        rows.append(
            CommittedCheckpoint(
                step=checkpoint.step,
                samples=samples,
                written_by=written_by,
                bytes=size,
                created=created,
                tier=("local" if tiers.is_local(checkpoint) else "durable") if tiers.local else None,
                path=checkpoint.location,
            )
        )
    return rows


@dataclass(frozen=True)
class PrunedCheckpoints:
    """The checkpoints that were removed."""

    dry_run: bool
    """Whether nothing was removed in fact."""
    removed: list[str]
    """Their folders or URLs."""


def prune_checkpoints(run: Path, keep: int | None, keep_every: int | None, *, dry_run: bool) -> PrunedCheckpoints:
    """Remove old checkpoints of a run from its durable tier.

    Args:
        keep: how many of the newest to keep. Default: checkpoint.keep of the run.
        keep_every: also keep those whose step is a multiple of it. Default: checkpoint.keep_every_steps.
        dry_run: remove nothing.

    Raises:
        BigtrainError: the number to keep is not given, the run is training, or a checkpoint cannot be removed.
    """
    directory = RunDirectory.of_existing_run(run)
    settings = directory.settings().checkpoint
    keep = keep or settings.keep
    if keep is None:
        raise BigtrainError(
            f"the number of checkpoints of {run} to keep is not given",
            found="checkpoint.keep: null",
            fix="give --keep N",
        )
    if not dry_run:
        directory.lock()  # until the process ends
    best = RunState.of(open_checkpoint(directory, None).manifest.state).best.get("step") if settings.keep_best else None
    expired = prune(
        directory.tiers().durable,
        keep,
        keep_every or settings.keep_every_steps,
        keep_steps=() if best is None else (best,),
        dry_run=dry_run,
    )
    directory.unlock()
    return PrunedCheckpoints(dry_run, [checkpoint.location for checkpoint in expired])


@dataclass(frozen=True)
class ShapeDifference:
    """A tensor that has another shape in each of two checkpoints."""

    shapes: tuple[list[int] | None, list[int] | None]
    """Null where a checkpoint lacks the tensor."""


@dataclass(frozen=True)
class ElementDifference:
    """A tensor whose elements differ in two checkpoints."""

    elements: int
    """How many are not equal to the last bit."""
    largest_difference: float | None
    """Null where numbers are not finite."""
    relative: float | None
    """The largest difference over the largest magnitude in either; null where numbers are not finite."""


@dataclass(frozen=True)
class CheckpointDifference:
    """How two checkpoints differ. Of cursor, settings and versions the values in both, where they differ."""

    checkpoints: tuple[str, str]
    """Their folders or URLs."""
    cursor: dict[str, tuple[Any, Any]]
    settings: dict[str, tuple[Any, Any]]
    """Settings that change the result."""
    versions: dict[str, tuple[Any, Any]]
    tensors: dict[str, ShapeDifference | ElementDifference]
    """Each tensor that differs, by its kind and name."""
    equal_tensors: int
    different_tensors: int

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> CheckpointDifference:
        """What `bigtrain.checkpoint.compare` found."""
        tensors = {
            name: ShapeDifference(**how) if "shapes" in how else ElementDifference(**how)
            for name, how in found["tensors"].items()
        }
        return cls(**{**found, "tensors": tensors})


def diff_checkpoints(one: str, other: str) -> CheckpointDifference:
    """How two checkpoints differ; see `bigtrain.checkpoint.compare`.

    Args:
        one, other: a run directory, whose newest verified checkpoint is taken, or the folder or URL of a checkpoint.

    Raises:
        BigtrainError: there is no such checkpoint, or it is damaged.
    """
    return CheckpointDifference.of(compare(_named(one), _named(other)))


def _named(place: str) -> Checkpoint:
    if (Path(place) / "config.yaml").is_file():
        return open_checkpoint(RunDirectory(Path(place)), None)
    return Checkpoint.at(place)


def say_diff(difference: CheckpointDifference) -> Iterator[str]:
    """The differences in plain text, the totals last."""
    yield from (f"{name}: {place}" for name, place in zip("AB", difference.checkpoints, strict=True))
    sections = {"cursor": difference.cursor, "settings": difference.settings, "versions": difference.versions}
    for section, differing in sections.items():
        for key, (then, now) in differing.items():
            yield f"{section} {key}: {then} -> {now}"
    for name, how in difference.tensors.items():
        if isinstance(how, ShapeDifference):
            one, other = ("absent" if shape is None else shape for shape in how.shapes)
            yield f"{name}: {one} -> {other}"
        elif how.largest_difference is None:
            yield f"{name}: {how.elements:,} elements differ, some by more than any number"
        else:
            size = f"at most {how.largest_difference:.3g}, relative {how.relative:.3g}"
            yield f"{name}: {how.elements:,} elements differ, {size}"
    different = difference.different_tensors
    tensors, settings = different + difference.equal_tensors, len(difference.settings)
    bits = (
        f"{different} of {tensors} tensors differ" if different else f"all {tensors} tensors are equal to the last bit"
    )
    yield f"{bits}; settings that change the result and differ: {settings or 'none'}"
