"""The charts of a page: what they hold, and what a browser makes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.report.chart import MOST_COLUMNS, Chart, EventMark, Line
from bigtrain.report.page import STATIC, page
from bigtrain.report.report import write_report
from bigtrain.report.report_page import UPLOT
from tests.report.browser import Page, chromium
from tests.report.helpers import STEPS, eventful_run

VENDORED = {
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
"""SHA-256 of the files of uplot-1.6.32.tgz at the npm registry (`npm pack uplot@1.6.32`)."""
POINTS = st.lists(
    st.tuples(st.integers(0, 99), st.one_of(st.floats(-1e9, 1e9), st.just(float("nan")), st.just(float("inf"))))
)


def test_the_vendored_library_is_what_its_authors_published() -> None:
    folder = STATIC / UPLOT
    assert {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()} == VENDORED
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]


@given(st.lists(POINTS, max_size=3))
def test_the_data_of_a_chart_are_json_with_every_finite_value(made: list[list[tuple[int, float]]]) -> None:
    lines = [Line(str(number), points) for number, points in enumerate(made)]
    data = json.loads(json.dumps(Chart("t", lines, "x", "y").as_data(), allow_nan=False))
    shown = {line["name"]: dict(zip(data["x"], line["values"], strict=True)) for line in data["lines"]}
    for line in lines:
        finite = {x: y for x, y in line.points if abs(y) < float("inf")}
        drawn = {x: y for x, y in shown.get(line.name, {}).items() if y is not None}
        assert drawn == pytest.approx(finite, rel=1e-6)
    assert data["x"] == sorted(set(data["x"]))


def test_a_long_line_keeps_its_extremes_and_is_bounded() -> None:
    points = [(step, 2.0 + step % 7 / 10) for step in range(100_000)]
    points[54_321] = (54_321, 99.0)
    marks = [EventMark(step, "save", "#000000") for step in range(0, 100_000, 5)]
    for stacked in (False, True):
        data = Chart("t", [Line("a", points)], "x", "y", marks, stacked).as_data()
        assert len(data["x"]) <= 2 * MOST_COLUMNS and len(data["marks"]) <= MOST_COLUMNS + 1
        assert stacked or dict(zip(data["x"], data["lines"][0]["values"], strict=True))[54_321] == 99.0


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = eventful_run(tmp_path_factory.mktemp("charts") / "run")
    write_report(run)
    return run / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, require_command: Any) -> Iterator[Page]:
    with chromium(require_command("chromium"), tmp_path_factory.mktemp("chromium")) as page:
        yield page


class Figure:
    """A chart of the open page, by its number."""

    def __init__(self, page: Page, number: int) -> None:
        self.page, self.chart = page, f"document.querySelectorAll('figure.chart')[{number}]"

    def at(self, step: float) -> tuple[float, float]:
        """Where a step is in the window, as long as the chart shows all of them. It scrolls to the chart.

        A page that scrolls below the pointer takes the pointer off its chart.
        """
        self.page.evaluate(f"{self.chart}.scrollIntoView()")
        self.page.settle()
        plane = self.page.evaluate(f"{self.chart}.querySelector('.u-over').getBoundingClientRect().toJSON()")
        return plane["left"] + plane["width"] * (step - 1) / (STEPS - 1), plane["top"] + 60

    def legend(self) -> dict[str, str]:
        """What the legend says of each line."""
        rows = f"[...{self.chart}.querySelectorAll('.u-series')]"
        cells = "[row.querySelector('.u-label').innerText, row.querySelector('.u-value').innerText]"
        return dict(self.page.evaluate(f"{rows}.map((row) => {cells})"))

    def steps(self) -> tuple[float, float]:
        """The first and the last step that it shows."""
        first, last = self.page.evaluate(f"[{self.chart}.plot.scales.x.min, {self.chart}.plot.scales.x.max]")
        return first, last

    def events(self) -> str:
        """What it says of the events at the pointer."""
        return str(self.page.evaluate(f"{self.chart}.querySelector('.events-at-pointer').innerText"))


@pytest.mark.long
def test_a_pointer_above_a_chart_shows_the_values_of_the_step(browser: Page, report: Path) -> None:
    browser.open(report, width=1400)
    loss = Figure(browser, 0)
    assert set(loss.legend().values()) == {"-"}
    browser.mouse("mouseMoved", *loss.at(350))
    records = [json.loads(line) for line in (report.parent / "metrics.jsonl").read_text().splitlines()]
    record = next(record for record in reversed(records) if record["step"] == 350)
    shown = loss.legend()
    assert shown["step"] == "350"
    assert float(shown["training"]) == pytest.approx(record["loss"], rel=1e-5)
    assert shown["held-out source"].endswith((" at 300", " at 400"))  # evaluated at every hundredth step only
    assert shown["undone"] == "-"
    others = [Figure(browser, number).legend() for number in range(1, 6)]  # one pointer for all charts
    assert [row["step"] for row in others] == ["350"] * 5
    assert float(others[0]["rate"]) == pytest.approx(record["learning_rate"], rel=1e-5)
    parts = {name: float(value) for name, value in others[-1].items() if name != "step"}
    assert sum(parts.values()) == pytest.approx(record["step_seconds"], rel=1e-4)  # not the sums that are drawn


@pytest.mark.long
def test_a_pointer_at_an_event_names_it_with_its_date(browser: Page, report: Path) -> None:
    browser.open(report, width=1400)
    loss = Figure(browser, 0)
    browser.mouse("mouseMoved", *loss.at(182))
    assert "rewind at step 182, 2026-09-21" in loss.events()
    browser.mouse("mouseMoved", *loss.at(210))
    assert "rewind" not in loss.events()


@pytest.mark.long
def test_dragging_zooms_all_charts_and_a_double_click_resets(browser: Page, report: Path) -> None:
    browser.open(report, width=1400)
    loss = Figure(browser, 0)
    browser.drag(loss.at(100), loss.at(200))
    for number in range(6):
        assert Figure(browser, number).steps() == pytest.approx((100, 200), abs=2)
    for clicks in (1, 2):
        for kind in ("mousePressed", "mouseReleased"):
            browser.mouse(kind, *loss.at(150), clicks=clicks)
    assert [Figure(browser, number).steps() for number in range(6)] == [(1, STEPS)] * 6


@pytest.mark.long
def test_a_slow_step_does_not_press_the_others_flat(browser: Page, report: Path) -> None:
    """The areas of a step's time go up to 1.2 times the 98th percentile: steps of half a second, not the few of one."""
    browser.open(report, width=1400)
    assert 0.55 < browser.evaluate(f"{Figure(browser, 5).chart}.plot.scales.y.max") < 0.75


