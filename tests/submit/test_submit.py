"""What is handed to Slurm and Kubernetes says what was asked for; what could not work is refused before it waits."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.submit import kubernetes, slurm
from bigtrain.submit.job import SCRIPTS, Job, scripts
from bigtrain.submit.kubernetes import KubernetesOptions
from bigtrain.submit.slurm import SlurmOptions

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
KUBERNETES = "1.34"


def job(*overrides: str, nodes: int = 2, processes: int = 1, min_nodes: int | None = None) -> Job:
    return Job.of(QUICKSTART, overrides, nodes=nodes, processes_per_node=processes, min_nodes=min_nodes)


def slurm_command(options: SlurmOptions, **of_job) -> list[str]:
    return slurm.commands(job(**of_job), options)[0]


# Any cluster


def test_a_batch_that_does_not_divide_is_refused_before_the_queue():
    """Batches that do not divide over the nodes are refused before the job waits."""
    with pytest.raises(BigtrainError, match="does not divide"):
        job(nodes=3)
    with pytest.raises(BigtrainError, match="tensor_parallel_size"):
        job("engine.tensor_parallel_size=3", nodes=2)


def test_a_number_of_nodes_that_may_be_left_has_to_fit_as_well():
    assert job("train.global_batch_size=96", nodes=3, min_nodes=2).min_nodes == 2
    with pytest.raises(BigtrainError, match="does not divide") as caught:
        job("train.micro_batch_size=8", nodes=4, min_nodes=3)
    assert "raise --min-nodes" in str(caught.value)
    with pytest.raises(BigtrainError, match="more nodes than there are"):
        job(min_nodes=3)


def test_scripts_that_are_not_there_are_told(monkeypatch, tmp_path):
    assert (scripts() / "node.sh").is_file()
    monkeypatch.setenv(SCRIPTS, str(tmp_path))
    with pytest.raises(BigtrainError, match="launch scripts"):
        scripts()


# Slurm


@given(st.integers(0, 40), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_every_form_of_a_walltime_is_read_as_slurm_reads_it(days, hours, minutes, rest):
    whole = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    assert slurm.seconds(f"{days}-{hours}:{minutes}:{rest}") == whole
    assert slurm.seconds(f"{days}-{hours}:{minutes}") == whole - rest
    assert slurm.seconds(f"{days}-{hours}") == (days * 24 + hours) * 3600
    assert slurm.seconds(f"{hours:02}:{minutes:02}:{rest:02}") == (hours * 60 + minutes) * 60 + rest
    assert slurm.seconds(f"{minutes}:{rest}") == minutes * 60 + rest
    assert slurm.seconds(f"{minutes}") == minutes * 60


@pytest.mark.parametrize("nonsense", ["", "soon", "1:2:3:4", "a-1", "1-"])
def test_what_is_no_walltime_is_none(nonsense):
    assert slurm.seconds(nonsense) is None


def test_failing_nodes_are_kept_out_only_of_a_job_that_is_requeued():
    assert "--exclude-failing" in slurm_command(SlurmOptions(exclude_failing=True))
    for never in ({"max_requeues": 0}, {"chain": 2}, {"array": 2}):
        with pytest.raises(BigtrainError, match="never does"):
            slurm_command(SlurmOptions(exclude_failing=True, **never))
    assert "--exclude-failing" in slurm_command(SlurmOptions(exclude_failing=True, chain=2, max_requeues=1))


def test_every_option_reaches_sbatch_or_the_script():
    options = SlurmOptions(
        gpus_per_node=8, cpus_per_node=96, time="4:00:00", partition="p", account="a", qos="q", exclude="n[1-2]",
        signal_lead=300, max_restarts=5, max_requeues=7, container="image.sif", mounts="/data:/data",
        doctor=False, extra=["--constraint=h100"],
    )  # fmt: skip
    command = slurm_command(options)
    script = command.index(str(scripts() / "slurm.sbatch"))
    for option in (
        "--nodes=2", "--gpus-per-node=8", "--cpus-per-task=96", "--time=4:00:00", "--partition=p", "--account=a",
        "--qos=q", "--exclude=n[1-2]", "--signal=B:USR1@300", "--requeue", "--constraint=h100",
        "--output=runs/quickstart/logs/slurm-%j.out",
    ):  # fmt: skip
        assert option in command[:script], option
    handed_on = " ".join(command[script:])
    for option in (
        "--run runs/quickstart", "--processes 1", "--max-restarts 5", "--max-requeues 7", "--container image.sif",
        "--mounts /data:/data", "--no-doctor", f"{QUICKSTART}",
    ):  # fmt: skip
        assert option in handed_on, option


def test_the_folder_for_the_environment_reaches_the_script():
    (command,) = slurm.commands(job(), SlurmOptions(stage_env="/dev/shm"))
    assert "--stage-env /dev/shm" in " ".join(command)
    for wrong in (SlurmOptions(stage_env="here"), SlurmOptions(stage_env="/dev/shm", container="image")):
        with pytest.raises(BigtrainError, match="--stage-env cannot be used"):
            slurm.commands(job(), wrong)


def build(*overrides: str, nodes: int = 3) -> Job:
    return Job.of_build(QUICKSTART, overrides, nodes=nodes)


def test_a_build_of_data_is_one_job_that_outlives_a_lost_node():
    """A build goes to its own script with what that understands, for any number of nodes."""
    options = SlurmOptions(cpus_per_node=8, time="4:00:00", container="i.sif", mounts="/a:/b", max_requeues=2)
    (command,) = slurm.commands(build("train.seed=5"), options)
    script = command.index(str(scripts() / "build-data.sbatch"))
    assert {"--nodes=3", "--cpus-per-task=8", "--time=4:00:00", "--no-kill", "--requeue"} <= set(command[:script])
    assert "--output=runs/quickstart/logs/data-%j.out" in command and "--job-name=quickstart-data" in command
    handed_on = " ".join(command[script:])
    for wanted in ("--container i.sif", "--mounts /a:/b", "--max-requeues 2", f"{QUICKSTART} train.seed=5"):
        assert wanted in handed_on
    assert "--processes" not in handed_on and "--run" not in handed_on


def test_whole_nodes_are_taken_where_no_part_of_them_is_asked_for():
    assert {"--exclusive", "--mem=0"} <= set(slurm_command(SlurmOptions()))
    assert not {"--exclusive", "--mem=0"} & set(slurm_command(SlurmOptions(cpus_per_node=4)))


def test_a_job_that_may_lose_nodes_is_not_ended_with_the_first():
    command = slurm_command(SlurmOptions(), min_nodes=1)
    assert "--no-kill" in command and "--min-nodes 1" in " ".join(command)
    assert "--no-kill" not in slurm_command(SlurmOptions())


def test_each_job_of_a_chain_waits_for_the_one_before():
    """Each job of a chain waits for the one before and none goes back into the queue."""
    first, second, third = slurm.commands(job(), SlurmOptions(chain=3))
    assert not any("--dependency" in part for part in first)
    assert f"--dependency=afterany:{slurm.BEFORE}" in second and second == third
    assert "--max-requeues 0" in " ".join(first) and "--max-requeues 0" in " ".join(third)
    assert "--array=1-3%1" in slurm_command(SlurmOptions(array=3))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (SlurmOptions(time="soon"), "no walltime"),
        (SlurmOptions(time="4", signal_lead=200), "as soon as it has started"),
        (SlurmOptions(chain=2, array=2), "two ways"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, complaint):
    with pytest.raises(BigtrainError, match=complaint):
        slurm.commands(job(), options)


def test_a_run_that_stops_by_itself_is_not_requeued_for_ever():
    stopping = job("train.stop_after=3")
    with pytest.raises(BigtrainError, match="again and again"):
        slurm.commands(stopping, SlurmOptions())
    assert slurm.commands(stopping, SlurmOptions(max_requeues=0))
    with pytest.raises(BigtrainError, match="again and again"):
        kubernetes.manifests(stopping, KubernetesOptions(image="i", claim="c"))


# Kubernetes

PLAIN = KubernetesOptions(image="registry.example/bigtrain:1", claim="scratch", gpus_per_node=8)


@pytest.fixture(scope="module")
def valid(require):
    """Checks a manifest against the schema of its kind, unknown fields included."""
    require("kubernetes_validate")
    import kubernetes_validate

    def check(manifest: dict) -> None:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)

    return check


def as_jobs(manifests: list[dict]) -> list[dict]:
    """Manifests of Kubernetes' own kinds: of Kubeflow's, the Job that its runtime describes; of KubeRay's, its pods."""
    own = []
    for manifest in manifests:
        if manifest["kind"] == "TrainingRuntime":
            assert set(manifest["spec"]) == {"mlPolicy", "template"}
            for part in manifest["spec"]["template"]["spec"]["replicatedJobs"]:
                own.append({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **part["template"]})
                own[-1]["metadata"] = {"name": "x", **part["template"]["metadata"]}
        elif manifest["kind"] == "RayJob":
            cluster = manifest["spec"]["rayClusterSpec"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                own.append({"apiVersion": "v1", "kind": "Pod", **group["template"]})
                own[-1]["metadata"] = {"name": "x", **group["template"]["metadata"]}
        elif manifest["kind"] != "TrainJob":
            own.append(manifest)
    return own


@pytest.mark.parametrize("kind", ["job", "trainjob", "rayjob"])
def test_the_manifests_that_users_copy_are_valid(valid, kind):
    text = (scripts() / "kubernetes" / f"{kind}.yaml").read_text()
    for manifest in as_jobs(list(yaml.safe_load_all(text))):
        valid(manifest)


@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        replace(PLAIN, kind="trainjob"),
        replace(PLAIN, gpus_per_node=None, cpus_per_node=4, memory="16Gi", namespace="team", doctor=False),
        replace(PLAIN, rdma="rdma/ib", host_network=True, max_restarts=3, mount="/scratch", name="mine"),
    ],
)
def test_what_is_submitted_is_valid_and_says_what_was_asked_for(valid, options):
    made = kubernetes.manifests(job("train.seed=5", min_nodes=1), options)
    assert list(yaml.safe_load_all(kubernetes.as_yaml(made))) == made
    for manifest in as_jobs(made):
        valid(manifest)
    assert made[0]["data"]["config.yaml"] == QUICKSTART.read_text()
    text = kubernetes.as_yaml(made[1:])
    assert ("quickstart" in text) == (options.name is None)
    for wanted in (options.image, options.claim, "--nodes=1:2", "train.seed=5", options.mount, options.rdma or ""):
        assert wanted in text
    assert ("--doctor" in text) == options.doctor
    assert {manifest["metadata"].get("namespace") for manifest in made} == {options.namespace}


