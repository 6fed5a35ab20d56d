"""bigtrain submit slurm|kubernetes: a training, or with --build-data a build of its data."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigtrain.base import BigtrainError
from bigtrain.cli.printing import JsonOption, OverridesArgument, TakesOverrides, echo, print_json, say
from bigtrain.cli.results import KubernetesSubmission, SlurmSubmission

if TYPE_CHECKING:
    from bigtrain.submit import Job

app = typer.Typer(
    help="Train or build data on a cluster: submit a configuration to Slurm or Kubernetes.", no_args_is_help=True
)


class Kind(StrEnum):
    """The kind of object in the cluster."""

    job = "job"
    trainjob = "trainjob"


@dataclass(frozen=True)
class JobOptions:
    """What every cluster is asked."""

    config: Annotated[Path, typer.Argument(help="A YAML configuration.")]
    overrides: OverridesArgument = None
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes.")] = 1
    build_data: Annotated[
        bool, typer.Option("--build-data", help="Build the data, on a Ray cluster of the job's own, and do not train.")
    ] = False
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="GPUs of a node; as many ranks are started there.")
    ] = None
    gpu: Annotated[
        str | None,
        typer.Option(help="Their kind, as `bigtrain plan` knows it: a job that cannot fit into them is refused."),
    ] = None
    fit: Annotated[bool, typer.Option("--fit/--no-fit", help="With --gpu: refuse a job that does not fit.")] = True
    processes_per_node: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks on a node. Default: one a GPU; 2 where --gpus-per-node is not given."),
    ] = None
    min_nodes: Annotated[
        int | None, typer.Option(min=1, help="Go on with as few nodes as this when some are lost.")
    ] = None
    max_restarts: Annotated[
        int | None,
        typer.Option(min=0, help="How often to start ranks again in place after they died, without progress between."),
    ] = None
    doctor: Annotated[bool, typer.Option("--doctor/--no-doctor", help="Run `bigtrain doctor` on the nodes first.")] = (
        True
    )
    check: Annotated[bool, typer.Option("--check/--no-check", help="Check here that the data are built.")] = True
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be submitted.")] = False
    as_json: JsonOption = False

    def job(self, **of_training: object) -> Job:
        """The job, for which the data have been looked for if that was asked.

        Args:
            of_training: more options that mean nothing to a build of data, by their names.

        Raises:
            BigtrainError: a build of data is given options of a training.
        """
        from bigtrain.submit import Job

        if self.build_data:
            self._refuse(**of_training)
            return Job.of_build(self.config, self.overrides or [], nodes=self.nodes)
        job = Job.of(
            self.config,
            self.overrides or [],
            nodes=self.nodes,
            processes_per_node=self.processes_per_node or self.gpus_per_node or 2,
            min_nodes=self.min_nodes,
        )
        if self.check:
            job.require_data()
        return job

    def _refuse(self, **of_training: object) -> None:
        """Raise BigtrainError where an option is given that means nothing to a build of data."""
        names = ("gpus_per_node", "gpu", "processes_per_node", "min_nodes", "max_restarts")
        given = {name: getattr(self, name) for name in names} | of_training
        wrong = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
        if wrong:
            raise BigtrainError(
                "a build of data takes no options of a training",
                found=f"--build-data with {', '.join(wrong)}",
                fix=f"leave out {', '.join(wrong)}; --cpus-per-node says what a node has for the build",
            )

    def comment(self, job: Job) -> str | None:
        """What the planner expects of the job, in a line; None where the kind of GPU is not known.

        Raises:
            BigtrainError: the job does not fit into the GPUs' memory, and that is not allowed.
        """
        from bigtrain.submit import comment_on

        if self.gpu is None:
            return None
        expected = job.forecast(self.gpu)
        if self.fit:
            job.require_memory(expected)
        return comment_on(expected)


def _words(option: str, text: str) -> list[str]:
    """The words of an option that holds several, as a shell would cut it."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BigtrainError(
            f"{option} cannot be cut into words: {error}",
            found=text,
            wanted="options as one would write them in a shell, with each quotation mark closed",
            fix=f"{option} \"--constraint=h100 --comment='a b'\"",
        ) from None


def for_a_cluster(command: Callable[..., None], **defaults: Any) -> Callable[..., None]:
    """A command with the options of `JobOptions`, which it gets as its first argument, before its own.

    Args:
        command: takes a JobOptions, and its own options by name.
        defaults: of options in JobOptions, where they differ for this cluster.
    """
    shared = signature(JobOptions, eval_str=True).parameters
    own = list(signature(command, eval_str=True).parameters.values())[1:]
    offered = [
        option.replace(kind=Parameter.KEYWORD_ONLY, default=defaults.get(name, option.default))
        for name, option in (*shared.items(), *((option.name, option) for option in own))
    ]

    def run(**values: Any) -> None:
        command(JobOptions(**{name: values.pop(name) for name in shared}), **values)

    run.__doc__ = command.__doc__
    run.__annotations__ = {option.name: option.annotation for option in offered}
    run.__signature__ = Signature(offered)  # type: ignore[attr-defined]
    return run


