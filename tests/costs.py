"""What each test file costs, in costs.json: workers get the heaviest first, so that they end together.

tests/run.sh --record-costs      runs the suite and writes the seconds of each file that ran
python -m tests.costs            writes the table at the end of tests/README.md: seconds by folder
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("costs.json")
HEAD = "| folder or file | seconds of one worker |"
SECONDS_PER_TEST = 0.2
"""Of a file that the table does not have yet."""


@cache
def read_costs() -> dict[str, float]:
    """Seconds of one worker by file, such as `tests/data/test_build.py`."""
    costs: dict[str, float] = json.loads(TABLE.read_text())
    return costs


def cost(file: str, tests: int) -> float:
    """The seconds that a file with so many tests takes."""
    return read_costs().get(file, SECONDS_PER_TEST * tests)


class Recorder:
    """A plugin that adds up what setups, calls and teardowns took, and writes the table at the end."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid.partition("::")[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        recorded = {file: round(seconds, 1) for file, seconds in self._seconds.items()}
        root = TABLE.parents[1]
        kept = {file: seconds for file, seconds in read_costs().items() if (root / file).is_file()}
        TABLE.write_text(json.dumps(dict(sorted((kept | recorded).items())), indent=1) + "\n")


def by_folder() -> dict[str, float]:
    """Seconds by folder, the heaviest first."""
    folders: Counter[str] = Counter()
    for file, seconds in read_costs().items():
        parent = Path(file).parent
        folders[file if parent.name == "tests" else f"{parent}/"] += seconds
    return dict(folders.most_common())


def table() -> str:
    """The costs by folder, in Markdown."""
    rows = [f"| `{folder}` | {seconds:.0f} |" for folder, seconds in by_folder().items()]
    return "\n".join([HEAD, "| --- | ---: |", *rows, f"| all | {sum(read_costs().values()):.0f} |"]) + "\n"


if __name__ == "__main__":
    readme = TABLE.with_name("README.md")
    before, _, _ = readme.read_text().partition(HEAD)
    readme.write_text(before + table())
