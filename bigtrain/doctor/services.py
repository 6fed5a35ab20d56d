"""Checks of what a run uses: its data, and W&B's server."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from bigtrain.base import quantity
from bigtrain.data import RunData, spot_check
from bigtrain.doctor.check import CheckContext, Measured
from bigtrain.doctor.finding import CheckFinding
from bigtrain.observe import wandb_mode, wandb_server

DATA_SECONDS = 5.0
"""Seconds for which blocks of the data are read."""
TRACKER_SECONDS = 5.0
"""Seconds until the server must answer."""
WANDB = "https://api.wandb.ai"


def measure_data(context: CheckContext) -> dict[str, Any]:
    """Open the run's data, and read a sample of its blocks, which is another one on each host.

    Raises:
        BigtrainError: the data are not built, were built otherwise, end before the run does, or cannot be read.
    """
    assert context.settings is not None
    data = RunData.open(context.settings)
    check = spot_check([*data.datasets, *data.held_out_datasets], seconds=DATA_SECONDS, seed=context.meeting.rank)
    tokens = sum(dataset.tokens for dataset in data.datasets)
    return {**vars(check), "tokens": tokens, "sources": len(data.train), "plan_id": data.plan.plan_id}


def assess_data(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Check that no block is corrupted, and that all hosts have the same plan."""
    plans: dict[str, list[int]] = {}
    problems: dict[str, list[int]] = {}
    for rank, each in measured.items():
        plans.setdefault(each["plan_id"], []).append(rank)
        for problem in each["problems"][:3]:
            problems.setdefault(problem, []).append(rank)
    for problem, ranks in problems.items():
        yield CheckFinding(
            "data",
            "failed",
            f"{problem} (read by {context.meeting.label(ranks)})",
            "the blocks that were written",
            "check all blocks with bigtrain data verify DIR; restore the file, or remove its source's folder and "
            "build it again",
        )
    if len(plans) > 1:
        parts = "; ".join(f"{plan[:12]} on {context.meeting.label(ranks)}" for plan, ranks in plans.items())
        yield CheckFinding(
            "data",
            "failed",
            f"the hosts would train on other samples: plan {parts}",
            "the same data in the same place on all hosts",
            "build the data once on a shared file system, or copy data.dir to all hosts again",
        )
    first = measured[min(measured)]
    read = sum(each["blocks"] for each in measured.values())
    yield CheckFinding(
        "data",
        "ok",
        f"{quantity(first['tokens'])} tokens of {first['sources']} source(s), {read} blocks read without an error (of "
        f"{first['of_blocks']} on {len(measured)} host(s))",
    )


def measure_tracker(context: CheckContext) -> dict[str, Any]:
    """Find out whether W&B's server answers, with any status."""
    assert context.settings is not None
    mode = wandb_mode(context.settings.tracking.wandb)
    if mode not in ("online", "shared"):
        return {"mode": mode}
    url = wandb_server()
    answer: dict[str, Any] = {"mode": mode, "url": url}
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=TRACKER_SECONDS) as response:
            return {**answer, "status": response.status}
    except urllib.error.HTTPError as error:  # an answer all the same
        return {**answer, "status": error.code}
    except (OSError, ValueError) as error:
        return {**answer, "error": str(getattr(error, "reason", error))}


def assess_tracker(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Warn where the server does not answer; the run goes on without it."""
    for each in measured.values():
        if each["mode"] == "disabled":
            yield CheckFinding("tracker", "ok", "off (tracking.wandb)")
        elif each["mode"] == "offline":
            yield CheckFinding("tracker", "ok", "offline: RUN/wandb is uploaded later by `wandb sync`")
        elif "error" in each or each["status"] >= 500:
            yield CheckFinding(
                "tracker",
                "warning",
                f"{each['url']} cannot be reached: {each.get('error') or 'status ' + str(each['status'])}",
                f"an answer within {TRACKER_SECONDS:g} s",
                "training goes on without it and metrics.jsonl has everything; or set tracking.wandb: offline, a proxy "
                "(HTTPS_PROXY), or WANDB_BASE_URL",
            )
        else:
            yield CheckFinding("tracker", "ok", f"{each['url']} answers")