def slurm(
    asked: JobOptions,
    *,
    cpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="CPUs of a node. Default: whole nodes, with all their memory.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="The walltime, as Slurm writes it: 4:00:00, 2-0.")] = None,
    partition: Annotated[str | None, typer.Option()] = None,
    account: Annotated[str | None, typer.Option()] = None,
    qos: Annotated[str | None, typer.Option()] = None,
    exclude: Annotated[str | None, typer.Option(help="Bad nodes, as Slurm lists them: n[1-3],n7.")] = None,
    exclude_failing: Annotated[
        bool,
        typer.Option("--exclude-failing", help="Keep nodes that were found failing out of the requeued job."),
    ] = False,
    chain: Annotated[
        int, typer.Option(min=1, help="How many jobs to submit, each of which goes on where the one before ended.")
    ] = 1,
    array: Annotated[int | None, typer.Option(min=1, help="The same, as an array of jobs.")] = None,
    signal_lead: Annotated[
        int,
        typer.Option(
            min=1, help="Seconds before the end of the walltime at which the run commits a checkpoint and ends."
        ),
    ] = 180,
    max_requeues: Annotated[
        int | None,
        typer.Option(min=0, help="How often the job is requeued. Default: 100; 0 in a chain or array."),
    ] = None,
    container: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Run in an image: FILE.sif by apptainer, others by pyxis.")
    ] = None,
    mounts: Annotated[
        str | None, typer.Option(help="What to mount into the container beside the working directory: A:B,C.")
    ] = None,
    stage_env: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Unpack the environment into this folder of each node (/dev/shm)."),
    ] = None,
    sbatch: Annotated[str, typer.Option(help="More options of sbatch, as one string.")] = "",
) -> None:
    """Submit to Slurm. The job resumes by itself after preemption, the end of its walltime, or the loss of a node."""
    from bigtrain.submit import SlurmOptions, commands, log_name, submit

    job = asked.job(chain=chain > 1, array=array, exclude_failing=exclude_failing, stage_env=stage_env)
    options = SlurmOptions(
        gpus_per_node=asked.gpus_per_node,
        cpus_per_node=cpus_per_node,
        time=time,
        partition=partition,
        account=account,
        qos=qos,
        exclude=exclude,
        exclude_failing=exclude_failing,
        chain=chain,
        array=array,
        signal_lead=signal_lead,
        max_restarts=asked.max_restarts,
        max_requeues=max_requeues,
        container=container,
        mounts=mounts,
        stage_env=stage_env,
        doctor=asked.doctor,
        comment=asked.comment(job),
        extra=_words("--sbatch", sbatch),
    )
    made = commands(job, options)
    numbers = [] if asked.dry_run else submit(job, made)
    if asked.as_json:
        print_json(SlurmSubmission(numbers, made))
    elif asked.dry_run:
        for command in made:
            echo(shlex.join(command))
    else:
        for number in numbers:
            echo(number)
        say(f"follow it with: tail -F {job.settings.run_dir}/logs/{log_name(job, numbers[0])}")


def kubernetes(
    asked: JobOptions,
    *,
    image: Annotated[str, typer.Option(help="The image, made from docker/Dockerfile.")],
    claim: Annotated[
        str, typer.Option(help="The PersistentVolumeClaim that run directory and data lie on; many may write.")
    ],
    kind: Annotated[Kind, typer.Option(help="Plain Kubernetes, or Kubeflow Trainer.")] = Kind.job,
    name: Annotated[str | None, typer.Option(help="Default: after the run directory and the claim.")] = None,
    namespace: Annotated[str | None, typer.Option()] = None,
    mount: Annotated[str, typer.Option(help="Where the claim is mounted; relative paths start there.")] = "/workspace",
    cpus_per_node: Annotated[int | None, typer.Option(min=1, help="CPUs of a node.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of a node: 512Gi.")] = None,
    shared_memory: Annotated[str, typer.Option(help="Memory for /dev/shm, part of --memory.")] = "16Gi",
    rdma: Annotated[str | None, typer.Option(help="The resource of the RDMA device plugin: rdma/ib.")] = None,
    host_network: Annotated[bool, typer.Option("--host-network", help="Use the network of the machines.")] = False,
    grace: Annotated[int, typer.Option(min=1, help="Seconds for the last step and its checkpoint.")] = 300,
) -> None:
    """Submit to Kubernetes. Pods that are preempted, drained or crash are replaced, and the run resumes by itself."""
    from bigtrain.submit import KubernetesOptions, apply, as_yaml, manifests

    job = asked.job(kind=kind is not Kind.job, rdma=rdma, host_network=host_network)
    options = KubernetesOptions(
        image=image,
        claim=claim,
        kind="rayjob" if asked.build_data else kind.value,
        name=name,
        namespace=namespace,
        mount=mount,
        gpus_per_node=asked.gpus_per_node,
        cpus_per_node=cpus_per_node,
        memory=memory,
        shared_memory=shared_memory,
        rdma=rdma,
        host_network=host_network,
        grace=grace,
        max_restarts=asked.max_restarts,
        doctor=asked.doctor,
        comment=asked.comment(job),
    )
    made = manifests(job, options)
    printed = "" if asked.dry_run else apply(made)
    if asked.as_json:
        print_json(KubernetesSubmission(made, printed))
    else:
        echo(as_yaml(made) if asked.dry_run else printed, nl=False)


app.command("slurm", cls=TakesOverrides)(for_a_cluster(slurm))
app.command("kubernetes", cls=TakesOverrides)(for_a_cluster(kubernetes, check=False))
