"""bigtrain submit slurm|kubernetes."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bigtrain.cli.printing import JsonOption, OverridesArgument, print_json, say
from bigtrain.cli.results import KubernetesSubmission, SlurmSubmission

app = typer.Typer(help="Train on a cluster: hand a configuration to Slurm or Kubernetes.", no_args_is_help=True)


class Kind(StrEnum):
    """What does the work in the cluster."""

    job = "job"
    trainjob = "trainjob"


Config = Annotated[Path, typer.Argument(help="A YAML configuration.")]
Nodes = Annotated[int, typer.Option(min=1, help="How many nodes.")]
Gpus = Annotated[int | None, typer.Option(min=1, help="GPUs of a node; as many ranks are started there.")]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Ranks on a node. Default: one a GPU; 2 where --gpus-per-node is not given.")
]
MinNodes = Annotated[int | None, typer.Option(min=1, help="Go on with so few when nodes are lost.")]
MaxRestarts = Annotated[
    int | None, typer.Option(min=0, help="How often ranks that died are started again in place, without progress.")
]
Doctor = Annotated[bool, typer.Option("--doctor/--no-doctor", help="Run `bigtrain doctor` on the nodes first.")]
Check = Annotated[bool, typer.Option("--check/--no-check", help="Make sure here that the data are built.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted, and do nothing.")]


@app.command()
def slurm(
    config: Config,
    overrides: OverridesArgument = None,
    nodes: Nodes = 1,
    gpus_per_node: Gpus = None,
    cpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="CPUs of a node. Default: whole nodes, with all their memory.")
    ] = None,
    processes_per_node: Processes = None,
    time: Annotated[str | None, typer.Option(help="The walltime, as Slurm writes it: 4:00:00, 2-0.")] = None,
    partition: Annotated[str | None, typer.Option()] = None,
    account: Annotated[str | None, typer.Option()] = None,
    qos: Annotated[str | None, typer.Option()] = None,
    exclude: Annotated[str | None, typer.Option(help="Bad nodes, as Slurm lists them: n[1-3],n7.")] = None,
    chain: Annotated[int, typer.Option(min=1, help="Submit so many jobs, each to go on where one has ended.")] = 1,
    array: Annotated[int | None, typer.Option(min=1, help="The same, as an array of jobs.")] = None,
    signal_lead: Annotated[
        int, typer.Option(min=1, help="Seconds before the end of the walltime at which to commit and leave.")
    ] = 180,
    min_nodes: MinNodes = None,
    max_restarts: MaxRestarts = None,
    max_requeues: Annotated[
        int | None,
        typer.Option(min=0, help="How often the job goes back into the queue. Default: 100; 0 in a chain or array."),
    ] = None,
    container: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Run in an image: FILE.sif by apptainer, others by pyxis.")
    ] = None,
    mounts: Annotated[
        str | None, typer.Option(help="What the container sees beside the working directory: A:B,C.")
    ] = None,
    sbatch: Annotated[str, typer.Option(help="More options of sbatch, as one string.")] = "",
    doctor: Doctor = True,
    check: Check = True,
    dry_run: DryRun = False,
    as_json: JsonOption = False,
) -> None:
    """Submit to Slurm. The job resumes by itself: after preemption, at the end of its walltime, when a node is lost."""
    from bigtrain.submit.job import Job
    from bigtrain.submit.slurm import SlurmOptions, commands, submit

    processes = processes_per_node or gpus_per_node or 2
    job = Job.of(config, overrides or [], nodes=nodes, processes_per_node=processes, min_nodes=min_nodes)
    if check:
        job.require_data()
    options = SlurmOptions(
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        time=time,
        partition=partition,
        account=account,
        qos=qos,
        exclude=exclude,
        chain=chain,
        array=array,
        signal_lead=signal_lead,
        max_restarts=max_restarts,
        max_requeues=max_requeues,
        container=container,
        mounts=mounts,
        doctor=doctor,
        extra=shlex.split(sbatch),
    )
    made = commands(job, options)
    numbers = [] if dry_run else submit(job, made)
    if as_json:
        print_json(SlurmSubmission(numbers, made))
    elif dry_run:
        for command in made:
            typer.echo(shlex.join(command))
    else:
        for number in numbers:
            typer.echo(number)
        say(f"follow it with: tail -F {job.settings.run_dir}/logs/slurm-{numbers[0]}.out")


@app.command()
def kubernetes(
    config: Config,
    image: Annotated[str, typer.Option(help="The image, made from docker/Dockerfile.")],
    claim: Annotated[
        str, typer.Option(help="The PersistentVolumeClaim that run directory and data lie on; many may write.")
    ],
    overrides: OverridesArgument = None,
    nodes: Nodes = 1,
    kind: Annotated[Kind, typer.Option(help="Plain Kubernetes, or Kubeflow Trainer.")] = Kind.job,
    name: Annotated[str | None, typer.Option(help="Default: after the run directory.")] = None,
    namespace: Annotated[str | None, typer.Option()] = None,
    mount: Annotated[str, typer.Option(help="Where the claim is mounted; relative paths begin there.")] = "/workspace",
    gpus_per_node: Gpus = None,
    cpus_per_node: Annotated[int | None, typer.Option(min=1, help="CPUs of a node.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of a node: 512Gi.")] = None,
    shared_memory: Annotated[str, typer.Option(help="Of it, for /dev/shm.")] = "16Gi",
    rdma: Annotated[str | None, typer.Option(help="The resource of the RDMA device plugin: rdma/ib.")] = None,
    host_network: Annotated[bool, typer.Option("--host-network", help="Use the network of the machines.")] = False,
    grace: Annotated[int, typer.Option(min=1, help="Seconds for the last step and its checkpoint.")] = 300,
    processes_per_node: Processes = None,
    min_nodes: MinNodes = None,
    max_restarts: MaxRestarts = None,
    doctor: Doctor = True,
    check: Check = False,
    dry_run: DryRun = False,
    as_json: JsonOption = False,
) -> None:
    """Submit to Kubernetes. Pods that are preempted, drained or crash are replaced, and the run resumes by itself."""
    from bigtrain.submit.job import Job
    from bigtrain.submit.kubernetes import KubernetesOptions, apply, as_yaml, manifests

    processes = processes_per_node or gpus_per_node or 2
    job = Job.of(config, overrides or [], nodes=nodes, processes_per_node=processes, min_nodes=min_nodes)
    if check:
        job.require_data()
    options = KubernetesOptions(
        image=image,
        claim=claim,
        kind=kind.value,
        name=name,
        namespace=namespace,
        mount=mount,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        memory=memory,
        shared_memory=shared_memory,
        rdma=rdma,
        host_network=host_network,
        grace=grace,
        max_restarts=max_restarts,
        doctor=doctor,
    )
    made = manifests(job, options)
    said = "" if dry_run else apply(made)
    if as_json:
        print_json(KubernetesSubmission(made, said))
    else:
        typer.echo(as_yaml(made) if dry_run else said, nl=False)
