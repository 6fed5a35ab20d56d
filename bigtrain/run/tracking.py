"""Weights & Biases, kept at arm's length: whatever happens there, training goes on.

Only rank 0 tracks. Without a key the run is written to RUN/wandb and `wandb sync` uploads it later.
"""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from pathlib import Path
from typing import Any, Literal, cast, get_args

from bigtrain.config import Settings

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]


class Tracker:
    """One W&B run over all restarts; does nothing where tracking is off or has failed."""

    def __init__(self) -> None:
        """A tracker that does nothing."""
        self.run_id: str | None = None
        self._run: Any = None

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
            tracker._open(settings, mode)
        return tracker

    def _open(self, settings: Settings, mode: Mode) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb

            self.run_id = self.run_id or secrets.token_hex(4)
            self._run = wandb.init(
                project=settings.tracking.project,
                entity=settings.tracking.entity,
                name=settings.tracking.name or settings.run_dir.name,
                id=self.run_id,
                resume="allow",
                mode=mode,
                dir=settings.run_dir,
                config=settings.model_dump(mode="json"),
                # The handlers of stop.py stay the only ones, and git remotes are nobody's business.
                settings=wandb.Settings(console="off", disable_git=True, init_timeout=30),
            )
        except Exception as error:
            self._give_up("start", error)

    def describe(self, facts: dict[str, Any]) -> None:
        """Add to the W&B config what is no setting."""
        if self._run is not None:
            try:
                self._run.config.update(facts, allow_val_change=True)
            except Exception as error:
                self._give_up("describe the run", error)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Send one step's numbers."""
        if self._run is not None:
            try:
                self._run.log(values, step=step)
            except Exception as error:
                self._give_up("log", error)

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Close the W&B run."""
        if self._run is not None:
            try:
                self._run.summary.update(summary)
                self._run.finish(exit_code=exit_code)
            except Exception as error:
                self._give_up("finish", error)
            self._run = None

    def _give_up(self, action: str, error: Exception) -> None:
        logger.warning(
            "W&B could not %s: %s. Training goes on without it; metrics.jsonl has everything.", action, error
        )
        self._run = None


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
