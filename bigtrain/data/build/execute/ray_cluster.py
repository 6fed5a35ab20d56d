"""Runs tasks on the machines of a Ray cluster, or on one that is started here and ends with this process.

This process is Ray's driver. Pieces go to tasks, and small results come back.
All machines see the same work folder, have the same version of bigtrain, and reach the corpora.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from bigtrain.base import BigtrainError, __version__
from bigtrain.data.build.execute.executor import AHEAD_PER_WORKER, BuildExecutor, FailurePolicy, LostError
from bigtrain.data.build.execute.task import Attempt, packed, run_packed, unpacked
from bigtrain.data.format.work_folder import WorkFolder

Item = TypeVar("Item")
Result = TypeVar("Result")

LOOK_SECONDS = 2.0
"""How often the head is looked for, and the cores of the cluster are counted."""
HEAD_SECONDS = 30.0
"""After so long without the head the build stops."""


class RayCluster(BuildExecutor):
    """A Ray cluster.

    Args:
        address: `HOST:PORT` of its head, `ray://HOST:PORT` of its client server; None starts one on this machine.
        count: cores of the one that is started here.
        folder: all machines see it.
        policy: what happens to tasks that fail.
        report: called with lines for the user.

    Raises:
        BigtrainError: Ray is not installed, there is no cluster, or a machine of it lacks the folder or this version.
    """

    def __init__(
        self,
        address: str | None,
        count: int,
        folder: WorkFolder,
        policy: FailurePolicy | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(policy, folder)
        self._folder = folder
        self._ray = _ray()
        _connect(self._ray, address, count)
        try:
            by_client = address is not None and address.startswith("ray://")
            self._head = None if by_client else _head_of(self._ray)
            self._node = None if by_client else self._ray.get_runtime_context().get_node_id()
            self._head_seen = self._looked = time.monotonic()
            self._run = self._ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(_run_there)
            self._cores = self._count_cores()
            nodes = self._check_machines()
            report(f"Ray: {nodes:,} {'machines' if nodes > 1 else 'machine'}, {self._cores:,} cores")
        except BaseException:
            self.close(at_once=True)
            raise

    @property
    def ahead(self) -> int:
        """Enough that no core waits for this process. Machines may come and go."""
        return self._cores * AHEAD_PER_WORKER

    def submit(self, function: Callable[[Item], Result], item: Item, attempt: Attempt) -> _RayTask:
        """Start `function(item)` when a core is free."""
        self.look()
        return _RayTask(self, self._run.remote(str(Path.cwd()), packed(function, item, attempt)))

    def close(self, *, at_once: bool) -> None:
        """Leave the cluster. Its tasks of this process end; a cluster that was started here ends as well."""
        with suppress(Exception):
            self._ray.shutdown()

    def look(self) -> None:
        """Count cores, and look for the head and Ray on this machine, every LOOK_SECONDS.

        Raises:
            BigtrainError: one of them is gone.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if self._head is not None and not _answers(self._head):
            if now - self._head_seen > HEAD_SECONDS:
                raise _lost_head(f"no answer from {':'.join(map(str, self._head))} for {HEAD_SECONDS:.0f} s")
            return
        self._head_seen = now
        self._cores = self._count_cores()
        if self._node is not None and not any(each["NodeID"] == self._node for each in self._alive()):
            raise _lost("Ray has ended on this machine", f"node {self._node} is dead")

    def _alive(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _count_cores(self) -> int:
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def _check_machines(self) -> int:
        """Run a task on each machine, which looks at the folder. Returns how many there are."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        name = f"probes/{uuid.uuid4().hex}"
        self._folder.write(name, b"probe")
        probe = self._ray.remote(num_cpus=0)(_look_around)
        working = (node for node in self._alive() if node["Resources"].get("CPU", 0) >= 1)
        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in working}
        asked = {
            host: probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                self._folder, name
            )
            for node, host in nodes.items()
        }
        for host, answer in asked.items():
            version, sees = self._answer(host, answer)
            if version != __version__:
                raise BigtrainError(
                    f"{host} of the Ray cluster has another version of bigtrain",
                    found=version,
                    wanted=__version__,
                    fix="install the same version on all machines of the cluster",
                )
            if not sees:
                raise BigtrainError(
                    f"{host} of the Ray cluster does not see the folder of the data",
                    found=f"no {name} in {self._folder}",
                    wanted="a folder that all machines share",
                    fix="set data.dir to a folder on a shared disk; data.remote may name a URL for the shards",
                )
        self._folder.remove(name)
        return len(nodes)

    def _answer(self, host: str, answer: Any) -> tuple[str, bool]:
        try:
            version, sees = self._ray.get(answer)
        except Exception as error:
            raise BigtrainError(
                f"{host} of the Ray cluster cannot run tasks of bigtrain",
                found=" ".join(str(error).split())[-300:],
                wanted=f"bigtrain {__version__} in the environment of its workers",
                fix="start Ray on all machines from the environment in which bigtrain is installed",
            ) from None
        return version, sees


class _RayTask:
    """A task that was submitted."""

    def __init__(self, cluster: RayCluster, reference: Any) -> None:
        self._cluster, self._reference = cluster, reference
        self._outcome: bytes | LostError | None = None

    def done(self) -> bool:
        """Whether it has ended."""
        return self._outcome is not None or self._waited(0)

    def result(self) -> Any:
        """Wait for the result. Raises LostError, what the function raised, or BigtrainError for a lost head."""
        while not self.done():
            self._waited(LOOK_SECONDS)
            self._cluster.look()
        if self._outcome is None:
            self._outcome = self._taken()
        if isinstance(self._outcome, LostError):
            raise self._outcome
        return unpacked(self._outcome)

    def cancel(self) -> None:
        """End it."""
        with suppress(Exception):
            self._cluster._ray.cancel(self._reference, force=True)

    def _waited(self, seconds: float) -> bool:
        try:
            return bool(self._cluster._ray.wait([self._reference], timeout=seconds)[0])
        except Exception as error:
            raise _lost_head(_line(error)) from None

    def _taken(self) -> bytes | LostError:
        from ray import exceptions

        try:
            outcome: bytes = self._cluster._ray.get(self._reference)
        except (exceptions.NodeDiedError, exceptions.LocalRayletDiedError, exceptions.ObjectLostError) as error:
            return LostError(_line(error), with_node=True)
        except exceptions.WorkerCrashedError:
            return LostError("its process ended at once, as when it is killed, or a document takes too long")
        except exceptions.RayError as error:
            return LostError(_line(error))
        except Exception as error:
            raise _lost_head(_line(error)) from None
        return outcome


def _run_there(directory: str, task: bytes) -> bytes:
    """Run a task on a machine of the cluster, from the directory of the driver: paths of corpora may be relative."""
    with suppress(OSError):
        os.chdir(directory)
    return run_packed(task)


def _look_around(folder: WorkFolder, name: str) -> tuple[str, bool]:
    """On a machine of the cluster: the version there, and whether it sees a file of the folder."""
    return __version__, folder.exists(name)


def _ray() -> Any:
    if find_spec("ray") is None:
        raise BigtrainError(
            "Ray is not installed",
            found="no package ray",
            wanted="it, to build data on a cluster",
            fix="pip install 'bigtrain[ray]', or build without --on ray",
        )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")  # it ends this process without a message
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    import ray

    return ray


def _connect(ray: Any, address: str | None, count: int) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray._private.worker._worker_logs_enabled = False  # a raylet that dies would print its last lines
    quiet = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    try:
        if address is None:
            ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise BigtrainError(
            "there is no Ray cluster to build on",
            found=_line(error),
            wanted=f"a cluster at {address}" if address else "one that can be started on this machine",
            fix="start one with `ray start --head`, and give its address: --on HOST:6379",
        ) from None


def _head_of(ray: Any) -> tuple[str, int]:
    host, port = ray.get_runtime_context().gcs_address.rsplit(":", 1)
    return host, int(port)


def _answers(head: tuple[str, int]) -> bool:
    try:
        socket.create_connection(head, timeout=LOOK_SECONDS).close()
    except OSError:
        return False
    return True


def _lost_head(found: str) -> BigtrainError:
    return _lost("the head of the Ray cluster is gone", found)


def _lost(what: str, found: str) -> BigtrainError:
    return BigtrainError(
        what,
        found=found,
        wanted="the cluster, until the build is done",
        fix="start the cluster, and the build, again: it goes on with what is finished",
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
