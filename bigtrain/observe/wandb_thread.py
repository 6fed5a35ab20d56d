"""The thread that talks to W&B, so that nobody else has to wait for it."""

from __future__ import annotations

import http.client
import logging
import os
import queue
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import psutil

from bigtrain.base.exit_status import DONE, STOPPED
from bigtrain.base.file_names import bare_name
from bigtrain.config import Settings
from bigtrain.config.secrets import hide_secrets, without_secrets

logger = logging.getLogger(__name__)

Note = Callable[[Any], object]
"""What is to be done with the W&B run."""
LONGEST_LINE = 10_000
"""Notes that may wait; more would be memory that grows for as long as W&B does not answer."""
GRACE_SECONDS = 10.0
"""What W&B may take at the end on this machine alone, beside what its server may take."""


class WandbThread(threading.Thread):
    """Starts a W&B run, hands it notes in order, and ends it."""

    def __init__(self, settings: Settings, mode: Literal["online", "offline"], run_id: str) -> None:
        super().__init__(name="wandb", daemon=True)
        self._settings, self._mode, self._run_id = settings, mode, run_id
        self._line: queue.Queue[Note] = queue.Queue(LONGEST_LINE)
        self._dropped = 0
        self._off = threading.Event()
        self._ending = threading.Event()
        self._last: Note = lambda run: None
        self._exit_code = 0
        self._folder: Path | None = None

    def put(self, note: Note) -> None:
        """Put a note at the end of the line; where that is full, it is dropped."""
        if self._off.is_set():
            return
        try:
            self._line.put_nowait(note)
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                logger.warning("W&B is too slow for this run: it misses some steps. metrics.jsonl has everything.")

    def settle(self, deadline: float) -> None:
        """Wait until the line is empty, but not beyond a time of the monotonic clock."""
        while self._line.unfinished_tasks and self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)

    def end(self, last: Note, exit_code: int) -> None:
        """Do what is in line, then `last`, then end the W&B run; give up after a while."""
        self._last, self._exit_code = last, exit_code
        self._ending.set()
        seconds = GRACE_SECONDS
        if exit_code in (DONE, STOPPED):  # whoever starts a run anew that has failed must not be kept waiting
            seconds += self._settings.tracking.patience_seconds
        self.join(seconds)
        if self.is_alive():
            self._off.set()
            end_service()
            self._warn(f"did not end within {seconds:.0f} s")

    def run(self) -> None:
        """The life of the thread."""
        try:
            run = self._open()
            self._folder = Path(run.dir).parent
            while not (self._ending.is_set() and self._line.empty()):
                try:
                    note = self._line.get(timeout=0.1)
                except queue.Empty:
                    continue
                try:
                    note(run)
                finally:
                    self._line.task_done()
            self._last(run)
            began = time.monotonic()
            run.finish(exit_code=self._exit_code)
            if self._mode == "online" and time.monotonic() - began >= self._settings.tracking.patience_seconds:
                self._warn("did not take everything in time")
        except Exception as error:  # whatever W&B raises, training has nothing to do with it
            self._warn(f"failed: {error}")
        finally:
            self._off.set()

    def _open(self) -> Any:
        bare_name(self._run_id, "the record of this run's W&B id")  # W&B calls a folder by it
        if self._mode == "online":
            problem = server_problem(self._settings.tracking.patience_seconds / 3)
            try:
                if problem is None:
                    return self._init("online")
            except Exception as error:
                problem = str(error)
            logger.warning(
                f"W&B does not answer ({without_secrets(problem)}): this start is tracked offline. "
                f"To send it later: wandb sync {self._settings.run_dir}/wandb/offline-run-*-{self._run_id}"
            )
            self._mode = "offline"
        return self._init("offline")

    def _init(self, mode: Literal["online", "offline"]) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        known = wandb.Settings.model_fields
        wanted = {
            "console": "off",
            "disable_git": True,  # remotes are nobody's business
            "init_timeout": self._settings.tracking.patience_seconds,
            "finish_timeout": self._settings.tracking.patience_seconds,
            # The command line is part of the metadata; a secret in it would be, too.
            "x_disable_meta": any(without_secrets(argument) != argument for argument in sys.argv),
        }
        run = wandb.init(
            project=self._settings.tracking.project,
            entity=self._settings.tracking.entity,
            name=self._settings.tracking.name or self._settings.run_dir.name,
            id=self._run_id,
            resume="allow",
            mode=mode,
            dir=self._settings.run_dir,
            config=hide_secrets(self._settings.model_dump(mode="json")),
            settings=wandb.Settings(**{name: value for name, value in wanted.items() if name in known}),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")  # W&B's own count of rows never goes back, ours does
        return run

    def _warn(self, what: str) -> None:
        where = self._folder or f"{self._settings.run_dir}/wandb"
        logger.warning(
            f"W&B {without_secrets(what)}. Training has not waited for it; metrics.jsonl has everything, and what W&B "
            f"was told is in {where}, for `wandb sync`."
        )


def server_problem(seconds: float) -> str | None:
    """What is wrong with the W&B server; None where it answers.

    W&B itself tries again for a minute and a half before it says so. Trouble with certificates is for W&B to judge.
    """
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")
    try:
        with urllib.request.urlopen(f"{url}/graphql", timeout=max(1.0, seconds)):
            return None
    except urllib.error.HTTPError as answer:
        return f"{url} answers with status {answer.code}" if answer.code >= 500 else None
    except TimeoutError:
        return f"{url} accepts connections and does not answer"
    except urllib.error.URLError as error:
        return f"{url}: {error.reason}" if isinstance(error.reason, OSError) and _is_network(error.reason) else None
    except (OSError, http.client.HTTPException) as error:
        return f"{url}: {error}"
    except ValueError as error:
        return f"WANDB_BASE_URL {url}: {error}"


def _is_network(reason: OSError) -> bool:
    import ssl

    return not isinstance(reason, ssl.SSLError)


def end_service() -> None:
    """End W&B's own process, which this one has started and which would else try on for as long as it can."""
    for child in psutil.Process().children():
        try:
            if "wandb-core" in child.name() or any("wandb-core" in part for part in child.cmdline()[:1]):
                child.terminate()
        except psutil.Error:
            continue
