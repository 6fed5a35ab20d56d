"""A job for Kubernetes: the manifests in launch/kubernetes, with what is particular about this job put in.

What users copy and what is submitted is so the same text. The configuration travels as a ConfigMap.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from bigtrain.base import BigtrainError
from bigtrain.submit.job import Job, run_program, scripts

Kind = Literal["job", "trainjob", "rayjob"]
Manifest = dict[str, Any]

FORECAST = "bigtrain-forecast"
"""The annotation of a job with what the planner expects of it."""
JOBS = ("Job", "TrainJob", "RayJob")
CONFIG_FOLDER = "/etc/bigtrain"
IN_IMAGE = "/opt/bigtrain/launch/node.sh"
LONGEST_NAME = 52
"""Characters: pods are called NAME-INDEX, and a label of a host name has 63."""
LONGEST_CONFIG = 1_000_000
"""Bytes of a ConfigMap."""


@dataclass(frozen=True)
class KubernetesOptions:
    """What the cluster has to know beside the job itself."""

    image: str
    claim: str
    """The PersistentVolumeClaim that run directory and data lie on."""
    kind: Kind = "job"
    """`job`: plain Kubernetes. `trainjob`: Kubeflow Trainer. `rayjob`: KubeRay, which is what builds data."""
    name: str | None = None
    namespace: str | None = None
    mount: str = "/workspace"
    """Where the claim is mounted; relative paths of the configuration begin there."""
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    memory: str | None = None
    """Of a node, as Kubernetes writes it: 512Gi."""
    shared_memory: str = "16Gi"
    rdma: str | None = None
    """The resource of the RDMA device plugin, for example rdma/ib."""
    host_network: bool = False
    """Use the network of the machines themselves."""
    grace: int = 300
    """Seconds from the request to stop to the end of the pod: a step and a save have to fit."""
    max_restarts: int | None = None
    doctor: bool = True
    comment: str | None = None
    """What the cluster shows of the job, as an annotation."""


def manifests(job: Job, options: KubernetesOptions) -> list[Manifest]:
    """What to hand to `kubectl apply`.

    Raises:
        BigtrainError: it cannot work, or the launch scripts are not there.
    """
    name = options.name or _name_of(job, options)
    _require_sense(job, name)
    template = scripts() / "kubernetes" / f"{options.kind}.yaml"
    made: list[Manifest] = [_config_map(job, name)]
    for document in yaml.safe_load_all(template.read_text(encoding="utf-8")):
        made.append(_renamed(document, document["metadata"]["name"], name))
    for manifest in made:
        if options.namespace is not None:
            manifest["metadata"]["namespace"] = options.namespace
        if options.comment is not None and manifest["kind"] in JOBS:
            manifest["metadata"].setdefault("annotations", {})[FORECAST] = options.comment
        if manifest["kind"] in _FILL:
            _FILL[manifest["kind"]](manifest["spec"], job, options, name)
    return made


def as_yaml(manifests: list[Manifest]) -> str:
    """The manifests as one stream of documents."""
    return yaml.safe_dump_all(manifests, sort_keys=False, explicit_start=True, width=120)


def apply(manifests: list[Manifest]) -> str:
    """Hand the manifests to kubectl. Returns what it says.

    Raises:
        BigtrainError: there is no kubectl here, or the cluster refuses.
    """
    missing = BigtrainError(
        "there is no kubectl on this machine",
        wanted="a machine that the cluster knows",
        fix="submit from there; --dry-run prints the manifests anywhere",
    )
    command = ["kubectl", "apply", "-f", "-"]
    status, said, complaint = run_program(command, stdin=as_yaml(manifests), missing=missing)
    if status:
        raise BigtrainError("the cluster has refused the job", found=complaint.strip(), fix="look at --dry-run")
    return said


def as_name(text: str) -> str:
    """A name that Kubernetes accepts for each of the objects, made from any text. A Service's starts with a letter."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "bigtrain"
    if not name[0].isalpha():
        name = f"run-{name}"
    return name[:LONGEST_NAME].strip("-")


def _name_of(job: Job, options: KubernetesOptions) -> str:
    """The job's name: that of its run or data directory, and a mark that other directories of this name do not have.

    A run that is submitted again has the same name, and the cluster refuses to run it twice at a time.
    """
    folder = job.settings.data.dir if job.builds_data else job.settings.run_dir
    where = "\n".join((options.claim, options.mount, str(folder)))
    mark = hashlib.sha256(where.encode(errors="surrogateescape")).hexdigest()[:6]
    return f"{as_name(job.name)[: LONGEST_NAME - len(mark) - 1].strip('-')}-{mark}"


def _config_name(job: Job, name: str) -> str:
    """The name of the ConfigMap: another configuration has another, so no submission replaces that of a running job."""
    return f"{name}-{hashlib.sha256(job.config.read_bytes()).hexdigest()[:10]}"


def _config_map(job: Job, name: str) -> Manifest:
    text = job.config.read_text(encoding="utf-8")
    if len(text.encode()) > LONGEST_CONFIG:
        raise BigtrainError(
            f"{job.config} is too long for a ConfigMap",
            found=f"{len(text.encode()):,} bytes",
            wanted=f"at most {LONGEST_CONFIG:,}",
        )
    metadata = {"name": _config_name(job, name), "labels": {"app.kubernetes.io/name": "bigtrain"}}
    data = {"config.yaml": text}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": data}


