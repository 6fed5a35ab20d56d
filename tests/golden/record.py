"""Golden runs: what small trainings give, recorded, so that a restructuring can show that it changes no number.

    python -m tests.golden.record --check     run everything, print each difference, exit with status 1 if there is one
    python -m tests.golden.record             run everything and record it in golden.json; README.md says when

Only the command line is used, for packages and classes move and their names do not count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOLDEN = HERE / "golden.json"
CORPUS = HERE / "corpus"
TOLERANCE = 1e-5
"""Relative. CPUs of another kind add up in another order, which moves these losses and norms by less than 1e-6."""
EXACT = {"learning_rate"}
"""Floats that only Python computes, so that they are the same on every machine."""
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
QUIET = {
    "OMP_NUM_THREADS": "1",  # how many threads add up decides the last bits
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}

Record = dict[str, Any]
Start = Callable[[int | None, list[str], Path], "subprocess.CompletedProcess[str]"]
"""Runs `bigtrain ARGUMENTS` in a folder: alone where the number of processes is None, else under the launcher."""


def in_new_processes(
    processes: int | None, arguments: list[str], cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A `Start` that does what a user does, with the package of this working tree."""
    command = [sys.executable, "-m", "bigtrain", *arguments]
    if processes is not None:
        launcher = ["bigtrain.cli.torchrun", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, "-m", *launcher, "-m", "bigtrain", *arguments]
    variables = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600)


def succeed(done: subprocess.CompletedProcess[str], status: int = 0) -> str:
    """What a command printed, where it ended as it should."""
    assert done.returncode == status, f"status {done.returncode} of {done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# The runs

