"""The main job: raw text to a model that other tools load, and the records it leaves."""

import json
import math
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from bigtrain.base.errors import BigtrainError
from bigtrain.trained import TextModel, export_run, export_run_to_gguf
from bigtrain.trained.trained import TrainedModel
from tests.refusals import assert_refused
from tests.system.run_sandbox import STATUS_STOPPED, as_json, curve


def test_a_run_leaves_the_files_and_the_fields_that_scripts_rely_on(undisturbed):
    run = undisturbed.run
    metrics = undisturbed.metrics()
    assert [m["step"] for m in metrics] == list(range(1, 13))
    promised = {
        "step", "loss", "learning_rate", "grad_norm", "tokens", "consumed_samples", "step_seconds", "data_seconds",
        "forward_backward_seconds", "optimizer_seconds", "tokens_per_second", "mfu", "mfu_causal", "mfu_of",
        "batch_digest", "world_size", "counted_seconds", "start", "uptime", "time",
    }  # fmt: skip
    assert all(set(m) == promised for m in metrics)
    parts = ("data_seconds", "forward_backward_seconds", "optimizer_seconds")
    assert all(0 < sum(m[part] for part in parts) <= m["step_seconds"] + 1e-4 for m in metrics)
    assert all(m["mfu_of"] == "measured" and m["mfu_causal"] <= m["mfu"] for m in metrics)  # on a CPU
    assert metrics[-1]["consumed_samples"] == 12 * 8
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert abs(metrics[0]["loss"] - math.log(1024)) < 0.5
    assert "step 12" in (run / "logs/rank-00000.log").read_text()
    other = run / "logs/rank-00001.log"  # warnings only: for the rest it would say the same
    assert not other.exists() or all(" WARNING " in line for line in other.read_text().splitlines())
    events = [e["event"] for e in undisturbed.events()]
    assert events[0] == "start" and events[-1] == "stop" and "commit" in events and "evaluate" in events
    committed = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert committed == ["step-00000004", "step-00000008", "step-00000012"]
    assert all((run / "checkpoints" / name / "manifest.json").is_file() for name in committed)


def test_config_yaml_of_the_run_starts_the_same_run_again(undisturbed, tmp_path):
    settings = yaml.safe_load((undisturbed.run / "config.yaml").read_text())
    assert settings["train"]["steps"] == 12
    shown = as_json(undisturbed.bigtrain("config", "show", str(undisturbed.run / "config.yaml"), "--json"))
    assert shown == as_json(undisturbed.bigtrain("config", "show", str(undisturbed.config), "--json"))


def test_a_second_start_of_a_finished_run_says_so_and_changes_nothing(undisturbed):
    before = curve(undisturbed.metrics())
    status, output = undisturbed.train(2)
    assert status == 0 and "all steps done" in output
    assert curve(undisturbed.metrics()) == before
    assert undisturbed.events()[-1]["event"] == "stop"


def test_eval_computes_the_validation_loss_that_training_recorded(undisturbed):
    recorded = [e for e in undisturbed.events() if e["event"] == "evaluate" and e["step"] == 12][-1]["validation"]
    computed = as_json(undisturbed.apart("eval", str(undisturbed.run), "--json"))
    assert computed["step"] == 12
    for theirs, ours in zip(recorded, computed["validation"], strict=True):
        assert theirs["source"] == ours["source"] and theirs["tokens"] == ours["tokens"]
        assert math.isclose(theirs["loss"], ours["loss"], rel_tol=2e-3)


def test_eval_with_baselines_gives_perplexities_of_the_same_tokens(undisturbed):
    rows = as_json(undisturbed.bigtrain("eval", str(undisturbed.run), "--yardsticks", "--json"))["validation"]
    for row in rows:
        assert 1 < row["5-gram perplexity"] < row["unigram perplexity"] < 1024


def test_report_shows_the_baselines_of_the_newest_evaluation(undisturbed):
    undisturbed.bigtrain("eval", str(undisturbed.run), "--baselines")
    summary = undisturbed.bigtrain("report", str(undisturbed.run)).stdout
    page = (undisturbed.run / "report.html").read_text()
    assert "unigram model" in summary and "5-gram model" in summary
    assert "perplexity, json, 5-gram" in page


def test_generate_gives_the_same_text_for_the_same_seed(undisturbed):
    """Generate continues prompts the same way for the same seed as json and on the terminal."""
    arguments = ("generate", str(undisturbed.run), "import ", "-", "--stop", "\n", "--max-new-tokens", "8")
    made = as_json(undisturbed.bigtrain(*arguments, "--json", stdin="def \n"))
    assert made["step"] == 12 and made["tokens_per_second"] > 0
    assert [text["prompt"] for text in made["texts"]] == ["import ", "def "]
    for text in made["texts"]:
        assert 1 <= len(text["tokens"]) <= 8 and "\n" not in text["completion"]
    printed = undisturbed.bigtrain(*arguments, stdin="def \n").stdout
    assert printed == "\n----\n".join(text["prompt"] + text["completion"] for text in made["texts"]) + "\n"