def _renamed(value: Any, old: str, new: str) -> Any:
    """The same, with the template's name replaced wherever it is a whole text."""
    if isinstance(value, dict):
        return {key: _renamed(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, old, new) for inner in value]
    return new if value == old else value


def _arguments(job: Job, options: KubernetesOptions, name: str, meeting: list[str]) -> list[str]:
    return [
        IN_IMAGE,
        *meeting,
        f"--job={name}",
        f"--processes={job.processes_per_node}",
        *([] if options.max_restarts is None else [f"--max-restarts={options.max_restarts}"]),
        *(["--doctor"] if options.doctor else []),
        "train",
        f"{CONFIG_FOLDER}/config.yaml",
        *_escaped(job.overrides),
    ]


def _escaped(overrides: Sequence[str]) -> list[str]:
    """Arguments in which Kubernetes replaces nothing: it would replace $(VARIABLE)."""
    return [override.replace("$", "$$") for override in overrides]


def _resources(options: KubernetesOptions) -> Manifest:
    given = {
        "nvidia.com/gpu": options.gpus_per_node,
        "cpu": options.cpus_per_node,
        "memory": options.memory,
        options.rdma or "": 1 if options.rdma else None,
    }
    return {"limits": {key: value for key, value in given.items() if value is not None}}


def _nodes(job: Job) -> str:
    return f"{job.min_nodes}:{job.nodes}" if job.min_nodes is not None else str(job.nodes)


def _fill_pod(pod: Manifest, job: Job, options: KubernetesOptions, name: str) -> Manifest:
    """Put in what both kinds of job have in common. Returns the container."""
    container: Manifest = pod["containers"][0]
    container["image"] = options.image
    container["workingDir"] = options.mount
    pod["terminationGracePeriodSeconds"] = options.grace
    if options.host_network:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if options.rdma:  # pinned memory
        container["securityContext"]["capabilities"]["add"] = ["IPC_LOCK"]
    for mount in container["volumeMounts"]:
        if mount["name"] == "workspace":
            mount["mountPath"] = options.mount
    for volume in pod["volumes"]:
        if volume["name"] == "workspace":
            volume["persistentVolumeClaim"]["claimName"] = options.claim
        if volume["name"] == "shm":
            volume["emptyDir"]["sizeLimit"] = options.shared_memory
    container["volumeMounts"].append({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True})
    pod["volumes"].append({"name": "config", "configMap": {"name": _config_name(job, name)}})
    return container


def _fill_job(spec: Manifest, job: Job, options: KubernetesOptions, name: str) -> None:
    spec |= {"completions": job.nodes, "parallelism": job.nodes}
    container = _fill_pod(spec["template"]["spec"], job, options, name)
    meeting = [f"--nodes={_nodes(job)}", "--node-rank=$(JOB_COMPLETION_INDEX)", f"--rendezvous={name}-0.{name}"]
    container["args"] = _arguments(job, options, name, meeting)
    container["resources"] = _resources(options)


def _fill_runtime(spec: Manifest, job: Job, options: KubernetesOptions, name: str) -> None:
    spec["mlPolicy"]["numNodes"] = job.nodes
    for replicated in spec["template"]["spec"]["replicatedJobs"]:
        _fill_pod(replicated["template"]["spec"]["template"]["spec"], job, options, name)


def _fill_train_job(spec: Manifest, job: Job, options: KubernetesOptions, name: str) -> None:
    meeting = [f"--nodes={_nodes(job)}"] if job.min_nodes is not None else []  # else Trainer says it
    spec["trainer"] |= {
        "image": options.image,
        "numNodes": job.nodes,
        "args": _arguments(job, options, name, meeting),
        "resourcesPerNode": _resources(options),
    }


def _fill_ray_job(spec: Manifest, job: Job, options: KubernetesOptions, name: str) -> None:
    command = ["bigtrain", "data", "build", "--on", "ray", f"{CONFIG_FOLDER}/config.yaml"]
    spec["entrypoint"] = shlex.join([*command, *_escaped(job.overrides)])
    cluster = spec["rayClusterSpec"]
    workers = cluster["workerGroupSpecs"][0]
    workers |= dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), job.nodes - 1)
    cluster["workerGroupSpecs"] = [workers] if job.nodes > 1 else []
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        group["template"] = deepcopy(group["template"])  # the file has it once
        container = _fill_pod(group["template"]["spec"], job, options, name)
        container["resources"] = _resources(options)


_FILL = {"Job": _fill_job, "RayJob": _fill_ray_job, "TrainingRuntime": _fill_runtime, "TrainJob": _fill_train_job}


def _require_sense(job: Job, name: str) -> None:
    if name != as_name(name):
        raise BigtrainError(
            "--name is no name for Kubernetes",
            found=name,
            wanted=f"small letters, digits and dashes, a letter first, at most {LONGEST_NAME}",
            fix=f"--name {as_name(name)}",
        )
    if job.settings.train.stop_after is not None and not job.builds_data:
        raise BigtrainError(
            "Kubernetes would start a run that has stopped after train.stop_after again and again",
            found=f"train.stop_after {job.settings.train.stop_after}",
            fix="remove train.stop_after",
        )
