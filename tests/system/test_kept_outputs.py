"""Learning from what was kept of a teacher, from the command line: once for all, on any number of ranks."""

from __future__ import annotations

import copy

import pytest
import yaml

from tests import forkserver
from tests.refusals import assert_refused
from tests.system.run_sandbox import STATUS_STOPPED, RunSandbox, as_json, kill_ranks, small_settings

CLASSES = 400
EXACT = ("step", "loss", "grad_norm", "distillation_loss", "batch_digest")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> RunSandbox:
    """A run of 12 steps in float32."""
    directory = tmp_path_factory.mktemp("teacher")
    settings = small_settings(directory)
    settings["engine"] |= {"precision": "fp32"}
    settings["model"]["vocab_size"] = settings["data"]["tokenizer"]["vocab_size"] = CLASSES
    settings["data"]["validation"] = {"fraction": 0.4}
    for source, names in zip(settings["data"]["sources"], ("[d-t]*", "[p-q]*"), strict=True):  # a few small files
        source["path"] = source["path"].replace("*", names)
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    sandbox = RunSandbox(directory, config)
    assert sandbox.bigtrain("data", "build", config).returncode == 0
    assert sandbox.train(1)[0] == 0
    return sandbox


@pytest.fixture(scope="module")
def kept(teacher: RunSandbox, tmp_path_factory: pytest.TempPathFactory):
    """All classes of all rows, at two temperatures, by two processes; and what a third one then prints."""
    folder = tmp_path_factory.mktemp("kept") / "outputs"
    student = student_of(teacher, folder.parent / "first", {"kept_outputs": str(folder), "kept_classes": CLASSES})
    command = ("keep-outputs", teacher.run, student.config, "--temperature", "1.5")
    shared = forkserver.torchrun(2, "-m", "bigtrain", *command, cwd=folder.parent, timeout=180)
    assert shared.returncode == 0, shared.stdout
    return folder, as_json(student.bigtrain(*command, "--json"))


def student_of(teacher: RunSandbox, directory, distillation: dict) -> RunSandbox:
    settings = copy.deepcopy(yaml.safe_load(teacher.config.read_text()))
    settings["run_dir"] = str(directory / "run")
    settings["model"] |= {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}
    settings["distillation"] = distillation
    directory.mkdir(exist_ok=True)
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return RunSandbox(directory, config)


def numbers(run: RunSandbox) -> dict[int, tuple]:
    return {record["step"]: tuple(record[key] for key in EXACT) for record in run.metrics()}


@pytest.mark.slow
def test_all_kept_outputs_teach_what_the_teacher_itself_does(teacher, kept, tmp_path):
    """Losses and gradient norms are those beside the teacher, to rounding, on one rank and on four."""
    folder, printed = kept
    assert printed["complete"] and (printed["files"], printed["written"]) == (2, 0)
    beside = student_of(teacher, tmp_path / "beside", {"teacher": str(teacher.run), "temperature": 1.5})
    assert beside.train(1, "train.stop_after=4")[0] == STATUS_STOPPED
    wanted = numbers(beside)
    for world in (1, 4):
        settings = {"kept_outputs": str(folder), "kept_classes": CLASSES, "temperature": 1.5}
        student = student_of(teacher, tmp_path / f"world-{world}", settings)
        status, output = student.train(world, "train.stop_after=4")
        assert status == STATUS_STOPPED, output
        found = numbers(student)
        for step, record in wanted.items():
            assert record[3] > 0
            assert found[step][1:4] == pytest.approx(record[1:4], rel=2e-5)
            assert found[step][4] == record[4]


@pytest.mark.long
def test_a_student_of_kept_outputs_repeats_its_steps_after_a_kill(teacher, kept, tmp_path):
    """Over two epochs and more, in bfloat16; evaluation and export need no teacher."""
    folder, _ = kept
    settings = {"kept_outputs": str(folder), "kept_classes": CLASSES}
    whole = student_of(teacher, tmp_path / "whole", settings)
    assert whole.train(2, "engine.precision=bf16")[0] == 0
    killed = student_of(teacher, tmp_path / "killed", settings)
    training = killed.start_forked(2, "engine.precision=bf16")
    killed.wait_for_step(6)
    kill_ranks(training)
    assert killed.train(2, "engine.precision=bf16")[0] == 0
    assert numbers(killed) == numbers(whole)
    assert whole.bigtrain("eval", whole.run, "--json").returncode == 0
    assert whole.bigtrain("export", whole.run, tmp_path / "hf", "--to", "hf").returncode == 0


def test_kept_outputs_of_something_else_are_refused(teacher, kept, tmp_path):
    """Another sequence length, temperature, number of classes or teacher, and a folder that is not there."""
    folder, _ = kept
    student = student_of(teacher, tmp_path / "student", {"kept_outputs": str(folder), "kept_classes": CLASSES})

    def refused(*overrides: str, **more: str) -> None:
        assert_refused(student.bigtrain("train", student.config, *overrides), *more.values())

    refused("data.sequence_length=32", a="another sequence_length", b="bigtrain keep-outputs")
    refused("distillation.temperature=3", a="not kept for this temperature", b="1.5 or 2.0")
    refused("distillation.kept_classes=5", a="another kept", b=f"kept {CLASSES}")
    refused(
        f"distillation.kept_outputs={tmp_path / 'none'}", a="holds no outputs of a teacher", b="bigtrain keep-outputs"
    )
    assert student.train(1, "train.stop_after=4")[0] == STATUS_STOPPED
    beside = (f"distillation.teacher={teacher.run}", "distillation.kept_outputs=null", "distillation.kept_classes=64")
    other = student.bigtrain("train", student.config, *beside, "checkpoint.allow_change=[distillation.kept_classes]")
    assert_refused(other, "is not the teacher", "distillation.")
    again = student.bigtrain("keep-outputs", student.run, student.config)
    assert_refused(again, "another teacher", "empty folder")
