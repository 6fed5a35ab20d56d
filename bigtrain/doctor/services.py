"""What a run needs from others: its data, and the server that tracks it."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from bigtrain.base.format import quantity
from bigtrain.data.run_data import RunData
from bigtrain.data.store.spot_check import spot_check
from bigtrain.doctor.check import Measured, Patient
from bigtrain.doctor.finding import Finding
from bigtrain.observe.tracking import wandb_mode

DATA_SECONDS = 5.0
TRACKER_SECONDS = 5.0
WANDB = "https://api.wandb.ai"


def measure_data(patient: Patient) -> dict[str, Any]:
    """Open what the run trains on, and read some blocks of it; others on each host.

    Raises:
        BigtrainError: it is not built, was built otherwise, is used up before the run ends, or cannot be read.
    """
    assert patient.settings is not None
    data = RunData.open(patient.settings)
    check = spot_check([*data.datasets, *data.held_out], seconds=DATA_SECONDS, seed=patient.meeting.rank)
    tokens = sum(dataset.tokens for dataset in data.datasets)
    return {**vars(check), "tokens": tokens, "sources": len(data.train), "plan_id": data.plan.plan_id}


def judge_data(measured: Measured, patient: Patient) -> Iterator[Finding]:
    """No bad block, and the same plan on all hosts."""
    plans: dict[str, list[int]] = {}
    for rank, each in measured.items():
        plans.setdefault(each["plan_id"], []).append(rank)
        for problem in each["problems"][:3]:
            yield Finding(
                "data",
                "failed",
                f"{problem} (seen by {patient.meeting.who([rank])})",
                "the blocks that were written",
                "bigtrain data verify DIR reads all; restore the file, or remove its source's folder and build again",
            )
    if len(plans) > 1:
        parts = "; ".join(f"{plan[:12]} on {patient.meeting.who(ranks)}" for plan, ranks in plans.items())
        yield Finding(
            "data",
            "failed",
            f"the hosts would train on other samples: plan {parts}",
            "the same data in the same place on all hosts",
            "build the data once on a shared file system, or copy data.dir to all hosts anew",
        )
    first = measured[min(measured)]
    read = sum(each["blocks"] for each in measured.values())
    yield Finding(
        "data",
        "ok",
        f"{quantity(first['tokens'])} tokens of {first['sources']} source(s), {read} blocks read and right (of "
        f"{first['of_blocks']} on {len(measured)} host(s))",
    )


def measure_tracker(patient: Patient) -> dict[str, Any]:
    """Whether W&B's server answers, whatever it says."""
    assert patient.settings is not None
    mode = wandb_mode(patient.settings.tracking.wandb)
    if mode != "online":
        return {"mode": mode}
    url = os.environ.get("WANDB_BASE_URL", WANDB).rstrip("/")
    answer: dict[str, Any] = {"mode": mode, "url": url}
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=TRACKER_SECONDS) as response:
            return {**answer, "status": response.status}
    except urllib.error.HTTPError as error:  # somebody is there
        return {**answer, "status": error.code}
    except (OSError, ValueError) as error:
        return {**answer, "error": str(getattr(error, "reason", error))}


def judge_tracker(measured: Measured, patient: Patient) -> Iterator[Finding]:
    """A tracker that is away is a warning: the run goes on without it."""
    for each in measured.values():
        if each["mode"] == "disabled":
            yield Finding("tracker", "ok", "off (tracking.wandb)")
        elif each["mode"] == "offline":
            yield Finding("tracker", "ok", "offline: RUN/wandb is uploaded later by `wandb sync`")
        elif "error" in each or each["status"] >= 500:
            yield Finding(
                "tracker",
                "warning",
                f"{each['url']} cannot be reached: {each.get('error') or 'status ' + str(each['status'])}",
                f"an answer within {TRACKER_SECONDS:g} s",
                "training goes on without it and metrics.jsonl has everything; or set tracking.wandb: offline, a proxy "
                "(HTTPS_PROXY), or WANDB_BASE_URL",
            )
        else:
            yield Finding("tracker", "ok", f"{each['url']} answers")
