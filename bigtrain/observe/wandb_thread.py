"""The thread that uses W&B, so that no other thread has to wait for it."""

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

from bigtrain.base import DONE, STOPPED, bare_name
from bigtrain.config import Settings, hide_secrets, without_secrets
from bigtrain.observe.wandb_choice import wandb_folder, wandb_names, wandb_server

logger = logging.getLogger(__name__)

WandbAction = Callable[[Any], object]
"""Called with the W&B run."""
QUEUE_LENGTH = 10_000
"""Actions that may wait. Without a limit, memory would grow for as long as W&B does not answer."""
GRACE_SECONDS = 10.0
"""Seconds that W&B may take at the end on this machine, on top of what its server may take."""


class WandbThread(threading.Thread):
    """Starts a W&B run, carries out actions on it in order, and ends it."""

    def __init__(self, settings: Settings, mode: Literal["online", "shared", "offline"], run_id: str) -> None:
        super().__init__(name="wandb", daemon=True)
        self._settings, self._mode, self._run_id = settings, mode, run_id
        self._queue: queue.Queue[WandbAction] = queue.Queue(QUEUE_LENGTH)
        self._dropped = 0
        self._off = threading.Event()
        self._ending = threading.Event()
        self._last: WandbAction = lambda run: None
        self._exit_code = 0
        self._folder: Path | None = None

    def put(self, action: WandbAction) -> None:
        """Add an action to the queue; it is dropped where the queue is full."""
        if self._off.is_set():
            return
        try:
            self._queue.put_nowait(action)
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                logger.warning("W&B is too slow for this run: it misses some steps. metrics.jsonl has everything.")

    def wait_until_empty(self, deadline: float) -> None:
        """Wait until all actions are carried out, until a time of the monotonic clock at most."""
        while self._queue.unfinished_tasks and self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)

    def end(self, last: WandbAction, exit_code: int) -> None:
        """Carry out the queue, then `last`, then end the W&B run. After a time limit the thread is given up."""
        self._last, self._exit_code = last, exit_code
        self._ending.set()
        seconds = GRACE_SECONDS
        if exit_code in (DONE, STOPPED):  # a run that has failed is to be started again without delay
            seconds += self._settings.tracking.patience_seconds
        self.join(seconds)
        if self.is_alive():
            self._off.set()
            end_service()
            self._warn(f"did not end within {seconds:.0f} s")

    def run(self) -> None:
        """Open the W&B run, carry out actions until `end` is called, and finish it."""
        try:
            run = self._open()
            self._folder = Path(run.dir).parent
            while not (self._ending.is_set() and self._queue.empty()):
                try:
                    action = self._queue.get(timeout=0.1)
                except queue.Empty:
                    continue
                try:
                    action(run)
                finally:
                    self._queue.task_done()
            self._last(run)
            started = time.monotonic()
            run.finish(exit_code=self._exit_code)
            if self._mode != "offline" and time.monotonic() - started >= self._settings.tracking.patience_seconds:
                self._warn("did not take everything in time")
        except Exception as error:  # no error of W&B may reach the training
            self._warn(f"failed: {error}")
        finally:
            self._off.set()

    def _open(self) -> Any:
        bare_name(self._run_id, "the record of this run's W&B id")  # W&B names a folder after it
        if self._mode != "offline":
            problem = server_problem(self._settings.tracking.patience_seconds / 3)
            try:
                if problem is None:
                    return self._init(self._mode)
            except Exception as error:
                problem = str(error)
            folder = wandb_folder(self._settings.run_dir)
            logger.warning(
                f"W&B does not answer ({without_secrets(problem)}): this start is tracked offline. "
                f"To send it later: wandb sync {folder}/wandb/offline-run-*-{self._run_id}"
            )
            self._mode = "offline"
        return self._init("offline")

    def _init(self, mode: Literal["online", "shared", "offline"]) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ["WANDB_MODE"] = mode  # W&B would refuse a value that it does not know
        import wandb

        names: dict[str, Any] = wandb_names(self._settings.tracking, self._settings.run_dir)
        known = wandb.Settings.model_fields
        wanted = {
            "console": "off",
            "disable_git": True,  # the addresses of remotes are private
            "init_timeout": self._settings.tracking.patience_seconds,
            "finish_timeout": self._settings.tracking.patience_seconds,
            # The metadata hold the command line, and would hold a secret in it.
            "x_disable_meta": any(without_secrets(argument) != argument for argument in sys.argv),
        }
        run = wandb.init(
            **names,
            id=self._run_id,
            resume="allow",
            mode=mode,
            dir=wandb_folder(self._settings.run_dir),
            config=hide_secrets(self._settings.model_dump(mode="json")),
            settings=wandb.Settings(**{name: value for name, value in wanted.items() if name in known}),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")  # W&B's own step never goes back; that of a run may
        return run

    def _warn(self, what: str) -> None:
        where = self._folder or f"{wandb_folder(self._settings.run_dir)}/wandb"
        logger.warning(
            f"W&B {without_secrets(what)}. Training has not waited for it. metrics.jsonl has everything; `wandb sync` "
            f"sends what W&B has received, from {where}"
        )


def server_problem(seconds: float) -> str | None:
    """Return why the W&B server cannot be used; None where it answers within `seconds`.

    W&B itself tries for a minute and a half before it reports that. Problems with certificates are left to W&B.
    """
    url = wandb_server()
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
    """End W&B's own process, a child of this one, which would otherwise try to reach its server without end."""
    for child in psutil.Process().children():
        try:
            if "wandb-core" in child.name() or any("wandb-core" in part for part in child.cmdline()[:1]):
                child.terminate()
        except psutil.Error:
            continue