@pytest.mark.long
@pytest.mark.parametrize("width", [1400, 390])
def test_charts_fit_their_page_and_fetch_nothing(browser: Page, report: Path, width: int) -> None:
    browser.open(report, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    charts = "[...document.querySelectorAll('.live canvas')]"
    drawn = "(c) => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((value) => value > 0)"
    assert browser.evaluate(f"{charts}.map({drawn})") == [True] * 6
    assert browser.fetched() == [report.resolve().as_uri()]
    assert not browser.complaints()


VISIBLE = "(selector) => [...document.querySelectorAll(selector)].filter((e) => e.getClientRects().length).length"


@pytest.mark.long
def test_the_svg_stands_in_without_javascript_and_on_paper(browser: Page, report: Path) -> None:
    counts = f"['.still svg', '.live'].map({VISIBLE})"
    browser.open(report, width=1400)
    assert browser.evaluate(counts) == [0, 6]
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate(counts) == [6, 0]
    browser.call("Emulation.setEmulatedMedia", media="")
    browser.open(report, width=1400, scripts=False)
    assert browser.evaluate(counts) == [6, 0]


@pytest.mark.long
def test_a_text_that_is_a_script_does_not_run(browser: Page, tmp_path: Path) -> None:
    """Even markup that was not escaped cannot run: the policy allows the scripts of the page by their hashes only."""
    name = "</script><script>document.title = 'taken over'</script>"
    chart = Chart(name, [Line(name, [(1.0, 1.0), (2.0, 2.0)])], name, name)
    safe = page("report.html", "ours", scripts=[f"{UPLOT}/uPlot.iife.min.js", "charts.js"], **contents(chart))
    for text, complains in ((safe, False), (safe.replace("<h2>", f"{name}<h2>", 1), True)):
        (tmp_path / "page.html").write_text(text)
        browser.open(tmp_path / "page.html", width=1400)
        assert browser.evaluate("document.title") == "ours"
        assert browser.evaluate("document.querySelector('.live h3').innerText") == name
        complaints = json.dumps(browser.complaints())
        assert "Content Security Policy" in complaints if complains else complaints == "[]"


def contents(chart: Chart) -> dict[str, Any]:
    """What the page of a report needs, with one chart."""
    figure = {"wide": "", "narrow": "", "data": chart.as_data()}
    return {
        "facts": [], "goodput_share": "", "wall_time": "", "wall_exact": "", "classes": [], "timeline": figure,
        "charts": [figure], "samples": [], "funnels": None, "events": [], "earlier_events": 0, "config": "",
    }  # fmt: skip
