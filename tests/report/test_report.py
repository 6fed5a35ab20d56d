"""A report is one page that holds everything, fetches nothing and looks like something."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bigtrain.base.to_json import to_json
from bigtrain.report.report import write_report
from bigtrain.rundir.ledger import CLASSES
from tests.report.helpers import STEPS, eventful_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eventful_run(tmp_path_factory.mktemp("report") / "run")


def test_the_summary_has_the_ledger_and_its_classes_add_up(run: Path) -> None:
    summary = write_report(run)
    document = json.loads(json.dumps(to_json(summary.numbers)))
    goodput = document["goodput"]
    assert goodput["seconds"].keys() == CLASSES.keys()
    assert sum(goodput["seconds"].values()) == pytest.approx(goodput["wall_seconds"], abs=1e-6)
    assert (goodput["starts"], goodput["crashes"]) == (4, 2)
    assert goodput["steps_counted"] == STEPS and goodput["steps_recomputed"] == 40 + 32
    assert f"goodput {summary.ledger.goodput:.1%}" in str(summary)
    for name in ("hang 31", "restart", "start up", "recomputed"):
        assert name.split()[0] in str(summary)


def test_the_page_shows_every_part_and_is_well_formed(run: Path) -> None:
    write_report(run)
    page = (run / "report.html").read_text()
    root = ElementTree.fromstring(page.removeprefix("<!doctype html>\n"))
    shown = " ".join(root.itertext())
    for words in (
        "Goodput", "recomputed", "checkpoint", "From the first second to the last", "Learning rate", "Gradient norm",
        "Throughput", "MFU of the measured matmul peak", "restart", "rewind", "spike", "hang", "fallback", "undone",
        "if <b>not</b> line", "The *key* & more", "documentation", "Step 400",
    ):  # fmt: skip
        assert words in shown, words
    assert not re.search(r"""(?:src|href)=|url\(|@import|<link|<iframe""", page)  # nothing is fetched
    libraries = {"http://www.w3.org/2000/svg", "https://github.com/leeoniya/uPlot"}
    assert set(re.findall(r"""https?://[^\s"'<]+""", page)) <= libraries
    assert "Copyright (c) 2022 Leon Sorokin" in page  # the licence of what the page holds
    ElementTree.parse(run / "loss.svg")


def test_a_long_run_has_a_page_of_bounded_size(tmp_path: Path) -> None:
    run = eventful_run(tmp_path / "run")
    write_report(run)
    before = (run / "report.html").stat().st_size
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    with (run / "metrics.jsonl").open("a") as file:
        for number in range(5_000):
            file.write(json.dumps({**lines[-1], "step": STEPS + 1 + number, "loss": 2 + number % 7 / 10}) + "\n")
    write_report(run)
    assert (run / "report.html").stat().st_size < 6 * before < 6_000_000
