"""Weights & Biases (W&B), in the background: whatever happens there, training goes on, and no slower.

The training only puts actions into a bounded queue. A thread of rank 0 starts W&B, carries out the actions and ends it.
Where W&B does not answer, only this thread waits. At the end the run waits `tracking.patience_seconds` for it and a few
seconds more. What W&B receives is also in RUN/wandb, for `wandb sync`.

    training ──log, alert, table──►  queue of at most 10,000 actions  ──►  thread: init │ log, log, ... │ finish

Without a key, or where the server does not answer at the start, the run is tracked offline.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from bigtrain.base import BigtrainError, check_writable
from bigtrain.config import Settings
from bigtrain.observe.wandb_choice import run_id_of_environment, wandb_folder, wandb_mode
from bigtrain.observe.wandb_thread import WandbAction, WandbThread

logger = logging.getLogger(__name__)

Level = Literal["INFO", "WARN", "ERROR"]

FINAL_ALERT_SECONDS = 2.0
"""Seconds that a process which is about to end waits for its alert to be sent."""
ALERTS: Mapping[str, Level] = {
    "fallback": "WARN",
    "spike": "WARN",
    "rewind": "WARN",
    "straggler": "WARN",
    "not finite": "ERROR",
    "hang": "ERROR",
    "corruption": "ERROR",
}
"""The level of each event that sends an alert."""


class Tracker:
    """One W&B run over all restarts. Without tracking, or after an error, it does nothing. No logging waits for W&B."""

    def __init__(self) -> None:
        """Make a tracker that does nothing; see `start`."""
        self.run_id: str | None = None
        self._thread: WandbThread | None = None

    @classmethod
    def start(cls, settings: Settings, run_id: str | None) -> Tracker:
        """Start or continue a W&B run.

        Args:
            settings: of the run; they become the W&B config.
            run_id: the id of the W&B run to continue, or None for a new one: that of WANDB_RUN_ID, or a random one.
        """
        tracker = cls()
        tracker.run_id = run_id
        mode = wandb_mode(settings.tracking.wandb)
        try:
            if mode != "disabled":
                check_writable(wandb_folder(settings.run_dir) / "wandb", "W&B's folder")
        except BigtrainError as error:  # W&B itself would write to a temporary folder, without a word
            logger.warning(f"{error.what}: {error.found}. This start is not tracked; metrics.jsonl has everything.")
            mode = "disabled"
        if mode != "disabled":
            from_environment = run_id_of_environment(run_id)
            tracker.run_id = run_id or from_environment or secrets.token_hex(4)
            tracker._thread = WandbThread(settings, mode, tracker.run_id)
            tracker._thread.start()
        return tracker

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Add facts that are not settings to the W&B config."""
        self._send(lambda run: run.config.update(dict(facts), allow_val_change=True))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send the values of a step. A step that is done again after a restart appears twice, as in metrics.jsonl."""
        self._send(lambda run: run.log({**values, "step": step}))

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], step: int) -> None:
        """Send a table, for example of samples."""
        data = [list(row) for row in rows]

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=data), "step": step})

        self._send(log)

    def alert(self, title: str, text: str, level: Level = "WARN") -> None:
        """Send an alert, which W&B forwards by mail or Slack."""
        self._send(lambda run: run.alert(title=title[:63], text=text, level=level))

    def alert_and_wait(self, title: str, text: str) -> None:
        """Send an alert of a process that is about to end, and wait FINAL_ALERT_SECONDS for it at most."""
        self.alert(title, text, "ERROR")
        self.flush(FINAL_ALERT_SECONDS)

    def flush(self, seconds: float) -> None:
        """Wait until W&B has received everything, for this time at most; for a process that is about to end."""
        if self._thread is not None:
            self._thread.wait_until_empty(time.monotonic() + seconds)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Close the W&B run; a second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.end(lambda run: run.summary.update(dict(summary)), exit_code)

    def _send(self, action: WandbAction) -> None:
        if self._thread is not None:
            self._thread.put(action)


def describe_details(details: Mapping[str, Any]) -> str:
    """Format the details of an event as one line for people."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in details.items())
