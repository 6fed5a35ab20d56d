"""Charts are well-formed and hold every line they were given."""

import math
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.format import duration, quantity
from bigtrain.report.chart import Chart, Line
from bigtrain.report.figure import svg_chart, text_chart

POINTS = st.lists(
    st.tuples(st.floats(-1e6, 1e6), st.one_of(st.floats(-1e9, 1e9), st.just(math.nan), st.just(math.inf))), max_size=30
)


@given(points=POINTS, name=st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=10))
def test_a_chart_is_well_formed_for_any_numbers_and_names(points, name):
    svg = svg_chart(Chart("t", [Line(name, points), Line("b", [(0.0, 1.0)])], x_label="x", y_label="y"))
    root = ElementTree.fromstring(svg)
    drawn = [e for e in root if e.tag.endswith("polyline")]
    assert len(drawn) == 1 + any(math.isfinite(y) for _, y in points)
    assert "nan" not in svg and "inf" not in svg.replace("info", "")
    text_chart(points)


def test_stacked_areas_start_where_the_one_below_ends():
    lines = [Line("a", [(1, 1.0), (2, 2.0)]), Line("b", [(1, 3.0), (2, 1.0)])]
    root = ElementTree.fromstring(svg_chart(Chart("t", lines, x_label="x", y_label="y", stacked=True)))
    bands = [
        [tuple(map(float, point.split(","))) for point in e.get("points").split()]
        for e in root
        if e.tag.endswith("polygon")
    ]
    assert bands[0][:2] == bands[1][:1:-1]  # the ceiling of one is the floor of the next


def test_a_falling_curve_falls_in_the_terminal():
    rows = text_chart([(x, 100 - x) for x in range(100)], width=20, height=5).splitlines()
    first, last = (min(r.index("•") for r in (rows[i],)) for i in (0, 4))
    assert first < last


def test_numbers_are_said_as_people_say_them():
    assert [duration(s) for s in (3, 65, 3700, 90000)] == ["3s", "1m05s", "1h01m", "1d01h"]
    assert [quantity(v) for v in (7, 12345, 6.84e6, 8.03e9)] == ["7", "12.3k", "6.84M", "8.03B"]