@pytest.mark.parametrize("kind", ["job", "trainjob"])
def test_only_stopped_or_preempted_pods_are_replaced(kind):
    """Pods that stopped on request or were preempted are replaced and wrong ones are not."""
    made = as_jobs(kubernetes.manifests(job(), replace(PLAIN, kind=kind)))
    (spec,) = [manifest["spec"] for manifest in made if manifest["kind"] == "Job"]
    container = spec["template"]["spec"]["containers"][0]["name"]
    actions = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        for condition in rule.get("onPodConditions", ()):
            actions[condition["type"]] = rule["action"]
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container
            actions |= dict.fromkeys(rule["onExitCodes"]["values"], rule["action"])
    assert actions == {"DisruptionTarget": "Ignore", 75: "Ignore", 1: "FailJob", 2: "FailJob"}
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "else the policy would not be asked"
    assert spec["template"]["spec"]["securityContext"]["runAsNonRoot"]


@given(st.text())
def test_any_text_becomes_a_name_that_stays_what_it_is(text):
    name = kubernetes.as_name(text)
    assert 0 < len(name) <= kubernetes.LONGEST_NAME and kubernetes.as_name(name) == name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and name.strip("-") == name


def test_an_invalid_kubernetes_name_is_refused_with_a_valid_one():
    """A name that kubernetes would refuse is refused with one that it takes."""
    with pytest.raises(BigtrainError) as caught:
        kubernetes.manifests(job(), replace(PLAIN, name="My_Run"))
    assert "--name my-run" in str(caught.value)


