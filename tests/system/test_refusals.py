"""Each mistake gets one clear message, exit status 1, and nothing is overwritten."""

import shutil

import pytest

from tests import forkserver
from tests.refusals import assert_refused
from tests.system.run_sandbox import RunSandbox, kill_ranks


def edited(sandbox: RunSandbox, old: str, new: str) -> str:
    text = sandbox.config.read_text()
    assert old in text
    sandbox.config.write_text(text.replace(old, new))
    return str(sandbox.config)


def snapshot(directory) -> dict:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_right_one(sandbox):
    config = edited(sandbox, "hidden_size: 64", "hiden_size: 64")
    line = 1 + next(i for i, text in enumerate(sandbox.config.read_text().splitlines()) if "hiden_size" in text)
    result = sandbox.bigtrain("train", config)
    assert_refused(result, f"config.yaml:{line}", "hiden_size", fix="hidden_size")


def test_a_wrong_type_is_named_with_both_values(sandbox):
    result = sandbox.bigtrain("train", edited(sandbox, "steps: 12", "steps: many"))
    assert_refused(result, "train.steps", found="many", wanted="a whole number")


def test_an_override_of_an_unknown_key_is_refused(sandbox):
    assert_refused(sandbox.bigtrain("train", sandbox.config, "train.step=3"), "train.step", wanted="train.steps")


def test_missing_data_are_named_with_the_command_that_builds_them(sandbox, tmp_path):
    """Data that was never built is named with the command that builds it."""
    result = sandbox.bigtrain("train", sandbox.config, f"data.dir={tmp_path}/nowhere")
    assert_refused(result, "nowhere", fix="bigtrain data build")
    assert not sandbox.run.exists() or not (sandbox.run / "config.yaml").exists()


def test_a_vocabulary_larger_than_the_embedding_is_refused_with_both_sizes(sandbox):
    assert_refused(sandbox.bigtrain("train", sandbox.config, "model.vocab_size=512"), "1024", "512")


def test_a_model_of_an_unexpected_size_is_refused_with_its_parts(sandbox):
    """A model of another size than expected is refused with what it is made of."""
    result = sandbox.bigtrain("train", str(sandbox.config), "model.expect_parameters=124M")
    parts = ["embedding 65,536, blocks ", "final norm 64", "head (tied to the embedding) 0"]
    assert_refused(result, found=parts, wanted="124M", fix="model.expect_parameters")
    assert not sandbox.run.exists()


def test_leave_to_change_what_is_not_locked_is_refused_with_the_line(sandbox):
    config = edited(sandbox, "checkpoint:\n", "checkpoint:\n  allow_change: [train.step]\n")
    assert_refused(sandbox.bigtrain("train", config), "unknown key train.step", "config.yaml:", wanted="train.steps")
    config = edited(sandbox, "[train.step]", "[engine.zero_stage]")
    assert_refused(sandbox.bigtrain("train", config), "engine.zero_stage", "does not change the mathematics")


def test_a_batch_that_does_not_divide_is_refused(sandbox):
    assert_refused(sandbox.bigtrain("train", sandbox.config, "train.micro_batch_size=3"), "8", "3", "micro_batch_size")


def test_a_start_after_a_refused_one_is_not_refused_for_its_traces(sandbox):
    """Checkpoint folders are tried before the batch is checked, and what that leaves is not a stranger's."""
    for _ in range(2):
        status, output = sandbox.train(2, "train.micro_batch_size=8", f"checkpoint.local_dir={sandbox.run}/near")
        assert_refused((status, output), "global_batch_size")
    assert (sandbox.run / "checkpoints").is_dir()
    assert not (sandbox.run / "config.yaml").exists()


def test_a_batch_that_does_not_divide_is_refused_once_for_all_ranks(sandbox):
    """A batch that does not divide over the ranks is refused on all of them once."""
    result = sandbox.train(2, "train.global_batch_size=9", "train.micro_batch_size=3")
    assert_refused(result, "global_batch_size 9", "data-parallel size 2")


def test_a_directory_of_somebody_else_is_left_as_it_is(sandbox):
    sandbox.run.mkdir()
    (sandbox.run / "thesis.txt").write_text("years of work")
    assert_refused(sandbox.bigtrain("train", sandbox.config), "run_dir", found="thesis.txt")
    assert snapshot(sandbox.run) == {"thesis.txt": b"years of work"}


