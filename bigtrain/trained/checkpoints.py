"""The checkpoints of a run, for the commands and for whoever opens a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigtrain.base.errors import BigtrainError
from bigtrain.checkpoint import Checkpoint, compare, newest_verified, prune, verify
from bigtrain.rundir.directory import RunDirectory


def open_checkpoint(run: RunDirectory, step: int | None) -> Checkpoint:
    """The checkpoint of a step, or the newest verified one.

    Raises:
        BigtrainError: there is none, or not every byte of it is right.
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
    """The checkpoints of a step, whether good or not: one, or with a local tier two.

    Raises:
        BigtrainError: there is none; names the steps there are.
    """
    there = run.tiers().all()
    if chosen := [checkpoint for checkpoint in there if checkpoint.step == step]:
        return chosen
    raise BigtrainError(
        f"{run.root} has no checkpoint of step {step}",
        found="steps " + ", ".join(map(str, sorted({c.step for c in there}))) if there else "no checkpoint at all",
        fix="give one of these steps, or none for the newest",
    )


def verify_checkpoints(run: Path, step: int | None = None) -> dict[str, list[str]]:
    """Hash every file of the checkpoints of a run, or of one of them: place -> what is wrong.

    Of the local tier, what this node has of it.
    """
    directory = RunDirectory.of_existing_run(run)
    tiers = directory.tiers()
    chosen = tiers.all() if step is None else checkpoints_of_step(directory, step)
    return {
        checkpoint.location: verify(checkpoint, others_elsewhere=tiers.is_local(checkpoint)) for checkpoint in chosen
    }


def describe_checkpoints(run: Path) -> list[dict[str, Any]]:
    """What is committed: a row a checkpoint, from its manifest."""
    tiers = RunDirectory.of_existing_run(run).tiers()
    rows = []
    for checkpoint in tiers.all():
        row: dict[str, Any] = {"step": checkpoint.step, "samples": None, "written by": "", "bytes": None, "created": ""}
        try:
            manifest = checkpoint.manifest
        except BigtrainError as error:
            row["written by"] = f"bad: {error.what}"
        else:
            row["samples"] = manifest.cursor.consumed_samples
            row["written by"] = f"{manifest.world_size} rank(s), ZeRO {manifest.zero_stage}"
            row["bytes"] = sum(checksum.size for checksum in manifest.files.values())
            row["created"] = manifest.created
        tier = {"tier": "local" if tiers.is_local(checkpoint) else "durable"} if tiers.local else {}
        rows.append({**row, **tier, "path": checkpoint.location})
    return rows


def prune_checkpoints(run: Path, keep: int | None, keep_every: int | None, *, dry_run: bool) -> list[str]:
    """Remove old checkpoints of a run from its durable place, and say which.

    Args:
        keep, keep_every: of the newest, and of every so many steps; default: what the settings of the run say.

    Raises:
        BigtrainError: nobody says how many to keep, the run is training, or one cannot be removed.
    """
    directory = RunDirectory.of_existing_run(run)
    settings = directory.settings().checkpoint
    keep = keep or settings.keep
    if keep is None:
        raise BigtrainError(
            f"how many checkpoints of {run} to keep is not said", found="checkpoint.keep: null", fix="give --keep N"
        )
    if not dry_run:
        directory.lock()  # goes with the process
    expired = prune(directory.tiers().durable, keep, keep_every or settings.keep_every_steps, dry_run=dry_run)
    directory.unlock()
    return [checkpoint.location for checkpoint in expired]


def diff_checkpoints(one: str, other: str) -> dict[str, Any]:
    """In what two checkpoints differ; see `bigtrain.checkpoint.compare`.

    Args:
        one, other: a run directory, whose newest verified checkpoint is taken, or the folder or URL of a checkpoint.

    Raises:
        BigtrainError: there is no such checkpoint, or it is damaged.
    """
    return compare(_named(one), _named(other))


def _named(place: str) -> Checkpoint:
    if (Path(place) / "config.yaml").is_file():
        return open_checkpoint(RunDirectory(Path(place)), None)
    return Checkpoint.at(place)


def say_diff(difference: dict[str, Any]) -> Iterator[str]:
    """The differences in lines for people, the sum of them last."""
    yield from (f"{name}: {place}" for name, place in zip("AB", difference["checkpoints"], strict=True))
    for section in ("cursor", "settings", "versions"):
        for key, (then, now) in difference[section].items():
            yield f"{section} {key}: {then} -> {now}"
    for name, how in difference["tensors"].items():
        if "shapes" in how:
            one, other = ("absent" if shape is None else shape for shape in how["shapes"])
            yield f"{name}: {one} -> {other}"
        elif how["largest_difference"] is None:
            yield f"{name}: {how['elements']:,} elements differ, some by more than any number"
        else:
            size = f"at most {how['largest_difference']:.3g}, relative {how['relative']:.3g}"
            yield f"{name}: {how['elements']:,} elements differ, {size}"
    different = difference["different_tensors"]
    tensors, settings = different + difference["equal_tensors"], len(difference["settings"])
    bits = (
        f"{different} of {tensors} tensors differ" if different else f"all {tensors} tensors are equal to the last bit"
    )
    yield f"{bits}; settings that change the result and differ: {settings or 'none'}"
