"""A run may change what it has not trained on yet, and nothing else; and can still say what it was trained on."""

import sysconfig

import pytest
import yaml

from tests.refusals import assert_refused
from tests.system.run_sandbox import RunSandbox, as_json, small_settings

PAST = "data.phases=[{from_tokens: 500, weights: {json: 1}}]"
AHEAD = [
    "data.phases=[{from_tokens: 4000, weights: {json: 1, email: 2}}, {from_tokens: 999999, weights: {json: 1}}]",
    "data.skip=[{steps: [9, 10], reason: spike}, {source: json, files: '*coder.py', from_step: 8, reason: boring}]",
    "data.sources.0.max_epochs=40",
]


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A run with a batch-size warm-up that was stopped after step 6, and went on with other data ahead."""
    directory = tmp_path_factory.mktemp("plan")
    settings = small_settings(directory)
    settings["data"]["packing"] = "best_fit"
    settings["train"]["batch_size_warmup"] = [{"steps": 3, "global_batch_size": 4}]
    config = directory / "run.yaml"
    config.write_text(yaml.safe_dump(settings))
    sandbox = RunSandbox(directory, config)
    assert sandbox.bigtrain("data", "build", config).returncode == 0
    status, output = sandbox.train(2, "train.stop_after=6")
    assert status == 75, output
    before = (sandbox.run / "config.yaml").read_text()

    status, output = sandbox.train(1, PAST)
    assert status == 1
    assert "phases differ; the same only up to step 3, sample 8" in output
    assert "Traceback" not in output
    assert (sandbox.run / "config.yaml").read_text() == before

    ahead = directory / "ahead.yaml"
    shown = sandbox.bigtrain("config", "show", config, *AHEAD)
    ahead.write_text(shown.stdout)
    sandbox.parting = as_json(sandbox.bigtrain("data", "diff", sandbox.run, ahead, "--json"))
    sandbox.diff = sandbox.bigtrain("data", "diff", sandbox.run, ahead).stdout
    assert (
        as_json(sandbox.bigtrain("data", "diff", sandbox.run, sandbox.run, *AHEAD, "--json"))["same_before"]
        == (sandbox.parting["same_before"])
    )
    status, output = sandbox.train(2, *AHEAD)
    assert status == 0, output
    assert "data.phases.1 starts after the last step" in output
    return sandbox


def test_diff_names_the_first_step_with_other_data(changed):
    """Diff says from which step on the data are others and that the run may change over."""
    assert changed.parting["same_before"] == {"sample": 4 * 3 + 8 * 4, "step": 8, "tokens": 64 * (4 * 3 + 8 * 4)}
    assert changed.parting["differs"] == ["sources", "phases", "skipped", "unlabelled"]
    assert changed.parting["consumed"] == [4 * 3 + 8 * 3, None]
    assert "all batches before step 8 are the same" in changed.diff
    assert "may change over" in changed.diff


def test_the_change_is_recorded(changed):
    (event,) = [event for event in changed.events() if event["event"] == "plan"]
    assert (event["step"], event["same_before_step"]) == (6, 8)
    assert event["differs"] == changed.parting["differs"]
    assert [skip["reason"] for skip in event["skip"]] == ["spike", "boring"]


def test_where_gives_the_digest_of_every_step_across_all_changes(changed):
    from bigtrain.rundir.provenance import documents_of_step

    steps, numbers = [], []
    for record in changed.metrics():
        found = documents_of_step(changed.run, record["step"])
        assert found.batch_digest == record["batch_digest"]
        samples = [sample.sample for sample in found.samples]
        assert samples[-1] + 1 == record["consumed_samples"]
        parts = [part for sample in found.samples for part in sample.documents]
        labels = sum(part.end - part.start - (part.end == part.tokens) for part in parts if part.labelled)
        assert labels == record["tokens"]
        skipped = {part.file for part in parts if not part.labelled}
        assert all(file.endswith("coder.py") and record["step"] >= 8 for file in skipped)
        steps.append(record["step"])
        numbers += samples
    assert steps == list(range(1, 13))
    assert numbers == list(range(4 * 3 + 8 * 9))


def test_when_says_that_a_skipped_document_has_no_labels(changed):
    found = as_json(changed.bigtrain("data", "when", changed.run, "--document", "json:encoder.py", "--json"))
    assert {row["labelled"] for row in found["appearances"] if row["step"] < 8} <= {True}
    assert {row["labelled"] for row in found["appearances"] if row["step"] >= 8} <= {False}
    assert found["appearances"]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ({"files": "*.md"}, "no training document of source 'json' from a file like '*.md'"),
        ({"ids": ["ab" * 16]}, f"source 'json' has no training document {'ab' * 16}"),
    ],
)
def test_a_skip_that_matches_no_document_is_refused(changed, tmp_path, which, message):
    """A skip that matches no document is refused before anything is written."""
    before = {path: (changed.run / path).read_bytes() for path in ("config.yaml", "events.jsonl")}
    settings = yaml.safe_load(before["config.yaml"])
    settings["data"]["skip"].append({"source": "json", "from_step": 13, "reason": "no such document", **which})
    config = tmp_path / "skip.yaml"
    config.write_text(yaml.safe_dump(settings))
    for result in (changed.bigtrain("train", config), changed.bigtrain("data", "diff", config, config)):
        assert_refused(result, message)
    assert before == {path: (changed.run / path).read_bytes() for path in before}


def test_a_source_that_nothing_is_drawn_from_yet_can_be_added_to_a_run(sandbox):
    settings = yaml.safe_load(sandbox.config.read_text())
    settings["data"]["dir"] = str(sandbox.directory / "data")
    sandbox.config.write_text(yaml.safe_dump(settings))
    assert sandbox.bigtrain("data", "build", sandbox.config).returncode == 0
    assert sandbox.train(1, "train.stop_after=1")[0] == 75

    late = {"name": "late", "kind": "text", "path": sysconfig.get_path("stdlib") + "/html/*.py", "weight": 0}
    settings["data"]["sources"].append(late)
    sandbox.config.write_text(yaml.safe_dump(settings))
    assert sandbox.bigtrain("data", "build", sandbox.config).returncode == 0
    diff = sandbox.bigtrain("data", "diff", sandbox.run, sandbox.config).stdout
    assert "they differ in sources, phases, and every batch is the same" in diff
    status, output = sandbox.train(1, "train.stop_after=2")
    assert status == 75, output
    (event,) = [event for event in sandbox.events() if event["event"] == "plan"]
    assert event["same_before_step"] is None
