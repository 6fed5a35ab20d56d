"""The program: fast help, exit statuses, one JSON document."""

import json
import subprocess
import sys

import pytest

from tests import forkserver


def run(*arguments: str) -> subprocess.CompletedProcess:
    return forkserver.python("-m", "bigtrain", *arguments)


def test_help_loads_none_of_the_heavy_packages():
    code = (
        "import sys; sys.argv = ['bigtrain', '--help']\n"
        "from bigtrain.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code\n"
        "heavy = {*'torch deepspeed transformers datasets wandb numpy tokenizers'.split()} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "command", ["train", "eval", "generate", "export", "report", "runs", "data build", "data verify", "checkpoint list",
                "checkpoint verify", "config show", "config explain", "config diff", "config schema"],
)  # fmt: skip
def test_every_promised_command_explains_itself(command):
    result = run(*command.split(), "--help")
    assert result.returncode == 0 and "Usage: bigtrain" in result.stdout


def test_wrong_usage_leaves_with_status_2():
    assert run("trian").returncode == 2
    assert run("train").returncode == 2
    assert run("export", "a", "b", "--to", "floppy").returncode == 2


def test_a_missing_configuration_leaves_with_status_1_and_one_message(tmp_path):
    result = run("train", str(tmp_path / "none.yaml"))
    assert result.returncode == 1
    assert result.stderr.count("error:") == 1 and "none.yaml" in result.stderr and "Traceback" not in result.stderr


def test_json_is_one_document_on_stdout():
    explained = json.loads(run("config", "explain", "engine.zero_stage", "--json").stdout)
    assert explained["key"] == "engine.zero_stage"
    assert json.loads(run("config", "schema").stdout)["type"] == "object"


def test_the_version_is_the_package_s():
    from bigtrain import __version__

    command = [sys.executable, "-m", "bigtrain", "--version"]  # in a new process, as a user starts it
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == f"bigtrain {__version__}"
