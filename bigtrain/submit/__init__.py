"""Submitting a run, or a build of its data, to a cluster: what `bigtrain submit` hands to Slurm or Kubernetes.

`job` is what is to be started and whether it can work; `slurm` makes it a command for sbatch, `kubernetes` a manifest
for kubectl; `slurm_array` submits many small runs at once. What runs on the nodes then are the scripts in launch/.
"""

from bigtrain.submit.job import Job, comment_on
from bigtrain.submit.kubernetes import KubernetesOptions, apply, as_yaml, manifests
from bigtrain.submit.slurm import SlurmOptions, commands, log_name, submit
from bigtrain.submit.slurm_array import ArrayOptions, queued_jobs, submit_array

__all__ = [
    "ArrayOptions",
    "Job",
    "KubernetesOptions",
    "SlurmOptions",
    "apply",
    "as_yaml",
    "commands",
    "comment_on",
    "log_name",
    "manifests",
    "queued_jobs",
    "submit",
    "submit_array",
]
