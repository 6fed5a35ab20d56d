"""The ledger at the end of a start, a listing of runs and a report do not grow with the length of a run, or little."""

from __future__ import annotations

import json
from functools import cache

import pytest

from bigtrain.report import write_report
from bigtrain.rundir import RunDirectory, account_of, closed_starts, list_runs
from tests.report.helpers import Pen
from tests.scale.growth import assert_grows, cpu_seconds

STARTS = [2, 4, 8]
STEPS_OF_A_START = 100


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory):
    """A run of so many starts, each of which was killed but the last."""

    @cache
    def made(starts: int) -> RunDirectory:
        pen = Pen(tmp_path_factory.mktemp("runs") / f"of-{starts}")
        for start in range(starts):
            pen.begin(start * STEPS_OF_A_START)
            pen.train((start + 1) * STEPS_OF_A_START + (20 if start < starts - 1 else 0))
        return RunDirectory(pen.run)

    return made


def test_the_ledger_of_a_start_reads_no_other_start(run_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of metrics that are parsed at the end of a start are those of the start."""
    begins: list[int] = []
    real = closed_starts.read_metrics_columns
    monkeypatch.setattr(
        closed_starts, "read_metrics_columns", lambda path, *, begin: begins.append(begin) or real(path, begin=begin)
    )

    def bytes_parsed(starts: int) -> int:
        directory = run_of(starts)
        whole = account_of(directory, keep=True).as_dict()
        del begins[:]
        assert account_of(directory).as_dict() == whole
        return sum(directory.metrics.stat().st_size - begin for begin in begins)

    assert_grows(STARTS, bytes_parsed, at_most=0.0)


def test_a_report_takes_time_with_the_steps_and_a_page_does_not(run_of) -> None:
    """A page of a run of four times the steps is hardly larger, and is written in proportion to the steps at most."""

    def page(starts: int) -> int:
        write_report(run_of(starts).root)
        return (run_of(starts).root / "report.html").stat().st_size

    assert_grows(STARTS, page, at_most=0.8)
    assert_grows(STARTS, lambda starts: cpu_seconds(lambda: write_report(run_of(starts).root)), at_most=1.0, slack=0.3)


def test_a_page_of_many_sources_has_a_legend_and_dots_that_fit(run_of) -> None:
    """Ten times the sources and evaluations do not make a drawing of ten times the size."""

    def drawing(sources: int) -> int:
        root = run_of(2).root.with_name(f"sources-{sources}")
        pen = Pen(root)
        pen.begin(0)
        for _ in range(40):
            pen.train(pen.step + 2)
            losses = [
                {"source": f"s{n}", "loss": 2.0 + n / 100, "perplexity": 8.0, "tokens": 9} for n in range(sources)
            ]
            pen.event("evaluate", seconds=1.0, validation=losses)
        write_report(root)
        svg = (root / "loss.svg").read_text()
        assert svg.count("<rect") < 20 and svg.count("<circle") < 2000
        return len(svg)

    assert_grows([4, 16, 64], drawing, at_most=0.6)


def test_a_listing_looks_at_no_file_of_a_checkpoint(run_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of a checkpoint are those that its manifest names."""
    from bigtrain.rundir import runs

    looked_at: list[str] = []
    real = runs._size_of
    monkeypatch.setattr(runs, "_size_of", lambda folder, file: looked_at.append(file) or real(folder, file))

    def looks(ranks: int) -> int:
        root = run_of(2).root
        folder = root / "checkpoints" / "step-00000100"
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"state-{rank:05d}.safetensors" for rank in range(ranks)]
        for name in names:
            (folder / name).write_bytes(b"1234567")
        manifest = json.dumps({"files": {name: {"size": 7} for name in names}})
        (folder / "manifest.json").write_text(manifest)
        del looked_at[:]
        (state,) = list_runs(root)
        assert (state.checkpoints, state.checkpoint_bytes) == (1, 7 * ranks + len(manifest))
        return 1 + len(looked_at)

    assert_grows([4, 16, 64], looks, at_most=0.0)
