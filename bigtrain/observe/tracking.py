"""Weights & Biases, kept at arm's length: whatever happens there, training goes on, and no slower.

The training only puts notes into a bounded line; a thread of rank 0 starts W&B, hands the notes over and ends it. Where
W&B does not answer, nobody waits but this thread, and at the end nobody waits for longer than
`tracking.patience_seconds`. What W&B receives is in RUN/wandb in any case, for `wandb sync`.

    training ──log, alert, table──►  line of at most 10,000 notes  ──►  thread: init │ log, log, ... │ finish

Without a key, or where the server does not answer at the start, the run is tracked offline.
"""

from __future__ import annotations

import logging
import netrc
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

from bigtrain.config import Settings
from bigtrain.observe.wandb_thread import Note, WandbThread

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]
Level = Literal["INFO", "WARN", "ERROR"]

LAST_WORDS_SECONDS = 2.0
"""For an alert of a process that is about to leave."""
ALERTS: Mapping[str, Level] = {
    "fallback": "WARN",
    "spike": "WARN",
    "rewind": "WARN",
    "straggler": "WARN",
    "not finite": "ERROR",
    "hang": "ERROR",
    "corruption": "ERROR",
}
"""The events that are bad news, and how bad."""


class Tracker:
    """One W&B run over all restarts; does nothing where tracking is off or has failed. No call waits for W&B."""

    def __init__(self) -> None:
        """A tracker that does nothing."""
        self.run_id: str | None = None
        self._thread: WandbThread | None = None

    @classmethod
    def start(cls, settings: Settings, run_id: str | None) -> Tracker:
        """Start or continue a W&B run.

        Args:
            settings: of the run; they become the W&B config.
            run_id: the id of the W&B run to continue, or None for a new one.
        """
        tracker = cls()
        tracker.run_id = run_id
        mode = wandb_mode(settings.tracking.wandb)
        if mode != "disabled":
            tracker.run_id = run_id or secrets.token_hex(4)
            tracker._thread = WandbThread(settings, mode, tracker.run_id)
            tracker._thread.start()
        return tracker

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Add to the W&B config what is no setting."""
        self._tell(lambda run: run.config.update(dict(facts), allow_val_change=True))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send one step's numbers. Steps that are done again after a restart are there twice, as in metrics.jsonl."""
        self._tell(lambda run: run.log({**values, "step": step}))

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], step: int) -> None:
        """Send a table, of samples for example."""
        data = [list(row) for row in rows]

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=data), "step": step})

        self._tell(log)

    def alert(self, title: str, text: str, level: Level = "WARN") -> None:
        """Send an alert, which W&B forwards by mail or Slack."""
        self._tell(lambda run: run.alert(title=title[:63], text=text, level=level))

    def alert_and_wait(self, title: str, text: str) -> None:
        """Send an alert of a process that is about to leave, and wait a little until it is sent."""
        self.alert(title, text, "ERROR")
        self.flush(LAST_WORDS_SECONDS)

    def flush(self, seconds: float) -> None:
        """Wait until W&B has received everything, at most this long; for a process that is about to leave."""
        if self._thread is not None:
            self._thread.settle(time.monotonic() + seconds)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Close the W&B run; a second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.end(lambda run: run.summary.update(dict(summary)), exit_code)

    def _tell(self, note: Note) -> None:
        if self._thread is not None:
            self._thread.put(note)


def describe_details(details: Mapping[str, Any]) -> str:
    """The details of an event as one line for people."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in details.items())


def remembered_run_id(events: Iterable[Mapping[str, Any]]) -> str | None:
    """The id of the W&B run that the last start of this run had, also one that was killed before its first save."""
    known = [event["wandb_run_id"] for event in events if event.get("wandb_run_id")]
    return known[-1] if known else None


def wandb_mode(setting: str) -> Mode:
    """The W&B mode: `auto` is online with a key or a login, else offline."""
    chosen = os.environ.get("WANDB_MODE", "auto") if setting == "auto" else setting
    if chosen in get_args(Mode):
        return cast(Mode, chosen)
    return "online" if os.environ.get("WANDB_API_KEY") or _logged_in() else "offline"


def _logged_in() -> bool:
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return bool(netrc.netrc(str(path)).authenticators("api.wandb.ai"))
    except (OSError, netrc.NetrcParseError):
        return False
