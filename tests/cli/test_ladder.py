"""What `bigtrain ladder` refuses before it trains anything, and the commands that it prints at its end."""

import json
import shlex
from pathlib import Path

import pytest

from bigtrain.cli.ladder_tables import following
from tests import forkserver
from tests.refusals import assert_refused
from tests.trials.ladder.helpers import target


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text(json.dumps(target(tmp_path).model_dump(mode="json")))
    return path


@pytest.mark.parametrize(("arguments", "what"), [
    (("--budget", "1e15,2h"), "--budget is no limit"),
    (("--budget", "2h", "--on", "slurm"), "--budget is a time, which is measured on this machine"),
    (("--budget", "1e15", "model.init_from=runs/other"), "from random weights"),
])  # fmt: skip
def test_a_contradiction_is_one_clear_message(config, arguments, what):
    """Nothing is trained, and no data are looked for."""
    assert_refused(forkserver.python("-m", "bigtrain", "ladder", config, *arguments, cwd=config.parent), what)


@pytest.mark.parametrize(("arguments", "what"), [
    (("--tokens", "1e6", "--tokens-per-parameter", "20"), "--tokens-per-parameter"),
    (("--tokens", "1e6,-2"), "is no list of numbers"),
])  # fmt: skip
def test_amounts_are_given_once_and_are_numbers(config, arguments, what):
    """An error of usage, with its status."""
    done = forkserver.python("-m", "bigtrain", "ladder", config, "--budget", "1e15", *arguments, cwd=config.parent)
    assert done.returncode == 2 and what in done.stderr and "Traceback" not in done.stderr


def test_the_commands_that_follow_are_shell_words():
    """A path with a blank is quoted, and `plan` is asked about the same settings as `train`."""
    train, plan = following(Path("my configs/big.yaml"), ["train.tokens=null", "optimizer.learning_rate=0.003"])
    assert shlex.split(train)[2:] == ["my configs/big.yaml", "train.tokens=null", "optimizer.learning_rate=0.003"]
    assert shlex.split(plan)[:5] == ["bigtrain", "plan", *shlex.split(train)[2:]]
