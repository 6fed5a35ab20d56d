"""Learning from a teacher, from the command line: exact after kills, at any ZeRO stage, beside one teacher alone."""

from __future__ import annotations

import copy

import pytest
import yaml

from tests.refusals import assert_refused
from tests.system.run_sandbox import STATUS_STOPPED, RunSandbox, kill_ranks, small_settings

EXACT = ("step", "loss", "grad_norm", "distillation_loss", "hidden_loss", "batch_digest")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> RunSandbox:
    """A run of 12 steps."""
    directory = tmp_path_factory.mktemp("teacher")
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(small_settings(directory)))
    sandbox = RunSandbox(directory, config)
    assert sandbox.bigtrain("data", "build", config).returncode == 0
    assert sandbox.train(1)[0] == 0
    return sandbox


def student_of(teacher: RunSandbox, directory, **engine: object) -> RunSandbox:
    settings = copy.deepcopy(yaml.safe_load(teacher.config.read_text()))
    settings["run_dir"] = str(directory / "run")
    settings["model"] |= {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}
    settings["engine"] |= engine
    settings["distillation"] = {"teacher": str(teacher.run), "temperature": 1.5, "hidden_weight": 0.1}
    directory.mkdir(exist_ok=True)
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return RunSandbox(directory, config)


def numbers(run: RunSandbox) -> dict[int, tuple]:
    return {record["step"]: tuple(record[key] for key in EXACT) for record in run.metrics()}


@pytest.mark.slow
def test_a_student_repeats_its_steps_after_a_kill_and_shards_its_teacher(teacher, tmp_path):
    """What was killed goes on bit for bit; at stage 3 in float32 the losses are those of stage 2 to rounding."""
    whole = student_of(teacher, tmp_path / "whole")
    status, output = whole.train(2)
    assert status == 0, output
    wanted = numbers(whole)
    assert all(record[3] > 0 and record[4] > 0 for record in wanted.values())
    killed = student_of(teacher, tmp_path / "killed")
    training = killed.start_forked(2)
    killed.wait_for_step(6)
    kill_ranks(training)
    assert killed.train(2)[0] == 0
    assert numbers(killed) == wanted
    found = {}
    for stage, world in ((0, 1), (3, 2)):
        run = student_of(teacher, tmp_path / f"stage-{stage}", zero_stage=stage, precision="fp32")
        status, output = run.train(world, "train.stop_after=5")
        assert status == STATUS_STOPPED, output
        found[stage] = [record[1:5] for record in numbers(run).values()]
    for one, other in zip(found[0], found[3], strict=True):
        assert one == pytest.approx(other, rel=2e-5)
    evaluated = whole.bigtrain("eval", whole.run, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    exported = whole.bigtrain("export", whole.run, tmp_path / "hf", "--to", "hf")
    assert exported.returncode == 0, exported.stderr


def test_another_teacher_is_refused_with_what_differs(teacher, tmp_path):
    student = student_of(teacher, tmp_path / "student")
    assert student.train(1, "train.stop_after=5")[0] == STATUS_STOPPED
    another = student_of(teacher, tmp_path / "another")
    settings = yaml.safe_load(another.config.read_text())
    del settings["distillation"]
    another.config.write_text(yaml.safe_dump(settings))
    assert another.train(1)[0] == 0
    refused = student.bigtrain("train", student.config, f"distillation.teacher={another.run}")
    assert_refused(refused, "is not the teacher", "distillation.teacher.")
    fresh = student_of(teacher, tmp_path / "fresh")
    assert_refused(
        fresh.bigtrain("train", fresh.config, "model.family=qwen2", f"run_dir={tmp_path / 'other'}"),
        "predicts something else",
        "model.family llama of the teacher",
    )
    assert_refused(fresh.bigtrain("train", fresh.config, "distillation.weight=0", "distillation.hidden_weight=0"), "0")


FAMILIES = {
    "t5": {"objective": {"name": "span_corruption"}},
    "bart": {"objective": {"name": "denoising", "decoder_start_token": "<pad>"}},
    "xlnet": {"objective": {"name": "permutation"}},
    "lstm": {},
    "luong": {"objective": {"name": "span_corruption"}},
}
SPECIAL_TOKENS = ["<pad>", "[MASK]", *(f"<extra_id_{number}>" for number in range(20))]


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_teachers_of_other_architectures_are_sharded_too(family, tmp_path):
    """At stage 3 on two ranks in float32 the losses are those of stage 0 on one, to rounding."""
    settings = small_settings(tmp_path)
    model = settings["model"]
    if family in ("lstm", "luong"):
        for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            del model[key]
    else:
        model["num_key_value_heads"] = model["num_attention_heads"]
    model |= {"family": family}
    del model["tie_word_embeddings"]
    settings["data"]["tokenizer"]["additional_special_tokens"] = SPECIAL_TOKENS
    settings |= FAMILIES[family] | {"checkpoint": {"every_steps": 100}}
    settings["engine"]["precision"] = "fp32"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    teacher = RunSandbox(tmp_path, config)
    assert teacher.bigtrain("data", "build", config).returncode == 0
    status, output = teacher.train(1, "train.stop_after=3")
    assert status == STATUS_STOPPED, output
    found = {}
    for stage, world in ((0, 1), (3, 2)):
        settings["run_dir"] = str(tmp_path / f"stage-{stage}" / "run")
        settings["distillation"] = {"teacher": str(teacher.run), "temperature": 1.5}
        settings["engine"]["zero_stage"] = stage
        student = RunSandbox(tmp_path / f"stage-{stage}", tmp_path / f"stage-{stage}.yaml")
        student.directory.mkdir()
        student.config.write_text(yaml.safe_dump(settings))
        status, output = student.train(world, "train.stop_after=3", "model.num_hidden_layers=1")
        assert status == STATUS_STOPPED, output
        found[stage] = [(m["loss"], m["grad_norm"], m["distillation_loss"]) for m in student.metrics()]
    assert len(found[0]) == 3
    for one, other in zip(found[0], found[3], strict=True):
        assert one[:2] == pytest.approx(other[:2], rel=5e-5)
        assert 0 < one[2] == pytest.approx(other[2], rel=1e-3)  # the two models differ by little after three steps
