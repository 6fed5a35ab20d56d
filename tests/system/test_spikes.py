"""Spikes get an answer: NaN or a spike, and the run goes back, leaves the batches out, and goes on as if by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from bigtrain.checkpoint import list_checkpoints, storage_at
from bigtrain.rundir.decisions import read_decisions
from tests import forkserver
from tests.refusals import assert_refused
from tests.system.run_sandbox import RunSandbox, as_json, curve

GUARD = {"window": 4, "confirm_steps": 1, "skip_before": 1, "skip_after": 0, "loss_z": 50.0, "grad_norm_z": None}
BY_HAND = "data.skip=[{steps: [6, 7], reason: by hand}]"
"""What the guard does by itself where step 7 is bad."""


def guarded(sandbox: RunSandbox, name: str, **sections) -> RunSandbox:
    """A run of its own name, with a guard for runs of a dozen steps."""
    settings = yaml.safe_load(sandbox.config.read_text())
    settings |= {"run_dir": str(sandbox.directory / name), "guard": GUARD}
    for section, values in sections.items():
        settings[section] = {**settings.get(section, {}), **values}
    config = sandbox.directory / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings))
    return RunSandbox(sandbox.directory, config)


def train(sandbox: RunSandbox, monkeypatch: pytest.MonkeyPatch, *overrides: str, fault: str = "", ranks: int = 2):
    monkeypatch.setenv("BIGTRAIN_FAULT", fault)
    status, output = sandbox.train(ranks, *overrides)
    monkeypatch.delenv("BIGTRAIN_FAULT")
    return status, output


@pytest.fixture(scope="module")
def by_hand(built: RunSandbox, tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:
    """The loss curve of a run whose user knew beforehand."""
    sandbox = guarded(RunSandbox(tmp_path_factory.mktemp("hand"), built.config), "hand")
    status, output = sandbox.train(2, BY_HAND)
    assert status == 0, output
    return curve(sandbox.metrics(sandbox.directory / "hand"))


def events(sandbox: RunSandbox, name: str, kind: str) -> list[dict]:
    return [event for event in sandbox.events(sandbox.directory / name) if event["event"] == kind]


def files_of(run: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(run)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


def test_nan_in_one_micro_batch_of_one_rank_is_skipped(sandbox, by_hand, monkeypatch):
    """Nan in one micro batch of one rank is left behind."""
    own = guarded(sandbox, "own")
    run = sandbox.directory / "own"
    status, output = train(own, monkeypatch, fault="nan,rank=1,step=7")
    assert status == 0, output
    assert "not finite at step 7" in output and "going back to step 4" in output
    assert curve(sandbox.metrics(run)) == by_hand

    (decision,) = read_decisions(run / "decisions.jsonl")
    assert (decision.kind, decision.rewind_to, decision.skip.steps) == ("not finite", 4, (6, 7))
    assert math.isnan(decision.outliers[0].loss) and "not finite at step 7" in decision.skip.reason
    (skip,), (rewind,) = events(sandbox, "own", "skip"), events(sandbox, "own", "rewind")
    assert (skip["steps"], rewind["to_step"], rewind["steps"]) == ([6, 7], 4, [7, 7])
    (evidence,) = events(sandbox, "own", "evidence")
    assert evidence["of_step"] == 7 and all(document["text"] for document in evidence["documents"])
    losses = [document["loss"] for document in evidence["documents"]]
    assert losses == sorted(losses, reverse=True) and 0 < losses[0] < 12

    # Who asks about the run gets what it decided; and who asks about the configuration that knows nothing of it, too.
    shown = yaml.safe_load(own.bigtrain("config", "show", run).stdout)
    assert [item["steps"] for item in shown["data"]["skip"]] == [[6, 7]]
    assert as_json(own.bigtrain("data", "diff", run, own.config, "--json"))["same_before"] is None
    where = as_json(own.bigtrain("data", "where", run, "--step", "7", "--json"))
    assert where["recorded_digest"] == where["batch_digest"]
    of_trouble = {document["id"] for document in decision.evidence["documents"]}
    assert of_trouble >= {document["id"] for document in evidence["documents"]}

    before = files_of(run)
    for step, options in ((6, ["--skipped"]), (6, []), (9, [])):
        replayed = forkserver.torchrun(2, "-m", "bigtrain", "replay", run, "--step", step, "--json", *options)
        assert replayed.returncode == 0, replayed.stdout
        found = json.loads(replayed.stdout[replayed.stdout.index("{") :])
        assert found["same_bits"] is True, found
        labels = sum(document["loss_tokens"] for document in found["documents"])
        mean = sum(document["loss"] * document["loss_tokens"] for document in found["documents"]) / labels
        assert math.isclose(mean, found["loss"], rel_tol=2e-3)
        assert found["from_step"] == (4 if step == 6 else 8) and labels == found["recorded"]["tokens"]
    alone = own.bigtrain("replay", run, "--step", "9")
    assert alone.returncode == 0, alone.stderr
    assert "replay under torchrun" in alone.stdout or "bit for bit, at 2 process(es)" in alone.stdout
    assert "json:" in alone.stdout
    assert_refused(own.bigtrain("replay", run, "--step", "9", "--skipped"), found="6 to 7")
    assert files_of(run) == before


@pytest.mark.long
def test_a_spike_is_skipped_though_the_run_is_killed_in_between(sandbox, by_hand, monkeypatch):
    """A spike is left behind though the run is killed between decision and rewind."""
    own = guarded(sandbox, "own")
    run = sandbox.directory / "own"
    status, output = train(own, monkeypatch, fault="spike,rank=0,step=7;kill,rank=0,at=guard.decided")
    assert status == 128 + 9, output
    (decision,) = read_decisions(run / "decisions.jsonl")
    assert (decision.kind, decision.rewind_to, decision.skip.steps) == ("spike", 4, (6, 7))
    assert decision.outliers[0].worst > 50 and not events(sandbox, "own", "rewind")

    status, output = train(own, monkeypatch)  # with the YAML that knows nothing of it
    assert status == 0, output
    assert curve(sandbox.metrics(run)) == by_hand
    assert [event["decision"] for event in events(sandbox, "own", "rewind")] == [1]
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["skip"][0]["steps"] == [6, 7]
    assert train(own, monkeypatch)[0] == 0  # and nothing is told or done twice
    assert len(events(sandbox, "own", "rewind")) == len(read_decisions(run / "decisions.jsonl")) == 1


@pytest.mark.long
def test_a_checkpoint_written_while_it_went_wrong_is_never_gone_on_from(sandbox, by_hand, monkeypatch):
    own = guarded(sandbox, "own", guard={**GUARD, "confirm_steps": 2}, checkpoint={"every_steps": 2})
    run = sandbox.directory / "own"
    spike = "spike,rank=*,step=6,times=9;spike,rank=*,step=7,times=9"
    status, output = train(own, monkeypatch, "train.stop_after=6", fault=spike)
    assert status == 75, output  # stopped on request in the middle of it: everything is saved, the suspicion too
    saved = list_checkpoints(storage_at(run / "checkpoints"))
    assert [checkpoint.step for checkpoint in saved] == [2, 4, 6]
    assert saved[-1].manifest.state["guard"]["signs"][0]["step"] == 6

    status, output = train(own, monkeypatch, fault=spike + ";kill,rank=0,at=guard.decided")
    assert status == 128 + 9, output
    (decision,) = read_decisions(run / "decisions.jsonl")
    assert (decision.rewind_to, decision.skip.steps) == (4, (5, 7))
    status, output = train(own, monkeypatch)
    assert status == 0, output
    resume = events(sandbox, "own", "resume")[-1]
    assert resume["step"] == 4, "the checkpoint of step 6 is void"
    assert all(math.isfinite(m["loss"]) and m["loss"] < 12 for m in sandbox.metrics(run))
    assert list_checkpoints(storage_at(run / "checkpoints"))[-1].manifest.state["decisions"] == 1


@pytest.mark.parametrize(
    "ranks, engine",
    [
        pytest.param(2, {"zero_stage": 3}, id="zero 3"),
        pytest.param(2, {"zero_stage": 2}, id="zero 2", marks=pytest.mark.long),
        pytest.param(1, {"zero_stage": 0, "precision": "fp32"}, id="zero 0 in fp32", marks=pytest.mark.long),
    ],
)
def test_before_the_first_checkpoint_it_goes_back_to_the_first_weights(sandbox, monkeypatch, ranks, engine):
    own, hand = guarded(sandbox, "own", engine=engine), guarded(sandbox, "hand", engine=engine)
    status, output = train(own, monkeypatch, "train.stop_after=4", fault="nan,rank=0,step=3", ranks=ranks)
    assert status == 75 and "going back to step 0" in output, output
    skip = "data.skip=[{steps: [2, 3], reason: by hand}]"
    assert train(hand, monkeypatch, "train.stop_after=4", skip, ranks=ranks)[0] == 75
    assert curve(sandbox.metrics(sandbox.directory / "own")) == curve(sandbox.metrics(sandbox.directory / "hand"))


def test_an_anomaly_that_always_returns_ends_the_run(sandbox, monkeypatch):
    """An anomaly that returns after each rewind ends the run with one message; repaired, the run goes on."""
    own = guarded(sandbox, "own", guard={**GUARD, "max_rewinds": 1})
    run = sandbox.directory / "own"
    result = train(own, monkeypatch, fault="nan,rank=0,step=3,times=0", ranks=1)
    assert_refused(result, "gone back 1 time(s) in a row", fix="guard.max_rewinds")
    assert len(read_decisions(run / "decisions.jsonl")) == 1
    assert events(sandbox, "own", "gave up")[0]["rewinds"] == 1
    # Nothing is worse than before: repaired, the same command goes on.
    status, output = train(own, monkeypatch, ranks=1)
    assert status == 0, output
    assert [m["step"] for m in sandbox.metrics(run)] == list(range(1, 13))


def test_an_anomaly_can_stop_the_run_or_be_noted_only(sandbox, monkeypatch):
    """`guard.on_nonfinite: stop` ends the run uncommitted; `guard.on_spike: note` only records the spike."""
    stops = guarded(sandbox, "stops", guard={**GUARD, "on_nonfinite": "stop"})
    result = train(stops, monkeypatch, fault="nan,rank=0,step=6", ranks=1)
    assert_refused(result, "guard.on_nonfinite", found="not finite at step 6")
    assert [c.step for c in list_checkpoints(storage_at(sandbox.directory / "stops/checkpoints"))] == [4]
    noted = guarded(sandbox, "noted", guard={**GUARD, "on_spike": "note"})
    status, output = train(noted, monkeypatch, fault="spike,rank=0,step=7", ranks=1)
    assert status == 0 and "a spike at step 7" in output, output
    assert [e["signs"][0]["step"] for e in events(sandbox, "noted", "spike")] == [7]
    assert not (sandbox.directory / "noted/decisions.jsonl").exists()


def test_without_an_earlier_checkpoint_the_run_stops(sandbox, monkeypatch):
    """Where checkpoints from before the anomaly existed and none is left, the run stops; it does not start over."""
    own = guarded(sandbox, "own", guard={**GUARD, "confirm_steps": 2}, checkpoint={"every_steps": 2, "keep": 1})
    spike = "spike,rank=*,step=6;spike,rank=*,step=7"
    assert train(own, monkeypatch, "train.stop_after=6", fault=spike, ranks=1)[0] == 75  # keeps that of step 6 alone
    before = files_of(sandbox.directory / "own/checkpoints")
    result = train(own, monkeypatch, fault=spike, ranks=1)
    assert_refused(result, "no checkpoint from before the anomaly is left", fix="checkpoint.keep")
    assert not (sandbox.directory / "own/decisions.jsonl").exists()
    assert files_of(sandbox.directory / "own/checkpoints") == before