@pytest.fixture
def finished(undisturbed, sandbox) -> RunSandbox:
    shutil.copytree(undisturbed.run, sandbox.run)
    return sandbox


def test_another_model_in_the_same_run_directory_is_refused(finished):
    """Another model in the same run directory is refused with both values."""
    before = snapshot(finished.run)
    result = finished.bigtrain("train", str(finished.config), "model.num_hidden_layers=3")
    assert_refused(result, "num_hidden_layers", "2", "3")
    after = snapshot(finished.run)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name != ".lock")


def test_checkpoints_that_are_gone_never_mean_a_quiet_start_at_step_0(finished):
    shutil.rmtree(finished.run / "checkpoints")
    metrics = (finished.run / "metrics.jsonl").read_bytes()
    assert_refused(finished.bigtrain("train", finished.config), "checkpoint", found="step 12")
    assert (finished.run / "metrics.jsonl").read_bytes() == metrics


def test_a_corrupted_newest_checkpoint_is_skipped_and_recorded(finished, undisturbed):
    """A damaged newest checkpoint is skipped for the one before, and that is recorded."""
    newest = finished.run / "checkpoints/step-00000012"
    victim = max(newest.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    status, output = finished.train(2)
    assert status == 0, output
    fallback = [event for event in finished.events() if event["event"] == "fallback"]
    assert fallback and "step-00000012" in str(fallback) and victim.name in str(fallback)
    assert [m["loss"] for m in finished.metrics()] == [m["loss"] for m in undisturbed.metrics()]


def test_eval_of_a_step_without_a_checkpoint_names_the_steps_there_are(finished):
    assert_refused(finished.bigtrain("eval", finished.run, "--step", "5"), "5", "4, 8, 12")


def test_a_directory_that_is_no_run_is_named(sandbox):
    for command in (["eval"], ["generate", "--", "x"], ["report"], ["checkpoint", "list"]):
        at = 2 if command[0] == "checkpoint" else 1
        arguments = [a for a in [*command[:at], str(sandbox.directory / "nothing"), *command[at:]] if a != "--"]
        assert_refused(sandbox.bigtrain(*arguments), "nothing")


def test_a_wrong_byte_in_a_shard_is_found_and_named(built, sandbox):
    data = sandbox.directory / "data"
    shutil.copytree(built.directory / "data", data)
    assert sandbox.bigtrain("data", "verify", str(data)).returncode == 0
    shard = max(data.rglob("*.tok"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    result = sandbox.bigtrain("data", "verify", str(data))
    assert result.returncode == 1 and shard.name in result.stdout and "block" in result.stdout


def test_a_corrupt_shard_stops_training_on_all_ranks_with_the_file_s_name(built, sandbox):
    data = sandbox.directory / "data"
    shutil.copytree(built.directory / "data", data)
    for shard in data.rglob("train/*.tok"):
        shard.write_bytes(b"\xff" * shard.stat().st_size)  # of the right size, but no id in it is in the vocabulary
    assert_refused(sandbox.train(2, f"data.dir={data}"), ".tok is corrupt", fix="bigtrain data verify")


IMPATIENT = """
from bigtrain.cli.main import main
from bigtrain.rundir import directory
directory.LOCK_PATIENCE_SECONDS = 1.0  # the fault table waits for all 20
main()
"""


def test_two_jobs_in_one_run_directory_are_refused(sandbox):
    second = sandbox.directory / "impatient.py"
    second.write_text(IMPATIENT)
    first = sandbox.start_forked(1, "train.steps=100000")
    try:
        sandbox.wait_for_step(1)
        result = forkserver.python(second, "train", sandbox.config, "train.steps=100000", cwd=sandbox.directory)
        assert_refused(result, "another job", "process")
    finally:
        kill_ranks(first)


def test_a_batch_without_labels_ends_the_run_with_what_to_do(sandbox):
    """A batch in which every document is skipped ends the run with what to do."""
    skip = "{source: %s, files: '*', from_step: 3, reason: all of it}"
    result = sandbox.train(2, f"data.skip=[{skip % 'json'}, {skip % 'email'}]")
    what = "step 3 has nothing to train on: no token of its batch has a label"
    assert_refused(result, what, fix="add {steps: [3, 3], reason: ...} to the end of data.skip")
    assert [record["step"] for record in sandbox.metrics()] == [1, 2]
