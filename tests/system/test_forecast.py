"""From a measured device to a forecast to a run that shows both: doctor, plan, train and report agree."""

import pytest

from bigtrain.estimate import read_datasheets
from tests.system.run_sandbox import as_json


@pytest.mark.slow
def test_a_measured_device_is_planned_and_compared_with_its_run(sandbox, monkeypatch, tmp_path):
    """What doctor measured is what plan forecasts from; the run records that forecast, and report has both."""
    sheet = tmp_path / "own.yaml"
    checked = sandbox.bigtrain("doctor", "--datasheet", sheet, "--skip", "disks", "--skip", "limits")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (device,) = read_datasheets(sheet)
    assert device.matmul_tflops["bf16"] > 0 and device.memory_gbs > 0 and device.memory_mib > 1000

    monkeypatch.setenv("BIGTRAIN_DATASHEETS", str(sheet))
    asked = (
        "plan",
        sandbox.config,
        "--gpus",
        "1",
        "--gpu",
        device.name,
        "--json",
        "train.steps=4",
        "schedule.decay_steps=1",
    )
    planned = as_json(sandbox.bigtrain(*asked))
    status, output = sandbox.train(1, "train.steps=4", "schedule.decay_steps=1")
    assert status == 0, output
    (event,) = [event for event in sandbox.events() if event["event"] == "forecast"]
    assert event["memory"] == pytest.approx(planned["memory"]) and event["device"] == device.name
    assert sum(event["step_seconds"].values()) == pytest.approx(planned["seconds"])
    assert "the planner expects" in output

    report = as_json(sandbox.bigtrain("report", sandbox.run, "--json"))
    (seconds,) = report["expectations"]
    assert seconds["what"] == "seconds a step" and seconds["predicted"] == pytest.approx(planned["seconds"])
    assert seconds["measured"] > 0
    assert "planner: seconds a step" in sandbox.bigtrain("report", sandbox.run).stdout
