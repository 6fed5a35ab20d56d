"""From pre-training to a classifier that transformers loads, by the ordinary commands."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.refusals import assert_refused
from tests.system.run_sandbox import RunSandbox, as_json, small_settings

ENCODER = {
    "family": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "vocab_size": 1024, "max_position_embeddings": 64,
}  # fmt: skip
KINDS = ["class", "def", "import"]


def write_statements(path: Path) -> int:
    """Statements of the standard library without their first word, which is the label."""
    found = 0
    with path.open("w", encoding="utf-8") as file:
        for source in sorted(Path(sysconfig.get_path("stdlib"), "email").glob("*.py")):
            for line in source.read_text(encoding="utf-8").splitlines():
                kind, _, rest = line.strip().partition(" ")
                if kind in KINDS:
                    file.write(json.dumps({"statement": rest, "kind": kind}) + "\n")
                    found += 1
    return found


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> RunSandbox:
    """A masked language model."""
    directory = tmp_path_factory.mktemp("pretrained")
    settings = small_settings(directory) | {"model": ENCODER, "objective": {"name": "masked"}}
    settings["data"]["tokenizer"] |= {
        "additional_special_tokens": ["[PAD]", "[MASK]", "[CLS]"], "begin_of_text": "[CLS]",
    }  # fmt: skip
    return trained(RunSandbox(directory, directory / "config.yaml"), settings)


def trained(sandbox: RunSandbox, settings: dict[str, Any]) -> RunSandbox:
    sandbox.config.write_text(yaml.safe_dump(settings))
    done = sandbox.bigtrain("data", "build", sandbox.config)
    assert done.returncode == 0, done.stderr
    status, output = sandbox.train(2)
    assert status == 0, output
    return sandbox


def settings_of_task(pretrained: RunSandbox, directory: Path, names: list[str]) -> dict[str, Any]:
    settings = yaml.safe_load(pretrained.config.read_text())
    settings["run_dir"] = str(directory / "run")
    settings["model"] |= {
        "init_from": str(pretrained.run), "task_head": "sequence_classification", "num_labels": len(names),
        "classifier_dropout": 0.1, "hidden_dropout": 0.1, "label_smoothing": 0.05,
    }  # fmt: skip
    settings["objective"] = {"name": "classification", "class_weights": [1.0, 0.5, 2.0]}
    settings["optimizer"] |= {"layer_lr_decay": 0.8}
    settings["engine"] |= {"zero_stage": 3}
    settings["data"] |= {
        "dir": str(directory / "data"),
        "packing": "best_fit",
        "sources": [
            {
                "name": "statements", "kind": "jsonl", "path": str(directory / "statements.jsonl"),
                "text_field": "statement", "label_field": "kind", "label_names": names,
            }
        ],
    }  # fmt: skip
    settings["data"]["tokenizer"] |= {"path": str(pretrained.directory / "data" / "tokenizer.json")}
    return settings


@pytest.mark.slow
def test_a_classifier_is_fine_tuned_and_exported_with_its_names(
    pretrained: RunSandbox, tmp_path: Path, require: Any
) -> None:
    """It starts from the run, learns at ZeRO 3 with all that fine-tuning has, and transformers names the classes."""
    require("transformers")
    from transformers import pipeline

    assert write_statements(tmp_path / "statements.jsonl") > 200
    sandbox = RunSandbox(tmp_path, tmp_path / "config.yaml")
    settings = settings_of_task(pretrained, tmp_path, KINDS)
    trained(sandbox, settings)
    losses = [record["loss"] for record in sandbox.metrics()]
    assert losses[-1] < losses[0] - 0.1
    done = sandbox.bigtrain("export", sandbox.run, tmp_path / "hf", "--json")
    assert done.returncode == 0, done.stderr
    assert 0 <= as_json(done)["largest_logit_difference"] < 1e-3
    classify = pipeline("text-classification", model=str(tmp_path / "hf"))
    answers = classify(["get_payload(self, i=None, decode=False):", "re", "MIMEText(MIMENonMultipart):"])
    assert {answer["label"] for answer in answers} <= set(KINDS)

    # Classes in another order would be other classes for the classifier that is kept.
    again = settings | {
        "run_dir": str(tmp_path / "again"),
        "model": settings["model"] | {"init_from": str(sandbox.run)},
    }
    again["data"] = settings_of_task(pretrained, tmp_path, KINDS[::-1])["data"] | {"dir": str(tmp_path / "other")}
    other = RunSandbox(tmp_path, tmp_path / "again.yaml")
    other.config.write_text(yaml.safe_dump(again))
    assert other.bigtrain("data", "build", other.config).returncode == 0
    assert_refused(other.train(1), "has other classes than the data", found="import, def, class", wanted="class, def")
