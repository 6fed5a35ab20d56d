"""The data card of a run: `RUN/data-card.json` and `RUN/data-card.md`."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from bigtrain.base import write_atomically
from bigtrain.data import Card, card_as_markdown, data_card
from bigtrain.rundir.provenance import OpenedRun

CARD = "data-card"

logger = logging.getLogger(__name__)


def card_of_run(run: Path, step: int | None = None) -> Card:
    """The bill of materials of a run.

    Args:
        run: a run directory.
        step: what was consumed is counted up to this step. Default: the newest one that the run has done.

    Raises:
        BigtrainError: no run, or its data are missing or were built with other settings.
    """
    opened = OpenedRun.open(run)
    if step is None:
        newest = opened.directory.newest()
        step = newest["step"] if newest else 0
    consumed = opened.data.plan.batches.consumed_after(step)
    data = opened.data
    return {
        "run": opened.directory.root.resolve().name,
        "step": step,
        **data_card(opened.settings.data, data.datasets, data.held_out_datasets, data.plan, consumed),
    }


def write_card(run: Path) -> tuple[Card, str]:
    """Write both forms into the run directory; returns the card and its Markdown. Raises as `card_of_run`.

    Where the directory cannot be written, a warning says so.
    """
    card = card_of_run(run)
    markdown = card_as_markdown(card)
    try:
        write_atomically(run / f"{CARD}.json", json.dumps(card, indent=2, ensure_ascii=False) + "\n", follow_link=False)
        write_atomically(run / f"{CARD}.md", markdown, follow_link=False)
    except OSError as error:
        logger.warning(f"{run}/{CARD}.md and .json are not written: {error.strerror}")
    return card, markdown
