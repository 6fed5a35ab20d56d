"""Agents of sweeps write overrides as options: `--train.steps=20` means `train.steps=20`, wherever it stands."""

import pytest
from typer.testing import CliRunner

from bigtrain.cli.main import app
from tests.submit.test_submit import QUICKSTART


@pytest.mark.parametrize(
    "arguments",
    [
        ["CONFIG", "--train.seed=7", "--run_dir=runs/a b"],
        ["--train.seed=7", "--json", "CONFIG", "--run_dir=runs/a b"],
        ["CONFIG", "train.seed=7", "--run_dir=runs/a b", "--json"],
        ["--json", "--train.seed=7", "--", "CONFIG", "run_dir=runs/a b"],
    ],
)
def test_an_override_may_look_like_an_option(arguments):
    given = [str(QUICKSTART) if each == "CONFIG" else each for each in arguments]
    done = CliRunner().invoke(app, ["config", "show", *given])
    assert done.exit_code == 0, done.output
    assert "seed" in done.output and "7" in done.output and "runs/a b" in done.output


@pytest.mark.parametrize("unknown", ["--floppy", "--floppy=3", "--trainsteps=3", "-x=3"])
def test_what_is_neither_an_option_nor_an_override_is_refused(unknown):
    for command in (["config", "show"], ["train"], ["submit", "slurm"]):
        done = CliRunner().invoke(app, [*command, str(QUICKSTART), unknown])
        assert done.exit_code == 2, (command, done.output)


def test_the_value_of_an_option_is_no_override():
    given = ["submit", "slurm", str(QUICKSTART), "--no-check", "--dry-run", "--sbatch", "--a.b=c", "--train.seed=3"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0 and " --a.b=c " in done.output and done.output.strip().endswith("train.seed=3"), (
        done.output
    )


def test_quotation_marks_that_are_not_closed_are_refused():
    done = CliRunner().invoke(app, ["submit", "slurm", str(QUICKSTART), "--no-check", "--dry-run", "--sbatch", "'"])
    assert "--sbatch cannot be cut into words" in str(done.exception)
