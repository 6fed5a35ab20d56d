"""What fine-tuned models reach on held-out labels, beside the same model from random weights and simple predictors.

    python benchmarks/labelled_tasks.py NAME=RUN,SCRATCH[,ANSWERS] ...

NAME      of the task: sentiment, tags, answers
RUN       a finished run that started from pre-trained weights
SCRATCH   the same configuration without model.init_from
ANSWERS   a file of questions in SQuAD's format: answers are compared as texts, too

Each is evaluated at its newest checkpoint; benchmarks/results/labelled_tasks.json keeps the tasks of earlier calls.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from record import RESULTS, write_result


def evaluated(run: str, *options: str) -> dict[str, Any]:
    """What `bigtrain eval RUN --json` prints of the first source."""
    command = [sys.executable, "-m", "bigtrain", "eval", run, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def task(run: str, scratch: str, answers: str | None) -> dict[str, Any]:
    """The metrics of both runs, and of the simple predictors."""
    asked = ["--answers", answers] if answers else []
    both = {"pre-trained": evaluated(run, "--baselines", *asked), "random weights": evaluated(scratch, *asked)}
    found: dict[str, Any] = {}
    for name, document in both.items():
        (source,) = document["validation"]
        found[name] = {"step": document["step"], "labels": source["tokens"], **source["metrics"]}
        if "answers" in document:
            found[name]["answers as texts"] = document["answers"]
        found |= source.get("baseline metrics", {})
    return found


def main() -> None:
    """Evaluate the tasks of the command line and record them."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    file = RESULTS / "labelled_tasks.json"
    tasks = json.loads(file.read_text())["tasks"] if file.is_file() else {}
    for argument in sys.argv[1:]:
        name, _, paths = argument.partition("=")
        run, scratch, *answers = paths.split(",")
        tasks[name] = task(run, scratch, answers[0] if answers else None)
        print(json.dumps({name: tasks[name]}, indent=1))
    write_result("labelled_tasks", {"tasks": tasks})


if __name__ == "__main__":
    main()
