"""A trained run can say what it was trained on, and is caught when it no longer can."""

import json
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.refusals import assert_refused
from tests.system.run_sandbox import as_json


@pytest.fixture(scope="module")
def contents(undisturbed) -> dict[int, dict]:
    """What `where` says of every step of the run."""
    return {
        step: as_json(undisturbed.bigtrain("data", "where", undisturbed.run, "--step", step, "--json"))
        for step in range(1, 13)
    }


def test_where_gives_the_digest_of_every_step_that_metrics_recorded(undisturbed, contents):
    for record in undisturbed.metrics():
        found = contents[record["step"]]
        assert found["batch_digest"] == found["recorded_digest"] == record["batch_digest"]
        numbers = [sample["sample"] for sample in found["samples"]]
        assert numbers == list(range(record["consumed_samples"] - 8, record["consumed_samples"]))
        parts = [part for sample in found["samples"] for part in sample["documents"]]
        rows = sum(part["end"] - part["start"] for part in parts) + sum(s["padding"] for s in found["samples"])
        assert rows == 8 * 64


def test_where_with_text_shows_what_stands_in_the_corpus(undisturbed):
    found = as_json(undisturbed.bigtrain("data", "where", undisturbed.run, "--step", "5", "--text", "--json"))
    library = Path(sysconfig.get_path("stdlib"))
    for sample in found["samples"]:
        for part in sample["documents"]:
            text = next((library / sample["source"]).rglob(Path(part["file"]).name)).read_text()
            assert part["text"].strip("\N{REPLACEMENT CHARACTER}") in text
    shown = undisturbed.bigtrain("data", "where", undisturbed.run, "--step", "5", "--text").stdout
    assert all(part["text"] in shown for sample in found["samples"] for part in sample["documents"])


def test_when_names_the_steps_that_where_finds_a_document_in(undisturbed, contents):
    steps = {}
    for step, found in contents.items():
        for sample in found["samples"]:
            for part in sample["documents"]:
                steps.setdefault((sample["source"], part["file"], part["id"]), []).append(step)
    for (source, file, document), expected in list(steps.items())[:2]:
        for reference in (document, f"{source}:{file}", f"{source}:{file}:0"):
            found = as_json(undisturbed.bigtrain("data", "when", undisturbed.run, "--document", reference, "--json"))
            assert [row["step"] for row in found["appearances"]] == expected
            assert all(row["done"] for row in found["appearances"]) and found["newest_step"] == 12
            assert found["document"]["id"] == document and not found["document"]["held_out"]


def test_when_says_that_a_document_is_held_out(undisturbed):
    from bigtrain.config import load_settings
    from bigtrain.data import open_datasets
    from bigtrain.data.store.stored_document import StoredDocument

    settings = load_settings(undisturbed.run / "config.yaml")
    held_out = next(d for d in open_datasets(settings.data, model_vocab_size=1024, split="validation") if d.tokens)
    document = StoredDocument(held_out, 0, 0)
    found = as_json(undisturbed.bigtrain("data", "when", undisturbed.run, "--document", document.id, "--json"))
    assert found["document"]["held_out"] and found["appearances"] == []
    assert "held out" in undisturbed.bigtrain("data", "when", undisturbed.run, "--document", document.id).stdout


def test_where_and_when_refuse_settings_that_the_run_was_not_trained_with(undisturbed, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(undisturbed.run / "metrics.jsonl", run)
    settings = yaml.safe_load((undisturbed.run / "config.yaml").read_text())
    settings["train"]["seed"] += 1
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    for arguments in (("where", run, "--step", "3"), ("when", run, "--document", "json:scanner.py")):
        result = undisturbed.bigtrain("data", *arguments)
        recorded = undisturbed.metrics()[2 if arguments[0] == "where" else 11]["batch_digest"]
        assert_refused(result, "trained on", recorded)


def test_an_unknown_step_or_document_is_one_clear_message(undisturbed):
    """A step beyond the schedule or an unknown document is one clear message."""
    for arguments in (("where", "--step", "13"), ("where", "--step", "0"), ("when", "--document", "json:no.py")):
        result = undisturbed.bigtrain("data", arguments[0], undisturbed.run, *arguments[1:])
        assert_refused(result)


def test_card_counts_what_the_metrics_say_was_consumed(undisturbed, contents):
    card = as_json(undisturbed.bigtrain("data", "card", undisturbed.run, "--json"))
    assert (card["step"], card["consumed_samples"]) == (12, 96)
    samples = [sample["source"] for found in contents.values() for sample in found["samples"]]
    assert {source["name"]: source["samples"] for source in card["sources"]} == Counter(samples)
    assert card == json.loads((undisturbed.run / "data-card.json").read_text())
    markdown = undisturbed.bigtrain("data", "card", undisturbed.run).stdout
    assert markdown == (undisturbed.run / "data-card.md").read_text()
    assert all(source["train"]["dataset_id"] in markdown for source in card["sources"])


def test_an_exported_model_carries_the_card_of_its_step(undisturbed, tmp_path):
    out = tmp_path / "hf"
    result = undisturbed.bigtrain("export", undisturbed.run, out, "--step", "8", "--no-check")
    assert result.returncode == 0, result.stderr
    card = json.loads((out / "data-card.json").read_text())
    assert (card["step"], card["consumed_samples"]) == (8, 64)
    readme = (out / "README.md").read_text()
    metadata = yaml.safe_load(readme.split("---\n")[1])
    assert metadata["library_name"] == "transformers"
    for text in (readme, (out / "data-card.md").read_text()):
        assert card["plan_id"] in text and card["sources"][0]["train"]["dataset_id"] in text
    assert "step 8 of 12" in readme


def test_the_card_of_the_last_step_shows_the_validation_that_was_recorded(undisturbed, tmp_path):
    assert undisturbed.bigtrain("export", undisturbed.run, tmp_path / "hf", "--no-check").returncode == 0
    recorded = [e for e in undisturbed.events() if e["event"] == "evaluate" and e["step"] == 12][-1]["validation"]
    readme = (tmp_path / "hf" / "README.md").read_text()
    assert all(f"| {source['source']} | {source['loss']:.4f} |" in readme for source in recorded)


def test_a_model_is_exported_even_where_its_data_are_gone_and_that_is_said(undisturbed, tmp_path):
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(undisturbed.run, run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    data.mkdir()
    shutil.copy(Path(settings["data"]["dir"]) / "tokenizer.json", data)
    settings["data"]["dir"] = str(data)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    result = undisturbed.bigtrain("export", run, tmp_path / "hf", "--no-check")
    assert result.returncode == 0 and "without a data card" in result.stderr
    assert "Not at hand" in (tmp_path / "hf" / "README.md").read_text()
    assert not (tmp_path / "hf" / "data-card.md").exists()


def test_questions_about_data_do_not_wait_for_torch(undisturbed):
    code = (
        "import sys; from pathlib import Path; from bigtrain.rundir.provenance import *;"
        "documents_of_step(Path(sys.argv[1]), 3, text=True); steps_of_document(Path(sys.argv[1]), 'json:scanner.py');"
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, undisturbed.run], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
