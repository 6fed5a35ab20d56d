"""A run, its data and an imported model as files of an earlier version, and what the commands say of them.

    python -m tests.golden.before             make written_before/ with the code of today; README.md says when

Every path in the files is relative to the folder that `data`, `run` and `imported` lie in: commands run there.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.golden.record import (
    BEGIN_OF_TEXT,
    CORPUS,
    HERE,
    Case,
    Record,
    Start,
    in_new_processes,
    machine,
    recorded,
    settings,
    succeed,
)

BEFORE = HERE / "written_before"
EXPECTED = BEFORE / "expected.json"
KEPT = ("data", "run", "imported")
STATUS_STOPPED = 75
"""Of a run that has stopped on request, with a checkpoint."""
FAULT = "nan,rank=0,step=5"
"""Makes the run go back, so that it has decided something."""
NO_BIASES = "model.router_bias_update_rate=0"
"""A router that moves biases cannot be exported."""
REMOVED = (".lock", ".build.lock", "logs", ".dedup")
"""What no later command reads."""


def configuration() -> Record:
    """A model of 6,000 parameters: a checkpoint holds three float32 numbers for each."""
    own = settings(Case("mixtral", 2, 1))
    own["run_dir"] = "run"
    own["model"] |= {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    own["model"] |= {"intermediate_size": 16, "vocab_size": 272, "tie_word_embeddings": True}
    own["data"] |= {"packing": "best_fit", "tokenizer": {"vocab_size": 272, "begin_of_text": BEGIN_OF_TEXT}}
    own["train"]["steps"] = 10
    own["checkpoint"] = {"every_steps": 2, "keep": 2}
    own["guard"] = {"skip_before": 0, "skip_after": 0}
    return own


def write(directory: Path, start: Start, faulty: Start) -> None:
    """Make data, run and imported model in `directory`; the run stops in the middle of its schedule."""
    shutil.copytree(CORPUS, directory / "corpus")
    (directory / "config.yaml").write_text(yaml.safe_dump(configuration()))
    succeed(start(None, ["data", "build", "config.yaml"], directory))
    succeed(start(None, ["data", "index", "data"], directory))
    succeed(faulty(2, ["train", "config.yaml", "train.stop_after=6"], directory), STATUS_STOPPED)
    overrides = ["run_dir=exported", NO_BIASES, "train.stop_after=2"]
    succeed(start(None, ["train", "config.yaml", *overrides], directory), STATUS_STOPPED)
    succeed(start(None, ["export", "exported", "hf", "--no-check"], directory))
    succeed(start(None, ["import", "hf", "imported", "--no-check"], directory))


def without_traces_of_the_machine(directory: Path) -> None:
    """Remove and rewrite what in these files says where they were written; no hash covers any of it."""
    for name in KEPT:
        for path in sorted((directory / name).rglob("*")):
            if path.name in REMOVED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    manifest, events = directory / "imported/manifest.json", directory / "run/events.jsonl"
    manifest.write_text(manifest.read_text().replace(str(directory), "."))
    events.write_text(re.sub(r'"boot_id": "[^"]*"', f'"boot_id": "{uuid.UUID(int=0)}"', events.read_text()))


# What is asked of the files: each question on a copy of its own


def where(directory: Path, start: Start) -> Any:
    return answer(directory, start, "data", "where", "run", "--step", "5", "--text")


def when(directory: Path, start: Start) -> Any:
    return answer(directory, start, "data", "when", "run", "--document", "prose:prose.jsonl:4")


def verify_data(directory: Path, start: Start) -> Any:
    return answer(directory, start, "data", "verify", "data")


def checkpoint_list(directory: Path, start: Start) -> Any:
    keys = ("step", "samples", "bytes", "created", "path")
    return [{key: row[key] for key in keys} for row in answer(directory, start, "checkpoint", "list", "run")]


def checkpoint_verify(directory: Path, start: Start) -> Any:
    return answer(directory, start, "checkpoint", "verify", "run")


def report(directory: Path, start: Start) -> Any:
    found = answer(directory, start, "report", "run")
    assert (directory / "run/report.html").stat().st_size > 10_000
    return {key: found[key] for key in ("step", "total_steps", "tokens", "loss", "validation", "starts")}


def runs(directory: Path, start: Start) -> Any:
    keys = ("run", "state", "step", "total_steps", "loss", "world_size", "checkpoints", "checkpoint_bytes")
    return [{key: run[key] for key in keys} for run in answer(directory, start, "runs", ".")]


def evaluate(directory: Path, start: Start) -> Any:
    return answer(directory, start, "eval", "run")


def generate(directory: Path, start: Start) -> Any:
    return continued(directory, start, "run")


def generate_from_the_imported_model(directory: Path, start: Start) -> Any:
    return continued(directory, start, "imported")


def resume(directory: Path, start: Start) -> Any:
    """On one process, where two wrote the checkpoint."""
    succeed(start(None, ["train", "run/config.yaml", "train.stop_after=null"], directory))
    return recorded(directory / "run")


def train_from_the_imported_model(directory: Path, start: Start) -> Any:
    overrides = ["run_dir=other", "model.init_from=imported", NO_BIASES, "train.stop_after=2"]
    succeed(start(None, ["train", "run/config.yaml", *overrides], directory), STATUS_STOPPED)
    return recorded(directory / "other")


QUESTIONS: dict[str, Callable[[Path, Start], Any]] = {
    question.__name__: question
    for question in (
        where, when, verify_data, checkpoint_list, checkpoint_verify, report, runs, evaluate, generate,
        generate_from_the_imported_model, resume, train_from_the_imported_model,
    )
}  # fmt: skip


def answer(directory: Path, start: Start, *command: str) -> Any:
    return json.loads(succeed(start(None, [*command, "--json"], directory)))


def continued(directory: Path, start: Start, model: str) -> Any:
    found = answer(directory, start, "generate", model, "The old ferry", "--seed", "5", "--max-new-tokens", "12")
    return {key: found[key] for key in ("model", "step", "texts")}


def ask(question: str, directory: Path, start: Start) -> Any:
    """The answer to one of the questions, from a copy of the files at `directory`, which must not be there yet."""
    for name in KEPT:
        shutil.copytree(BEFORE / name, directory / name)
    return QUESTIONS[question](directory, start)


def faulty(processes: int | None, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Start new processes that come to harm."""
    return in_new_processes(processes, arguments, cwd, BIGTRAIN_FAULT=FAULT)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bigtrain-golden-") as folder:
        made, copies = Path(folder, "made"), Path(folder, "copies")
        made.mkdir()
        write(made, in_new_processes, faulty)
        without_traces_of_the_machine(made)
        shutil.rmtree(BEFORE, ignore_errors=True)
        for name in KEPT:
            shutil.copytree(made / name, BEFORE / name)
        answers = {question: ask(question, copies / question, in_new_processes) for question in QUESTIONS}
    EXPECTED.write_text(json.dumps({"machine": machine(), "answers": answers}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
