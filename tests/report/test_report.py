"""A report is one page that holds everything, fetches nothing and looks like something."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import zlib
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bigtrain.report.report import write_report
from bigtrain.rundir.ledger import CLASSES
from tests.report.helpers import STEPS, eventful_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eventful_run(tmp_path_factory.mktemp("report") / "run")


def test_the_summary_has_the_ledger_and_its_classes_add_up(run: Path) -> None:
    summary = write_report(run)
    document = json.loads(json.dumps(summary.as_dict()))
    goodput = document["goodput"]
    assert goodput["seconds"].keys() == CLASSES.keys()
    assert sum(goodput["seconds"].values()) == pytest.approx(goodput["wall_seconds"], abs=1e-6)
    assert (goodput["starts"], goodput["crashes"]) == (4, 2)
    assert goodput["steps_counted"] == STEPS and goodput["steps_recomputed"] == 40 + 32
    assert f"goodput {summary.goodput.goodput:.1%}" in str(summary)
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
    assert not re.search(r"""(?:src|href)=|url\(|@import|<script|<link|<iframe""", page)  # nothing is fetched
    assert set(re.findall(r"""https?://[^\s"'<]+""", page)) <= {"http://www.w3.org/2000/svg"}
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


@pytest.mark.long
@pytest.mark.parametrize("width", [1400, 390])
def test_a_browser_shows_the_page_without_an_error_and_without_the_network(
    run: Path, width: int, tmp_path: Path, require_command
) -> None:
    chromium = require_command("chromium")
    write_report(run)
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
            "--enable-logging=stderr", f"--user-data-dir={tmp_path}/profile", f"--window-size={width},3600",
            f"--screenshot={picture}", (run / "report.html").resolve().as_uri(),
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr  # where the page's policy would say what it wanted to fetch
    width_drawn, colors = colors_of(picture)
    assert width_drawn == width
    assert len(colors) > 30 and colors.most_common(1)[0][1] < 0.97 * colors.total()  # not blank


def colors_of(png: Path) -> tuple[int, Counter[bytes]]:
    """The width of a picture, and how often each colour is in it: every seventh pixel of every fifth row."""
    data = png.read_bytes()
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert depth == 8 and kind in (2, 6)
    size = {2: 3, 6: 4}[kind]
    position, packed = 8, b""
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        if data[position + 4 : position + 8] == b"IDAT":
            packed += data[position + 8 : position + 8 + length]
        position += length + 12
    raw, row_size = zlib.decompress(packed), width * size
    colors: Counter[bytes] = Counter()
    above = bytearray(row_size)
    for row in range(height):
        line = bytearray(raw[row * (row_size + 1) + 1 : (row + 1) * (row_size + 1)])
        unfilter(raw[row * (row_size + 1)], line, above, size)
        above = line
        if row % 5 == 0:
            colors.update(bytes(line[x : x + size]) for x in range(0, row_size, 7 * size))
    return width, colors


def unfilter(how: int, line: bytearray, above: bytearray, size: int) -> None:
    """Undo the filter of a row of a PNG (its specification, section 9.2)."""
    for index in range(len(line) if how else 0):
        left, up = line[index - size] if index >= size else 0, above[index]
        corner = above[index - size] if index >= size else 0
        nearest = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
        line[index] = line[index] + (0, left, up, (left + up) // 2, nearest)[how] & 255
