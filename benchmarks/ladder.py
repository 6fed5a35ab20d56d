"""The proof of `bigtrain ladder`: what it predicted of a larger model, and what that model then reached.

    bigtrain ladder CONFIG ... --json > before.json      # when all rungs are trained
    launch/local.sh CONFIG (the printed overrides)       # the target
    bigtrain ladder CONFIG ... --json > after.json       # the same command again
    python benchmarks/ladder.py before.json after.json

It records the prediction of before beside the measurement of after in benchmarks/results/ladder.json, and takes two
charts of the ladder's page into docs/images. Call it where the ladder was called.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from record import write_result

IMAGES = Path(__file__).parents[1] / "docs" / "images"
CHARTS = {"Held-out loss by tokens, and the law": "ladder-law.svg", "Loss by learning rate": "ladder-rates.svg"}
"""Charts of the page by the start of their titles; the first one of a title is the wide one."""


def main() -> None:
    """Record the proof of the command line."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    before, after = (json.loads(Path(name).read_text()) for name in sys.argv[1:])
    predicted, measured = before["target"], after["target"]["measured"]
    error = predicted["loss"] / measured - 1
    result: dict[str, Any] = {
        **{key: before[key] for key in ("rungs", "sweeps", "law", "intervals", "back_test", "flops", "seconds")},
        "predicted": predicted,
        "measured_loss": measured,
        "relative_error": error,
    }
    print(f"predicted {predicted['loss']:.4f}, measured {measured:.4f}: {error:+.2%}")
    print(write_result("ladder", result))
    page = Path(after["run"]).with_name(f"{Path(after['run']).name}-ladder") / "ladder.html"
    charts = re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL)
    for title, file in CHARTS.items():
        wide = next(chart for chart in charts if f">{title}" in chart)
        (IMAGES / file).write_text(wide + "\n")


if __name__ == "__main__":
    main()
