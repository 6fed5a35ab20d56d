"""Whose checkpoints a `checkpoint.dir` holds: two runs that save into one folder would remove each other's.

RUN/.run holds the id of a run, and the file `run.json` beside its checkpoints the same id and the path of RUN. A run
that is moved or renamed keeps its id. A folder without the record, as earlier versions left it, gets one.
"""

from __future__ import annotations

import json
import socket
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from bigtrain.base import STRICT, BigtrainError, as_record, parse_json, read_regular, write_atomically
from bigtrain.checkpoint import Folder, Storage, StorageTiers
from bigtrain.config import CheckpointSettings
from bigtrain.rundir import RunDirectory

RECORD = "run.json"
"""The name of the record beside the checkpoints."""


@dataclass(frozen=True)
class CheckpointOwner:
    """The run that saves into a folder or URL."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    run: str
    """Its id."""
    run_dir: str
    """Its run directory, as it was at its last start."""
    host: str
    """The machine of its rank 0 then."""


def claim_checkpoints(directory: RunDirectory, settings: CheckpointSettings) -> None:
    """Record that `checkpoint.dir` is this run's. Without that setting, its checkpoints are in its own folder.

    Raises:
        BigtrainError: another run saves there, or the record cannot be read or written.
    """
    if settings.dir is None:
        return
    storage, owner, mine = _owners(directory, settings)
    if owner != mine:
        storage.write_record(RECORD, (json.dumps(asdict(mine), indent=1) + "\n").encode())


def refuse_checkpoints_of_others(directory: RunDirectory) -> None:
    """Refuse to change what `checkpoint.dir` in RUN/config.yaml holds, where that is another run's.

    Raises:
        BigtrainError: it is, or the record cannot be read.
    """
    settings = directory.settings().checkpoint
    if settings.dir is not None:
        _owners(directory, settings)


def _owners(
    directory: RunDirectory, settings: CheckpointSettings
) -> tuple[Storage, CheckpointOwner | None, CheckpointOwner]:
    """The storage, the run that saves there, and this run. Raises BigtrainError where it is another run."""
    storage = StorageTiers.of(directory.root, settings).durable
    root = directory.root.resolve()
    _refuse_checkpoints_of_run(storage, root)
    mine = CheckpointOwner(_id_of(directory), str(root), socket.gethostname())
    owner = _owner_of(storage)
    if owner is not None and owner.run_dir != mine.run_dir and (owner.run != mine.run or _is_there(owner, root)):
        raise BigtrainError(
            f"checkpoint.dir {storage} holds the checkpoints of another run; nothing was written",
            found=f"those of run_dir {owner.run_dir}, last started on {owner.host}",
            wanted=f"those of run_dir {mine.run_dir}, or none",
            fix=f"set another checkpoint.dir; if that run is gone and this one takes its place, remove {RECORD} there",
        )
    return storage, owner, mine


def _refuse_checkpoints_of_run(storage: Storage, root: Path) -> None:
    """Refuse RUN/checkpoints of another run, which needs no record."""
    if not isinstance(storage, Folder):
        return
    folder = storage.directory.resolve()
    other = folder.parent
    if folder.name == "checkpoints" and (other / "config.yaml").is_file() and other != root:
        raise BigtrainError(
            f"checkpoint.dir {storage} is the checkpoint folder of another run; nothing was written",
            found=f"the checkpoints of run_dir {other}",
            wanted="a folder that no other run saves into",
            fix="set another checkpoint.dir, or none; to start from that run, copy one of its checkpoints there",
        )


def _id_of(directory: RunDirectory) -> str:
    """The id of a run, which is made at its first start with a `checkpoint.dir`."""
    try:
        return read_regular(directory.identity, 1 << 10).decode(errors="replace").strip()
    except FileNotFoundError:
        made = uuid.uuid4().hex
        write_atomically(directory.identity, made + "\n")
        return made


def _owner_of(storage: Storage) -> CheckpointOwner | None:
    content = storage.read_record(RECORD)
    return None if content is None else as_record(CheckpointOwner, parse_json(content, f"{storage}/{RECORD}"), RECORD)


def _is_there(owner: CheckpointOwner, root: Path) -> bool:
    """Whether the run that the record names is still where it was: then this one is a copy of it, and not moved."""
    there = Path(owner.run_dir)
    try:
        return read_regular(there / ".run", 1 << 10).decode().strip() == owner.run and not there.samefile(root)
    except (OSError, BigtrainError, UnicodeDecodeError):
        return False
