"""Whatever happens to a run, it says so, goes on by itself where it can, and loses nothing; docs/faults.md is of here.

BIGTRAIN_FAULT_TABLE=FILE keeps what was measured, for `python tests/system/fault_page.py FILE`: all of it, or the
scenarios that `-k` chooses, whose rows then take the place of older ones.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.system import fault_page
from tests.system.fault_runs import ScenarioRuns
from tests.system.fault_table import SAME, SCENARIOS, Scenario
from tests.system.run_sandbox import ROOT

RESULT = ROOT / "benchmarks/results/faults.json"


@pytest.fixture
def kept():
    """The rows that were played, with what became of them; rows of other scenarios stay as they were played before."""
    rows = []
    yield rows
    if "BIGTRAIN_FAULT_TABLE" in os.environ:
        sys.path.append(str(ROOT / "benchmarks"))
        from record import circumstances

        file, here = Path(os.environ["BIGTRAIN_FAULT_TABLE"]), circumstances()
        played = {row["scene"] for row in rows}
        before = json.loads(file.read_text())["rows"] if file.is_file() else []
        every = [row | {"commit": here["commit"]} for row in rows]
        every += [row for row in before if row["scene"] not in played]
        order = [scenario.name for scenario in SCENARIOS]
        every.sort(key=lambda row: order.index(row["scene"]))
        file.write_text(json.dumps({**here, "rows": every}, indent=1) + "\n")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
def test_of_every_fault_the_run_tells_and_nothing_is_lost(
    scenario: Scenario, sandbox, undisturbed, kept, require_command
):
    for program in scenario.needs:
        require_command(program)
    runs, began = ScenarioRuns(sandbox, undisturbed), time.monotonic()
    try:
        outcomes = scenario.play(runs, scenario.faults)
    except BaseException as error:
        kept += [{"scene": scenario.name, **asdict(fault), "failed": str(error)[:500]} for fault in scenario.faults]
        raise
    finally:
        runs.clear()
    assert len(outcomes) == len(scenario.faults)
    seconds, load = round(time.monotonic() - began, 1), round(os.getloadavg()[1], 1)
    played = {"scene": scenario.name, "scene_seconds": seconds, "load": load}
    for fault, outcome in zip(scenario.faults, outcomes, strict=True):
        kept.append({**played, **asdict(fault), **asdict(outcome)})


def test_the_page_of_faults_has_every_row_and_what_was_measured():
    result = json.loads(RESULT.read_text())
    assert (ROOT / "docs/faults.md").read_text() == fault_page.page(result, SCENARIOS, SAME)
    table = {(fault.what, fault.planted) for scenario in SCENARIOS for fault in scenario.faults}
    assert {(row["what"], row["planted"]) for row in result["rows"]} <= table
    assert not any("failed" in row for row in result["rows"])
