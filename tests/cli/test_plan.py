"""`bigtrain plan` answers on a login node: one document, one page, one message for what it cannot answer."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bigtrain.cli.main import app
from bigtrain.config import load_settings
from tests.refusals import assert_refused
from tests.report.browser import chromium

CONFIG = str(Path(__file__).parents[2] / "configs/llama-8b.yaml")
H100 = ("--gpus", "64", "--gpu", "h100")


def planned(*arguments: str) -> dict:
    done = CliRunner().invoke(app, ["plan", CONFIG, "--json", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_plan_needs_neither_pytorch_nor_much_time():
    """A new process answers without importing PyTorch; its own work takes less than a second of the processor."""
    program = (
        "import sys, time; from bigtrain.cli.main import app; start = time.process_time()\n"
        f"try: app(['plan', {CONFIG!r}, *{H100!r}, '--json'])\n"
        "except SystemExit as leaving: assert not leaving.code\n"
        "print(time.process_time() - start, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, torch = done.stderr.split()[-2:]
    assert torch == "False" and float(seconds) < 5


def test_the_overrides_of_a_search_give_the_layout_that_it_showed(tmp_path):
    """What a search chose, given to plan as overrides, has the same numbers; --out has them one a line."""
    found = planned(*H100, "--search", "--price", "2.5USD", "--out", str(tmp_path / "layout"))
    again = planned(*H100, "--price", "2.5USD", "--", *found["overrides"])
    for key in ("memory", "peak_gib", "step_seconds", "tokens_per_second_per_gpu", "mfu", "hours", "gpu_hours", "cost"):
        assert again[key] == found[key]
    assert len(found["best"]) == 5 and found["best"][0]["overrides"] == found["overrides"]
    assert (tmp_path / "layout").read_text().split() == found["overrides"]
    load_settings(Path(CONFIG), found["overrides"])
    hours = [point["hours"] for point in found["front"]]
    assert len(hours) > 3 and hours == sorted(hours, reverse=True)


def test_people_see_what_each_row_means_and_the_command_that_follows():
    done = CliRunner().invoke(app, ["plan", CONFIG, *H100, "--search", "--explain"])
    assert done.exit_code == 0
    text = re.sub(r"[│┃\s]+", " ", done.output)
    assert "activations kept" in text and "what the forward pass keeps" in text
    assert "bigtrain train" in text and "engine.zero_stage=" in text


def test_the_page_of_a_plan_shows_memory_time_and_hours(tmp_path, require_command):
    """In a real browser, wide and narrow: bars of memory, time and hours, and nothing wider than the page."""
    program = require_command("chromium")
    file = tmp_path / "plan.html"
    planned(*H100, "--search", "--html", str(file))
    with chromium(program, tmp_path) as page:
        for width in (1400, 390):
            page.open(file, width=width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            shown = "[...document.querySelectorAll('svg')].filter(each => each.getClientRects().length).length"
            assert page.evaluate(shown) == 3
        assert not page.complaints()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--gpus", "8", "--gpu", "h1000"), "h1000"),
        (("--gpus", "7", "--gpu", "h100"), "does not divide"),
        (("--gpus", "8", "--gpu", "h100", "--price", "2.5"), "currency"),
        (("--gpus", "8", "--gpu", "h100", "--tokens", "1T", "--hours", "5"), "contradict"),
        (("--gpus", "8", "--gpu", "h100", "--tokens", "lots"), "--tokens"),
        (("--gpus", "8", "--gpu", "h100", "--interconnect", "string"), "string"),
        (("--gpus", "8", "--gpu", "h100", "--nodes", "3"), "nodes"),
        (("--gpus", "8", "--gpu", "h100", "engine.zero_stage=4"), "zero_stage"),
        (("--gpus", "8", "--gpu", "h100", "--datasheet", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_what_cannot_be_planned_is_one_clear_message(arguments, what):
    assert_refused(CliRunner().invoke(app, ["plan", CONFIG, *arguments]).exception, what)


def test_a_device_of_the_users_own_is_planned_from_its_datasheet(tmp_path, monkeypatch):
    """A datasheet in YAML stands for an unknown device, by option and by environment."""
    sheet = {
        "tflops": {"bf16": 400},
        "memory_mib": 65_536,
        "memory_gbs": 2000,
        "link_gbs": 200,
        "multiprocessors": 100,
    }
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"Chip 9000": sheet}))
    by_option = planned("--gpus", "8", "--gpu", "chip-9000", "--datasheet", str(file))
    monkeypatch.setenv("BIGTRAIN_DATASHEETS", str(file))
    assert planned("--gpus", "8", "--gpu", "chip 9000") == by_option and by_option["gpu"] == "Chip 9000"


def test_a_job_that_cannot_fit_is_refused_before_the_queue():
    """--gpu refuses what does not fit, with the cheapest way out; --no-fit queues it, with the forecast as comment."""
    job = ["submit", "slurm", CONFIG, "--no-check", "--dry-run", "--gpus-per-node", "8", "--gpu", "a100-40"]
    large = ["engine.zero_stage=1", "engine.activation_checkpointing=none"]
    refused = CliRunner().invoke(app, [*job, *large])
    assert_refused(refused.exception, "does not fit", fix=("engine.", "--no-fit"))
    queued = CliRunner().invoke(app, [*job, "--no-fit", *large])
    assert queued.exit_code == 0 and "--comment=bigtrain expects" in queued.output
    small = CliRunner().invoke(app, [*job[:-1], "h200", *large])
    assert small.exit_code == 0 and "tokens/s a GPU" in small.output
