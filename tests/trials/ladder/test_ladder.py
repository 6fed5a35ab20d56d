"""The whole of a ladder over runs that follow a known law: what it trains, what it costs, and what it finds."""

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bigtrain.base import BigtrainError
from bigtrain.config import load_settings
from bigtrain.submit import ArrayOptions
from bigtrain.submit.slurm_array import array_script
from bigtrain.trials.ladder.budget import Budget, MachineSpeed, require_new_text
from bigtrain.trials.ladder.design import LadderOptions, design_ladder
from bigtrain.trials.ladder.findings import findings
from bigtrain.trials.ladder.rungs import LadderRun, folder_of
from bigtrain.trials.ladder.runs import NotAtAll, OnSlurm, RunsPending, Trainer
from bigtrain.trials.ladder.sizes import parameters_of
from bigtrain.trials.ladder.tuning import tune
from tests.refusals import assert_refused
from tests.trials.ladder.helpers import LAW, OfALaw, rules_of, seconds_of, target

DATA = {"c": (1.0, 10**9)}
FLOPS = LadderOptions(Budget.parse("3e16"), sizes=4, tokens_per_parameter=(2, 4, 8), seeds=2)


def climb(settings, options, executor):
    """All of a ladder but the data."""
    rules = rules_of(settings)
    trainer = Trainer(folder_of(settings), executor, lambda line: None)
    design = design_ladder(rules, options, trainer)
    sweeps, recipe = tune(rules, design, options, trainer)
    rungs = trainer.train(design.rungs(rules, recipe))
    return findings(rules, options, sweeps, recipe, rungs, list(trainer.ended.values()), DATA)


def test_a_ladder_finds_the_law_of_its_runs(tmp_path):
    """Runs that follow a law, with their best rate and batch off the target's, give back the law, the best rate and
    batch, and the target's loss."""
    rules = rules_of(target(tmp_path))

    def scaled(run):
        return rules.first_recipe.at(run.tokens)

    executor = OfALaw(
        best_batch=lambda run: 2 * scaled(run).global_batch_size,
        best_rate=lambda run: 3 * scaled(run).with_batch(run.settings.train.global_batch_size).learning_rate,
    )
    found = climb(target(tmp_path), FLOPS, executor)
    rates, batches = found.sweeps
    assert rates.grid.inside and batches.grid.inside and not found.warnings
    assert all(point.value % 2 == 0 for point in batches.grid.points)  # what was trained: two ranks share a batch
    assert found.flops <= 3e16 * 1.25  # a grid may grow
    tuned = dict(override.split("=") for override in found.target.overrides)
    assert float(tuned["train.global_batch_size"]) == pytest.approx(2 * 64, rel=0.15)
    assert float(tuned["optimizer.learning_rate"]) == pytest.approx(3e-3 * 3 * 2**0.5, rel=0.15)
    assert found.target.loss == pytest.approx(LAW.loss(found.target.parameters, found.target.tokens), rel=5e-3)
    assert abs(found.back_test.largest_error) < 5e-3
    assert found.target.interval.low <= found.target.loss <= found.target.interval.high
    assert found.optimal.best.parameters * found.optimal.best.tokens * 6 == pytest.approx(found.target.flops)


def test_a_finished_ladder_trains_nothing_again(tmp_path):
    """The second time everything is in the run directories, and the result is the same."""
    executor = OfALaw(noise=0.01)
    first = climb(target(tmp_path), FLOPS, executor)
    trained = len(executor.trained)
    again = climb(target(tmp_path), FLOPS, executor)
    assert again == first and len(executor.trained) == trained == len(set(executor.trained))


def test_the_overrides_make_the_target_that_was_predicted(tmp_path):
    """The overrides load, and a target that was trained with them is compared with its prediction."""
    settings = target(tmp_path)
    found = climb(settings, FLOPS, OfALaw())
    config = tmp_path / "big.yaml"
    config.write_text(json.dumps(settings.model_dump(mode="json")))
    tuned = load_settings(config, found.target.overrides)
    assert tuned.model == settings.model  # muP scales the smaller ones
    OfALaw().write(LadderRun("target", tuned, parameters_of(tuned.model, "all"), 0.0))
    measured = climb(settings, FLOPS, OfALaw()).target
    assert measured.measured == pytest.approx(measured.loss, rel=5e-3)


def test_a_rate_is_swept_on_several_widths(tmp_path):
    """The further widths are swept for comparison, and do not change what the first one found."""
    found = climb(target(tmp_path), replace(FLOPS, sweep_sizes=3), OfALaw(best_rate=lambda run: 2e-3))
    rates = [sweep for sweep in found.sweeps if sweep.of == "learning rate"]
    assert len({sweep.hidden_size for sweep in rates}) == 3
    assert [sweep.grid.best for sweep in rates] == pytest.approx([2e-3] * 3, rel=0.02)


def test_a_diverged_rung_is_an_error_that_names_its_rate(tmp_path):
    """A sweep takes a diverged run as a bad rate; a rung that diverged would spoil the law."""
    with pytest.raises(BigtrainError) as refused:
        climb(target(tmp_path), replace(FLOPS, sweep_sizes=0), OfALaw(best_rate=lambda run: 1e-6))
    assert_refused(refused, "diverged", found="learning rate", fix="sweep it")


def test_hours_are_measured_by_two_pilots(tmp_path):
    """A time buys the runs that a straight line through the speeds of two pilots gives it."""
    executor = OfALaw()
    options = replace(FLOPS, budget=Budget.parse("20m"), sweep_sizes=0)
    found = climb(target(tmp_path), options, executor)
    pilots = [name for name in executor.trained if name.startswith("pilot-")]
    assert len(pilots) == 2
    cost = sum(9 + seconds_of(rung.tokens, rung.flops) for rung in found.rungs)
    assert 300 < cost <= 1200


