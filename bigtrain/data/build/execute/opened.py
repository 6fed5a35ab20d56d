"""Which executor `--on` names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from bigtrain.base import BigtrainError
from bigtrain.data.build.execute.executor import BuildExecutor, FailurePolicy
from bigtrain.data.build.execute.inline import Inline
from bigtrain.data.build.execute.processes import Processes
from bigtrain.data.format.work_folder import WorkFolder


def open_executor(
    on: str, count: int, folder: WorkFolder, policy: FailurePolicy, report: Callable[[str], None]
) -> BuildExecutor:
    """The executor that `--on` names.

    Args:
        on: `inline`, `processes`, `ray` (the cluster of RAY_ADDRESS, or one that is started here), `ray://HOST:PORT`,
            or `HOST:PORT`.
        count: processes of this machine, or cores of a Ray cluster that is started here.
        folder: all workers see it.
        policy: what happens to tasks that fail.
        report: called with lines for the user.

    Raises:
        BigtrainError: `on` names none, or Ray cannot be used.
    """
    if on == "inline":
        return Inline(policy, folder)
    if on == "processes":
        return Processes(count, policy, folder)
    if on == "ray" or re.fullmatch(r"(ray://)?[^/\s]+:\d+", on):
        from bigtrain.data.build.execute.ray_cluster import RayCluster

        address = os.environ.get("RAY_ADDRESS") if on == "ray" else on
        return RayCluster(address or None, count, folder, policy, report)
    raise BigtrainError(
        "--on names nothing that a build can run on",
        found=on,
        wanted="inline, processes, ray, ray://HOST:PORT or HOST:PORT",
        fix="--on ray takes the cluster of RAY_ADDRESS, or starts one on this machine",
    )
