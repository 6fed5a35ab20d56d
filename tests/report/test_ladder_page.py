"""Logarithmic axes, and what the page of a ladder says."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.report.chart import Chart, Line, log_ticks
from bigtrain.report.figure import svg_chart
from bigtrain.report.ladder_page import ladder_page
from tests.trials.ladder.helpers import OfALaw, target
from tests.trials.ladder.test_ladder import FLOPS, climb


@given(low=st.floats(-6, 20), width=st.floats(0.3, 9), about=st.integers(3, 9))
def test_marks_of_a_logarithmic_axis_are_round_and_few(low, width, about):
    """Within the bounds, in order, a digit or two each, and no more than there is space for."""
    found = log_ticks(low, low + width, about)
    assert found == sorted(found) and all(low <= tick <= low + width + 1e-9 for tick in found)
    assert len(found) <= about + 2
    for tick in found:
        digits = f"{10**tick:.6e}".partition("e")[0]
        assert float(digits) == pytest.approx(round(float(digits), 1))


def test_equal_ratios_are_equal_distances():
    """On a logarithmic axis 1k, 10k and 100k are evenly spaced; a line without a name is not in the legend."""
    chart = Chart("t", [Line("", [(1e3, 1.0), (1e4, 2.0), (1e5, 3.0)], bare=True)], "x", "y", log_x=True)
    drawn = str(svg_chart(chart))
    xs = [float(x) for x in re.findall(r'<circle cx="([0-9.]+)"', drawn)]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert "polyline" not in drawn and "10k" in drawn and 'width="14"' not in drawn


def test_the_page_has_every_run_and_the_prediction(tmp_path):
    """Each rung is a row, and the target's loss, the law and the overrides are there; nothing is fetched."""
    found = climb(target(tmp_path), FLOPS, OfALaw(noise=0.01))
    page = ladder_page(found)
    assert all(rung.run.rpartition("/")[2] in page for rung in found.rungs)
    assert f"{found.target.loss:.4f}" in page and "L(N, D) =" in page
    assert all(override in page for override in found.target.overrides)
    assert "http-equiv" in page and "src=" not in page