def test_export_is_checked_against_transformers_and_keeps_its_promise(undisturbed, tmp_path, require):
    require("transformers")
    result = as_json(undisturbed.bigtrain("export", str(undisturbed.run), str(tmp_path / "hf"), "--json"))
    assert result["step"] == 12 and 0 <= result["largest_logit_difference"] < 1e-3
    assert json.loads((tmp_path / "hf/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_export_to_gguf_is_checked_against_llama_cpp(undisturbed, tmp_path, require):
    require("gguf")
    require("llama_cpp")
    result = as_json(undisturbed.bigtrain("export", undisturbed.run, tmp_path / "out", "--to", "gguf", "--json"))
    assert result["step"] == 12 and result["dtype"] == "bfloat16" and result["logit_difference"] < 0.05
    assert result["out"] == str(tmp_path / "out/model.gguf") and (tmp_path / "out/model.gguf").is_file()
    from bigtrain.trained.export_gguf import export_run_to_gguf

    file, said = tmp_path / "exact.gguf", []
    exact = export_run_to_gguf(undisturbed.run, file, step=8, dtype="float32", check=True, report=said.append)
    assert exact.out == str(file) and exact.step == 8 and exact.logit_difference < 1e-5 and not said


def test_report_is_one_page_without_links_to_other_files(undisturbed):
    summary = as_json(undisturbed.bigtrain("report", str(undisturbed.run), "--json"))
    page = (undisturbed.run / "report.html").read_text()
    assert summary["step"] == 12 and summary["validation"]
    # Six curves and the line of time, each in a form for desks and one for telephones; two pictures of the data funnel.
    assert page.count("<svg") == 16 and "src=" not in page and "href=" not in page
    for title in ("Loss", "Learning rate", "Gradient norm", "Throughput", "MFU", "Where the time of a step goes"):
        assert title in page


def test_checkpoint_commands_list_and_verify_what_is_committed(undisturbed):
    listed = as_json(undisturbed.bigtrain("checkpoint", "list", str(undisturbed.run), "--json"))
    assert [checkpoint["step"] for checkpoint in listed] == [4, 8, 12]
    verified = as_json(undisturbed.bigtrain("checkpoint", "verify", str(undisturbed.run), "--json"))
    assert all(checkpoint["problems"] == [] for checkpoint in verified)


def test_batches_are_equal_at_one_two_and_four_processes(undisturbed, sandbox):
    """The same batches and nearly the same losses at one two and four processes."""
    expected = undisturbed.metrics()[:6]
    for processes in (1, 4):
        run = sandbox.directory / f"run{processes}"
        status, output = sandbox.train(processes, f"run_dir={run}", "train.stop_after=6")
        assert status == STATUS_STOPPED, output
        metrics = sandbox.metrics(run)
        assert [m["batch_digest"] for m in metrics] == [m["batch_digest"] for m in expected]
        assert {m["world_size"] for m in metrics} == {processes}
        for ours, theirs in zip(metrics, expected, strict=True):
            assert math.isclose(ours["loss"], theirs["loss"], rel_tol=5e-3)


class TestAnEditedConfig:
    """RUN/config.yaml says what a run was last started with; its checkpoints say which model they are."""

    @pytest.fixture
    def edited(self, undisturbed, tmp_path):
        def edit(**sections: dict[str, object]) -> Path:
            run = tmp_path / "run"
            if not run.exists():
                shutil.copytree(undisturbed.run, run)
            settings = yaml.safe_load((undisturbed.run / "config.yaml").read_text())
            for name, values in sections.items():
                settings[name] |= values
            settings["data"]["dir"] = str(undisturbed.directory / settings["data"]["dir"])
            (run / "config.yaml").write_text(yaml.safe_dump(settings))
            return run

        return edit

    OPENERS: ClassVar = {
        "eval": lambda run, out: TrainedModel.open(run),
        "generate": lambda run, out: TextModel.open(run, 8),
        "hf": lambda run, out: export_run(run, out, step=None, check=False, report=str),
        "gguf": lambda run, out: export_run_to_gguf(run, out, step=None, dtype=None, check=False, report=str),
    }

    @pytest.mark.parametrize("use", OPENERS)
    def test_another_model_than_the_checkpoints_is_refused(self, use, edited, tmp_path):
        """With both values, by every command that opens a checkpoint, and nothing is written."""
        for values, found, wanted in (
            ({"rope_theta": 5000.0}, "model.rope_theta: 5000.0", "model.rope_theta: 10000.0"),
            ({"num_hidden_layers": 1}, "model.num_hidden_layers: 1", "model.num_hidden_layers: 2"),
        ):
            run = edited(model=values)
            with pytest.raises(BigtrainError) as caught:
                self.OPENERS[use](run, tmp_path / "out")
            assert_refused(caught, "does not have the model of the checkpoint", found=found, wanted=wanted)
            assert not (tmp_path / "out").exists()

    def test_an_allowed_change_leaves_older_checkpoints_their_own_model(self, edited, caplog):
        """The run may go on with the new value, and the checkpoint is opened with the one it was trained with."""
        run = edited(model={"rope_theta": 5000.0}, checkpoint={"allow_change": ["model.rope_theta"]})
        assert TrainedModel.open(run).settings.model.rope_theta == 10000.0
        assert "model.rope_theta 10000.0, which is used" in caplog.text
        run = edited(model={"rope_theta": 5000.0})
        with (run / "events.jsonl").open("a") as events:
            line = {"time": 1.0, "step": 12, "event": "change", "key": "model.rope_theta", "from": 1e4, "to": 5e3}
            events.write(json.dumps(line) + "\n")
        assert TrainedModel.open(run).settings.model.rope_theta == 10000.0
        with pytest.raises(BigtrainError, match="does not have the model"):
            TrainedModel.open(edited(model={"rope_theta": 77.0}))

    def test_what_only_training_knows_is_no_other_model(self, edited):
        run = edited(model={"z_loss_coef": 0.5, "initializer_range": 0.5}, optimizer={"learning_rate": 0.5})
        assert TrainedModel.open(run).step == 12
