"""Pages and figures for people: the report of a run, the funnel of a data build.

report.py, summary.py   read a run directory; the numbers of `bigtrain report`
  |
report_page.py          the page of a run       funnel_page.py   the page of a data build
  |                                             ladder_page.py   the page of a ladder of runs
timeline.py             its time, by class      chart.py         what a chart shows: lines and events
  |                                               |
  |                                             figure.py        a chart as SVG, or as characters
  |                                               |
plan_page.py            the page of a plan: what memory is for, where time goes, hours against GPUs
  |
page.py                 templates/ (jinja2) and static/ (CSS): markup and style lie there, not in the code
"""

from bigtrain.report.funnel_page import write_funnel_page
from bigtrain.report.ladder_page import write_ladder_page
from bigtrain.report.plan_page import write_plan_page
from bigtrain.report.report import write_report
from bigtrain.report.summary import Summary

__all__ = ["Summary", "write_funnel_page", "write_ladder_page", "write_plan_page", "write_report"]
