"""What commands print with --json is of the type that docs/reference/json describes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from pydantic import Field

from bigtrain.base.to_json import to_json
from bigtrain.cli.json_schemas import RESULTS, json_schema
from bigtrain.cli.reference import commands
from tests import forkserver
from tests.cli.schema import check
from tests.golden.before import BEFORE, KEPT, NO_BIASES, STATUS_STOPPED
from tests.golden.record import CORPUS, QUIET

STEP = ("--step", "5")
SHORT = ("--max-new-tokens", "3")
IMAGE = ("--image", "bigtrain", "--claim", "data", "--dry-run")
LINES = (
    ("data build", "again.yaml"),
    ("data funnel", "data"),
    ("data verify", "data"),
    ("data where", "run", *STEP),
    ("data where", "run", *STEP, "--text"),
    ("data when", "run", "--document", "prose:prose.jsonl:4"),
    ("data diff", "run", "run/config.yaml", "train.seed=9"),
    ("data diff", "run", "run"),
    ("data card", "run"),
    ("data index", "data"),
    ("data classifier train", "m.bin", "--positive", "corpus/prose.jsonl", "--negative", "corpus/code.jsonl"),
    ("data classifier score", "m.bin", "The old ferry"),
    ("data ngram train", "corpus/prose.jsonl", "m.ngram", "--order", "2"),
    ("data ngram score", "m.ngram", "corpus/prose.jsonl", "--show", "1"),
    ("checkpoint list", "run"),
    ("checkpoint verify", "run"),
    ("checkpoint diff", "run/checkpoints/step-00000004", "run/checkpoints/step-00000006"),
    ("checkpoint diff", "run", "exported"),
    ("checkpoint prune", "run", "--keep", "1", "--dry-run"),
    ("config show", "run"),
    ("config explain", "engine.zero_stage"),
    ("config explain",),
    ("config diff", "run", "again.yaml"),
    ("eval", "run"),
    ("eval", "run", "--baselines"),
    ("generate", "run", "The old ferry", *SHORT),
    ("generate", "imported", "The", "ferry", *SHORT),
    ("export", "exported", "hf"),
    ("export", "exported", "x.gguf", "--to", "gguf", "--no-check"),
    ("import", "hf", "again", "--no-check"),
    ("compress", "exported", "small", "--prune", "wanda", "--pattern", "2:4", "--calibration-rows", "2"),
    ("eval", "small"),
    ("keep-outputs", "exported", "run/config.yaml", "distillation.kept_outputs=kept", "engine.precision=fp32"),
    ("report", "run"),
    ("runs", "."),
    ("replay", "run", *STEP),
    ("profile", "run/config.yaml", "run_dir=profiled", "--steps", "1", "--warmup", "1"),
    ("plan", "run/config.yaml", "--gpus", "1", "--gpu", "h100"),
    ("plan", "run/config.yaml", "--gpus", "1", "--gpu", "h100", "--search", "--price", "2USD"),
    ("doctor", "run/config.yaml", "--skip", "devices", "--skip", "network"),
    ("submit slurm", "run/config.yaml", "train.stop_after=null", "--dry-run"),
    ("submit kubernetes", "run/config.yaml", "train.stop_after=null", *IMAGE),
)
"""A command line, or several, of every command that has --json; without verify-resume, which trains five times."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run, its data, an imported and an exported model."""
    folder = tmp_path_factory.mktemp("results") / "files"
    for name in KEPT:
        shutil.copytree(BEFORE / name, folder / name)
    shutil.copytree(CORPUS, folder / "corpus")
    (folder / "again.yaml").write_text((folder / "run/config.yaml").read_text().replace("dir: data", "dir: built"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        overrides = ["run_dir=exported", NO_BIASES, "train.stop_after=2"]
        done = forkserver.python("-m", "bigtrain", "train", "run/config.yaml", *overrides, cwd=folder)
        assert done.returncode == STATUS_STOPPED, done.stderr
        yield folder


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_command_prints_what_its_schema_says(line: tuple[str, ...], directory: Path) -> None:
    command, *arguments = line
    done = forkserver.python("-m", "bigtrain", *command.split(), *arguments, "--json", cwd=directory)
    assert done.stdout, done.stderr
    check(command, json.loads(done.stdout))


def test_every_command_with_json_has_a_schema_and_a_line_here() -> None:
    with_json = {
        path.removeprefix("bigtrain ")
        for path, command in commands()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert with_json == RESULTS.keys() == {line[0] for line in LINES} | {"verify-resume", "ladder"}
    for command in RESULTS:
        Draft202012Validator.check_schema(json_schema(command))


@dataclass(frozen=True)
class Part:
    """A part of a result."""

    name: str
    written_by: Annotated[int | None, Field(alias="written by")]
    text: str | None = None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Part("a", 1), {"name": "a", "written by": 1}),
        (Part("a", None, "x"), {"name": "a", "written by": None, "text": "x"}),
        ({"of": [Part("b", 2)], "pair": (1, "y")}, {"of": [{"name": "b", "written by": 2}], "pair": [1, "y"]}),
    ],
)
def test_a_dataclass_is_an_object_without_its_absent_fields(value: Any, expected: Any) -> None:
    assert to_json(value) == expected


@pytest.mark.parametrize(
    ("command", "change"),
    [
        ("checkpoint prune", {"removed": None}),
        ("checkpoint prune", {"more": 1}),
        ("checkpoint prune", {"dry_run": "yes"}),
        ("data index", {}),
    ],
)
def test_a_document_with_other_keys_or_types_is_refused(command: str, change: dict[str, Any]) -> None:
    check("checkpoint prune", {"dry_run": False, "removed": []})
    with pytest.raises(ValidationError):
        check(command, {"dry_run": False, "removed": []} | change)