def test_a_line_through_pilots_is_no_slower_for_larger_models():
    """Noise may make the larger pilot faster: then a token takes as long as its operations do there."""
    falling = MachineSpeed.of(_pilot(1e6, 2e-6), _pilot(1e7, 1e-6))
    assert falling.token_seconds == 0.0 and falling.flop_seconds == pytest.approx(1e-13)
    assert MachineSpeed.of(_pilot(1e6, 2e-6), _pilot(1e7, 11e-6)).flop_seconds == pytest.approx(1e-12)


def _pilot(flops, seconds):
    from bigtrain.trials.ladder.budget import PilotTime
    from bigtrain.trials.ladder.sizes import RungSize

    return PilotTime(RungSize(target().model, 1, flops), 5.0, seconds)


@pytest.mark.parametrize(("text", "flops", "seconds"), [
    ("1e15", 1e15, None), ("90m", None, 5400), ("2h", None, 7200), ("1.5 hours", None, 5400), ("1d", None, 86400),
])  # fmt: skip
def test_a_budget_is_operations_or_a_time(text, flops, seconds):
    assert Budget.parse(text) == Budget(flops, seconds)


@pytest.mark.parametrize("text", ["", "many", "-1e15", "0", "1e15,2h", "2h 1e15", "1..5h"])
def test_another_budget_is_refused(text):
    """Neither nothing nor both."""
    with pytest.raises(BigtrainError) as refused:
        Budget.parse(text)
    assert_refused(refused, "--budget is no limit", wanted="one of the two")


def test_a_budget_that_is_too_small_says_what_would_do(tmp_path):
    """The message has the cost of the smallest ladder, and that much is enough."""
    settings, trainer = target(tmp_path), Trainer(tmp_path, NotAtAll(), lambda line: None)
    with pytest.raises(BigtrainError) as refused:
        design_ladder(rules_of(settings), replace(FLOPS, budget=Budget.parse("1e9")), trainer)
    assert_refused(refused, "too small for a ladder", found="1e+09", fix="--budget")
    least = float(re.search(r"at least ([0-9.e+]+) FLOPs", str(refused.value))[1])
    options = replace(FLOPS, budget=Budget(least * 1.01, None))
    assert len(design_ladder(rules_of(settings), options, trainer).sizes) >= 3


def test_text_that_repeats_too_often_is_refused():
    """How often the most repeated source would be read is in the message."""
    data = {"web": (0.9, 10**9), "books": (0.1, 10**6)}
    require_new_text(data, 4e7, "a rung")
    with pytest.raises(BigtrainError) as refused:
        require_new_text(data, 1e8, "a rung")
    assert_refused(refused, "too few for a rung", found=("'books'", "10.0 times"), fix="build more data")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Programs that answer as Slurm's do: sbatch counts jobs, squeue lists those in a file."""
    programs = tmp_path / "bin"
    programs.mkdir()
    count = f'wc -l <{tmp_path}/submitted | tr -d " " | tee -a {tmp_path}/queue'
    (programs / "sbatch").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/submitted\n{count}\n')
    (programs / "squeue").write_text(f"#!/bin/sh\ncat {tmp_path}/queue\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tmp_path


def test_slurm_gets_what_is_missing_once(slurm):
    """Runs are submitted as one array, not again while they wait, again after they failed, and then the ladder goes on
    to what they decide."""
    settings = target(slurm)
    executor = OnSlurm(ArrayOptions(2, time="1:00:00", partition="cpu"), lambda line: None)
    with pytest.raises(RunsPending) as pending:
        climb(settings, FLOPS, executor)
    cells = [run.name for run in pending.value.runs]
    assert len(cells) == 10 and all("rate" in name for name in cells) and pending.value.job == "1"
    submitted = (slurm / "submitted").read_text()
    assert "--array=0-9" in submitted and "--time=1:00:00" in submitted and "--partition=cpu" in submitted
    with pytest.raises(RunsPending) as waiting:
        climb(settings, FLOPS, executor)
    assert waiting.value.job is None and [run.name for run in waiting.value.runs] == cells

    (slurm / "queue").write_text("")
    for run in pending.value.runs[:7]:
        OfALaw(best_rate=lambda run: 1e-4).write(run)
    with pytest.raises(RunsPending) as rest:
        climb(settings, FLOPS, executor)
    assert [run.name for run in rest.value.runs] == cells[7:] and rest.value.job == "2"


def test_an_element_of_the_array_starts_its_own_run(tmp_path, monkeypatch):
    """The script hands the run of its index to slurm.sbatch, quoted."""
    (tmp_path / "slurm.sbatch").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "slurm.sbatch").chmod(0o755)
    (tmp_path / "node.sh").write_text("")
    monkeypatch.setenv("BIGTRAIN_LAUNCH", str(tmp_path))
    script = array_script([Path("a b.yaml"), Path("-c.yaml")], [Path("runs/a b"), Path("runs/c")], 4)
    for index, config, run in (("0", "a b.yaml", "runs/a b"), ("1", "./-c.yaml", "runs/c")):
        done = subprocess.run(
            ["bash", "-c", script], env={**os.environ, "SLURM_ARRAY_TASK_ID": index}, capture_output=True, text=True
        )
        wanted = ["--launch", str(tmp_path), "--run", run, "--processes", "4", "--no-doctor", config]
        assert done.stdout.splitlines() == wanted, done.stderr