BEGIN_OF_TEXT = "none"
"""The rule of the data that the first versions built: these numbers were recorded with it."""
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 320,
    "max_position_embeddings": 32,
    "initializer_range": 0.08,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "model": {"num_key_value_heads": 2, "tie_word_embeddings": True},
        "data": {"packing": "concat", "phases": [{"from_tokens": 800, "weights": {"prose": 1, "code": 3}}]},
        "schedule": {"name": "wsd", "warmup_steps": 2, "decay_steps": 2},
    },
    "gpt2": {
        "data": {"packing": "best_fit", "skip": [{"steps": [2, 2], "reason": "to have one"}]},
        "train": {"batch_size_warmup": [{"steps": 2, "global_batch_size": 4}]},
        "schedule": {"by": "token", "name": "cosine", "warmup_tokens": 200},
    },
    "mixtral": {
        "model": {
            "num_key_value_heads": 4, "num_experts": 4, "router_aux_loss_coef": 0.01, "router_z_loss_coef": 0.001,
            "router_bias_update_rate": 0.01,
        },
        "data": {"packing": "buckets"},
        "schedule": {"name": "linear", "warmup_steps": 1},
    },
    "begun": {  # of today's data, whose documents begin with a token that predicts their first
        "model": {"family": "llama"},
        "data": {"dir": "data-begun", "tokenizer": {"vocab_size": 300}},
        "schedule": {"name": "linear", "warmup_steps": 1},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A family or another kind of run, and how its training is spread."""

    family: str
    processes: int
    stage: int

    def __str__(self) -> str:
        return f"{self.family}-{self.processes}-processes-zero-{self.stage}"


CASES = [Case(*each) for each in itertools.product(FAMILIES, (1, 2), (1, 3)) if each[0] != "begun"]
CASES.append(Case("begun", 1, 1))


def settings(case: Case) -> Record:
    """Six steps in float32, with two saves and two evaluations; every path is relative to the working directory."""
    basic: dict[str, dict[str, Any]] = {
        "model": {**SHAPE, "family": case.family},
        "data": {
            "dir": "data",
            "sequence_length": 32,
            "tokenizer": {"vocab_size": 300, "begin_of_text": BEGIN_OF_TEXT},
            "sources": [
                {"name": "prose", "kind": "jsonl", "path": "corpus/prose.jsonl", "weight": 0.7, "clean": ["pii"]},
                {"name": "code", "kind": "jsonl", "path": "corpus/code.jsonl", "weight": 0.3},
            ],
            "dedup": "near",
            "validation": {"fraction": 0.15},
            "workers": 1,
        },
        "train": {"steps": 6, "global_batch_size": 8, "micro_batch_size": 2, "seed": 3},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {},
        "engine": {"zero_stage": case.stage, "precision": "fp32"},
        "checkpoint": {"every_steps": 3},
        "evaluate": {"every_steps": 3, "max_sequences": 8},
        "tracking": {"wandb": "disabled", "log_every_steps": 1},
    }
    own = FAMILIES[case.family]
    return {"run_dir": f"run-{case}"} | {name: section | own.get(name, {}) for name, section in basic.items()}


def build(directory: Path, start: Start) -> Record:
    """Make the data that all cases share, in `directory`; returns what is in it."""
    shutil.copytree(CORPUS, directory / "corpus")
    for family in FAMILIES:  # the same shards, and another packing each
        config = write_config(directory, Case(family, 1, 1))
        succeed(start(None, ["data", "build", config], directory))
    funnels = json.loads(succeed(start(None, ["data", "funnel", "data", "--json"], directory)))
    return {
        "identities": {
            path.relative_to(directory).as_posix(): found
            for path in sorted(directory.glob("data*/*/*/*.json"))
            if (found := identities(json.loads(path.read_text())))
        },
        "verify": json.loads(succeed(start(None, ["data", "verify", "data", "--json"], directory))),
        "removed": {  # the reasons beside the rules are for people
            source: [[rule["rule"], rule["documents"], rule["bytes"]] for rule in funnel["removed"]]
            for source, funnel in funnels.items()
        },
    }


def identities(manifest: Record) -> Record:
    """The ids and the totals in a manifest of a dataset, or of a packing of it."""
    return {key: manifest[key] for key in ("dataset_id", "pack_id", "tokens", "documents", "rows") if key in manifest}


def train(case: Case, directory: Path, start: Start) -> Record:
    """Train one case over the data in `directory`; returns what must not change."""
    config = write_config(directory, case)
    succeed(start(case.processes if case.processes > 1 else None, ["train", config], directory))
    return recorded(directory / f"run-{case}")


def write_config(directory: Path, case: Case) -> str:
    """The case's configuration; returns the name of the file."""
    (directory / f"{case}.yaml").write_text(yaml.safe_dump(settings(case)))
    return f"{case}.yaml"


def recorded(run: Path) -> Record:
    """What a run's records say, without what depends on clock and machine."""
    events = json_lines(run / "events.jsonl")
    return {
        "plan_ids": [event["plan_id"] for event in events if event["event"] in ("start", "resume")],
        "events": [[event["event"], event["step"]] for event in events if event["event"] not in UNORDERED],
        "evaluations": [[event["step"], event["validation"]] for event in events if event["event"] == "evaluate"],
        "steps": [
            {key: value for key, value in line.items() if key not in OF_THE_MOMENT}
            for line in json_lines(run / "metrics.jsonl")
        ],
        "checkpoints": sorted(path.name for path in (run / "checkpoints").glob("step-*")),
    }


UNORDERED = {"commit"}
"""A save becomes durable while the training goes on, during one step or another."""
OF_THE_MOMENT = {
    "time", "uptime", "start", "step_seconds", "data_seconds", "forward_backward_seconds", "optimizer_seconds",
    "tokens_per_second", "mfu", "mfu_causal", "mfu_of", "counted_seconds",
}  # fmt: skip


def json_lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Comparing


def machine() -> Record:
    """What decides the last bits of a sum, where the program is the same."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    of_first = {key.strip(): value.strip() for key, _, value in reversed([line.partition(":") for line in lines])}
    return {
        # Of one make, too: libraries cut matrices by the sizes of the caches.
        "cpu": [of_first.get(key, "") for key in ("vendor_id", "cpu family", "model")],
        "flags": [flag for flag in FLAGS if flag in of_first.get("flags", "").split()],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def differences(expected: Any, found: Any, tolerance: float, where: str = "") -> Iterator[str]:
    """Each place where two records differ: floats by more than `tolerance`, relative, everything else at all."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            here = f"{where}.{key}" if where else key
            if key not in expected or key not in found:
                yield f"{here}: {'recorded, not found' if key in expected else 'found, not recorded'}"
            else:
                yield from differences(expected[key], found[key], 0.0 if key in EXACT else tolerance, here)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, pair in enumerate(zip(expected, found, strict=True)):
            yield from differences(*pair, tolerance, f"{where}[{index}]")
    elif isinstance(expected, float) and isinstance(found, float):
        same = expected == found or (math.isnan(expected) and math.isnan(found))
        if not same and not math.isclose(expected, found, rel_tol=tolerance):
            yield f"{where}: {found!r}, recorded {expected!r}"
    elif type(expected) is not type(found) or expected != found:
        yield f"{where}: {found!r}, recorded {expected!r}"


def tolerance_of(golden: Record) -> float:
    """0 on a machine like that of the record: there one process gives the same bits each time, and so do two, whose
    sums do not depend on which of them comes first."""
    return 0.0 if golden["machine"] == machine() else TOLERANCE


def everything(start: Start) -> Record:
    """All there is to record."""
    with tempfile.TemporaryDirectory(prefix="bigtrain-golden-") as folder:
        directory = Path(folder)
        made: Record = {"machine": machine(), "tokenizers": version("tokenizers"), "data": build(directory, start)}
        made["runs"] = {}
        for case in CASES:
            print(f"training {case}", file=sys.stderr)
            made["runs"][str(case)] = train(case, directory, start)
        return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with golden.json and change nothing")
    check = parser.parse_args().check
    found = everything(in_new_processes)
    if not check:
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    golden = json.loads(GOLDEN.read_text())
    problems = [f"data.{line}" for line in differences(golden["data"], found["data"], 0.0)]
    problems += [f"runs.{line}" for line in differences(golden["runs"], found["runs"], tolerance_of(golden))]
    print("\n".join(problems) or f"{len(CASES)} runs are as recorded")
    if golden["machine"] != found["machine"]:
        print(f"recorded on {golden['machine']}, this is {found['machine']}: floats within {TOLERANCE}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
