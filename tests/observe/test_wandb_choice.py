"""W&B's own variables and settings files are obeyed: after bigtrain's settings, before its defaults."""

from pathlib import Path

import pytest

from bigtrain.base import environment
from bigtrain.config import TrackingSettings
from bigtrain.observe import Tracker, wandb_mode, wandb_server
from bigtrain.observe.wandb_choice import run_id_of_environment, wandb_folder, wandb_names

VARIABLES = ("MODE", "DISABLED", "PROJECT", "ENTITY", "NAME", "RUN_ID", "DIR", "BASE_URL", "CONFIG_DIR")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    """A key is set, so that what is not obeyed would be uploaded."""
    for name in VARIABLES:
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(environment, "_said", set())
    monkeypatch.chdir(tmp_path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "online"),
        ({"WANDB_API_KEY": ""}, "offline"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "run"}, "online"),
        ({"WANDB_MODE": "shared"}, "shared"),
        ({"WANDB_MODE": ""}, "online"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "false"}, "online"),
    ],
)
def test_the_mode_is_what_w_and_b_s_variables_say(variables, mode, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode("auto") == mode
    assert wandb_mode("online") == "online", "the configuration wins"


def test_a_mode_that_is_not_known_uploads_nothing_and_is_said(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "onlin")
    assert wandb_mode("auto") == wandb_mode("auto") == "offline"
    assert capsys.readouterr().err.count("onlin,") == 1


@pytest.mark.parametrize("of_user", [False, True])
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_the_files_of_wandb_offline_and_wandb_disabled_count(mode, of_user, tmp_path, monkeypatch):
    folder = tmp_path / "home/.config/wandb" if of_user else tmp_path / "wandb"
    write(folder / "settings", f"[default]\nmode = {mode}\nproject = p\nentity = e\nbase_url = http://w/\n")
    assert wandb_mode("auto") == mode and wandb_server() == "http://w"
    names = wandb_names(TrackingSettings(), Path("runs/r"))
    assert names == {"project": "p", "entity": "e", "name": "r"}
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_mode("auto") == "online"
    write(folder / "settings", "no ini file\0")
    monkeypatch.delenv("WANDB_MODE")
    assert wandb_mode("auto") == "online", "a file that cannot be read says nothing"


def test_what_wandb_offline_writes_is_understood(tmp_path, monkeypatch):
    """The program itself writes the file, so that the test holds when W&B changes the format."""
    from click.testing import CliRunner
    from wandb.cli.cli import cli

    (tmp_path / "wandb").mkdir()
    for command, mode in (("offline", "offline"), ("online", "online"), ("disabled", "disabled")):
        done = CliRunner().invoke(cli, [command])
        assert done.exit_code == 0, done.output
        assert wandb_mode("auto") == mode


def test_names_come_from_settings_then_environment_then_defaults(monkeypatch):
    run = Path("runs/r")
    assert wandb_names(TrackingSettings(), run) == {"project": "bigtrain", "entity": None, "name": "r"}
    for name in ("PROJECT", "ENTITY", "NAME"):
        monkeypatch.setenv(f"WANDB_{name}", f"their {name.lower()}")
    assert wandb_names(TrackingSettings(), run) == {
        "project": "their project", "entity": "their entity", "name": "their name",
    }  # fmt: skip
    given = TrackingSettings(project="p", entity="e", name="n")
    assert wandb_names(given, run) == {"project": "p", "entity": "e", "name": "n"}
    assert wandb_folder(run) == run
    monkeypatch.setenv("WANDB_DIR", "/scratch")
    assert wandb_folder(run) == Path("/scratch")


def test_a_sweep_s_run_id_is_taken_for_a_new_run_only(monkeypatch, capsys):
    assert run_id_of_environment(None) is None
    monkeypatch.setenv("WANDB_RUN_ID", "sweep1")
    assert run_id_of_environment(None) == "sweep1"
    monkeypatch.setenv("WANDB_RUN_ID", "../up")
    assert run_id_of_environment(None) is None and "WANDB_RUN_ID" in capsys.readouterr().err


def test_without_a_home_there_is_no_login_and_no_error(monkeypatch):
    """As for a user without an entry in the password database."""
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    assert wandb_mode("auto") == "offline"
    assert Tracker().run_id is None
