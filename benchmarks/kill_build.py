"""Kill -9 at random instants of `bigtrain data build`: the folder must be that of an undisturbed build, to the byte."""

from __future__ import annotations

import json
import random
import shutil
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import xxhash
import yaml
from disturbance import Command, Disturbed, disturb, everyone
from record import spread

ROOT = Path(__file__).parents[1]
CLI = [sys.executable, "-m", "bigtrain"]
KILLS_PER_BUILD = 2.5
"""How often an undisturbed build's time is hit, on average."""
LINES = 60
"""Of Python in one document of the JSON lines."""


def killed_builds(
    work: Path, kills: int, moments: random.Random, data: dict[str, Any], *, small: bool
) -> Iterator[Any]:
    """Build until so many kills are done; yields the result so far after each build that was finished.

    Args:
        work: an empty folder.
        kills: how many.
        moments: the source of chance.
        data: more keys of the `data` section, such as packing.
        small: over a corner of the standard library instead of all of it.
    """
    undisturbed = build_config(work, "undisturbed", data, small=small)
    seconds = Command([*CLI, "data", "build", undisturbed], ROOT, work / "undisturbed.log").run()
    wanted = contents(work / "undisturbed")
    folder = work / "disturbed"
    config = build_config(work, folder.name, data, small=small)
    command = Command([*CLI, "data", "build", config], ROOT, work / "disturbed.log")
    going_on = partial(stage, folder)
    done: list[Disturbed] = []
    differences: list[str] = []
    while (left := kills - sum(len(build.kills) for build in done)) > 0:
        mean = seconds / KILLS_PER_BUILD
        done.append(disturb(lambda _: command, everyone, going_on, kills=left, mean_seconds=mean, moments=moments))
        found = contents(folder)
        differences += [f"build {len(done)}: {name}" for name in wanted | found if wanted.get(name) != found.get(name)]
        differences += [f"build {len(done)}: left over {path.name}" for path in folder.rglob("*.tmp")]
        Command([*CLI, "data", "verify", folder], ROOT, command.log).run()
        yield {
            "kills": sum(len(build.kills) for build in done),
            "builds finished, compared and verified": len(done),
            "files compared in each": len(wanted),
            "bytes in each": sum(path.stat().st_size for path in (work / "undisturbed").rglob("*")),
            "wrong": len(differences),
            "files that differ or are left over": differences,
            "undisturbed_seconds": seconds,
            "seconds_lost_a_kill": spread([build.lost(seconds) for build in done if build.kills] or [0.0]),
            "killed_during": Counter(during for build in done for _, during in build.kills),
            "data": {**data, "corpus": "a corner of the standard library" if small else "the standard library"},
        }
        shutil.rmtree(folder)


def build_config(work: Path, name: str, data: dict[str, Any], *, small: bool) -> Path:
    """The configuration of a build into the folder `work/name`."""
    library = sysconfig.get_path("stdlib")
    chunks = work / "chunks.jsonl"
    if not chunks.exists():
        write_chunks(chunks, sorted(Path(library).glob("email/*.py" if small else "*.py")))
    sources: list[dict[str, Any]] = [{"name": "chunks", "kind": "jsonl", "path": str(chunks)}]
    if small:
        sources += [{"name": "modules", "kind": "text", "path": f"{library}/[a-z]*/[a-m]*.py"}]
    else:
        sources += [
            {"name": "documentation", "kind": "python_stdlib", "content": "documentation"},
            {"name": "source", "kind": "python_stdlib", "content": "source"},
        ]
    config = work / f"{name}.yaml"
    settings = {
        "run_dir": str(work / "run"),
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
                  "vocab_size": 1024, "max_position_embeddings": 256},
        "data": {
            "dir": str(work / name),
            "sequence_length": 256,
            "tokenizer": {"vocab_size": 1024, "train_bytes": 200_000 if small else 3_000_000},
            "sources": sources,
            "validation": {"fraction": 0.05},
            "shard_tokens": 200_000 if small else 300_000,
            **data,
        },
        "train": {"steps": 10, "global_batch_size": 8},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(settings))
    return config


def write_chunks(target: Path, files: list[Path]) -> None:
    """Python files as JSON lines, a document for every LINES lines."""
    with target.open("w") as out:
        for file in files:
            lines = file.read_text(errors="replace").splitlines(keepends=True)
            for start in range(0, len(lines), LINES):
                out.write(json.dumps({"text": "".join(lines[start : start + LINES])}) + "\n")


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder but the hidden ones, which are the build's own notes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        name: xxhash.xxh3_128_hexdigest(path.read_bytes())
        for path in files
        if not (name := path.relative_to(folder).as_posix()).startswith(".")
    }


def stage(folder: Path) -> str:
    """How far a build had come that was killed."""
    if not folder.exists():
        return "start-up"
    half_written = " (a file half written)" if any(folder.rglob("*.tmp")) else ""
    if not (folder / "build.json").exists():
        return ("duplicates and tokenizer" if any(folder.rglob(".dedup/*")) else "tokenizer") + half_written
    return "shards" + half_written