RAY_JOB = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
"""Fields of KubeRay's ray.io/v1, RayJobSpec (rayjob_types.go)."""
RAY_GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_build_of_data_is_a_ray_job_with_a_pod_for_each_node(valid, nodes):
    options = replace(PLAIN, kind="rayjob", gpus_per_node=None, cpus_per_node=4, memory="16Gi", namespace="team")
    made = kubernetes.manifests(build("tracking.name=a $(b)", nodes=nodes), options)
    for manifest in as_jobs(made):
        valid(manifest)
    config, ray = made
    assert (config["kind"], ray["apiVersion"], ray["kind"]) == ("ConfigMap", "ray.io/v1", "RayJob")
    assert set(ray["spec"]) <= RAY_JOB and ray["spec"]["shutdownAfterJobFinishes"]
    command = shlex.split(ray["spec"]["entrypoint"])
    assert command[:5] == ["bigtrain", "data", "build", "--on", "ray"] and command[-1] == "tracking.name=a $$(b)"
    cluster = ray["spec"]["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]
    assert sum(group["replicas"] for group in groups) == nodes - 1 and all(set(group) == RAY_GROUP for group in groups)
    for group in (cluster["headGroupSpec"], *groups):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == {"cpu": 4, "memory": "16Gi"}
        assert command[5] == f"{container['volumeMounts'][-1]['mountPath']}/config.yaml"
    assert "quickstart" not in kubernetes.as_yaml([ray]).replace(ray["metadata"]["name"], "")


def test_a_forecast_is_an_annotation_of_the_job_alone():
    made = kubernetes.manifests(job(), replace(PLAIN, comment="12.5 GiB a GPU"))
    annotated = {each["kind"]: each["metadata"].get("annotations", {}) for each in made}
    assert annotated["Job"]["bigtrain-forecast"] == "12.5 GiB a GPU"
    assert not any("bigtrain-forecast" in found for kind, found in annotated.items() if kind != "Job")


JOB = job()


@given(st.text(min_size=1), st.text(min_size=1))
def test_names_are_valid_for_a_service_and_differ_with_the_run_directory(one, other):
    """RFC 1035: a letter first. Two run directories of one name are two jobs, and so are two claims."""
    asked = [
        replace(JOB, settings=JOB.settings.model_copy(update={"run_dir": Path(f"{text}/7b")})) for text in (one, other)
    ]
    names = [kubernetes._name_of(each, PLAIN) for each in asked]
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", name) for name in names)
    assert (names[0] == names[1]) == (asked[0].settings.run_dir == asked[1].settings.run_dir)
    assert names[0] != kubernetes._name_of(asked[0], replace(PLAIN, claim="another"))
    assert kubernetes.as_name("7b") == "run-7b"


def test_a_config_map_of_another_configuration_has_another_name(tmp_path):
    """So that a submission with a name that is taken never changes what a running job restarts with."""
    (tmp_path / "c.yaml").write_text(QUICKSTART.read_text() + "\n# changed\n")
    changed = Job.of(tmp_path / "c.yaml", (), nodes=2, processes_per_node=1)
    maps = [kubernetes.manifests(each, replace(PLAIN, name="same"))[0] for each in (job(), changed)]
    assert maps[0]["metadata"]["name"] != maps[1]["metadata"]["name"] and maps[0]["immutable"]


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8")))
def test_what_is_submitted_holds_each_value_as_it_was_given(text):
    """Overrides, images and names with quotation marks, `$()` or newlines reach Slurm and Kubernetes unchanged."""
    asked = replace(JOB, overrides=[f"tracking.name={text}"])
    (command,) = slurm.commands(asked, SlurmOptions(partition=text, account=text, container=f"/{text}"))
    assert command[-1] == f"tracking.name={text}"
    assert {f"--partition={text}", f"--account={text}", f"/{text}"} <= set(command)
    made = kubernetes.manifests(asked, replace(PLAIN, image=text, claim=text, mount=f"/{text}"))
    assert list(yaml.safe_load_all(kubernetes.as_yaml(made))) == made
    container = made[-1]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][-1] == f"tracking.name={text}".replace("$", "$$") and container["image"] == text


def test_a_path_is_neither_an_option_nor_a_pattern_nor_a_placeholder(monkeypatch, tmp_path):
    """A run directory with `%j`, the placeholder of a chain, or a dash first is the one that Slurm gets."""
    run = tmp_path / "100%j JOB_BEFORE"
    asked = replace(JOB, config=Path("-x.yaml"), settings=JOB.settings.model_copy(update={"run_dir": run}))
    given = slurm.commands(asked, SlurmOptions(chain=2))
    assert f"--output={tmp_path}/100%%j JOB_BEFORE/logs/slurm-%j.out" in given[0] and given[0][-1] == "./-x.yaml"
    (tmp_path / "sbatch").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >>"$0.log"\necho site banner\necho "41;cluster"\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert slurm.submit(asked, given) == ["41", "41"]
    said = (tmp_path / "sbatch.log").read_text()
    assert "--dependency=afterany:41\n" in said and "100%j 41" not in said
