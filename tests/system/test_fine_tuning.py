"""Fine-tuning from the command line: labels keep every promise of a run, and the best checkpoint is kept."""

from __future__ import annotations

import copy
import json

import pytest
import yaml

from tests.refusals import assert_refused
from tests.system.run_sandbox import STATUS_STOPPED, RunSandbox, kill_ranks, small_settings

ENCODER = {
    "family": "modernbert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 1024,
    "max_position_embeddings": 64,
}
EXACT = ("step", "loss", "grad_norm", "batch_digest", "inputs_digest")
SUBJECTS = ("the parser", "a socket", "this module", "the header", "every message")
GOOD, BAD = ("works well", "is quick", "reads clearly"), ("fails badly", "is slow", "breaks often")


def reviews() -> list[dict[str, str]]:
    """Sentences whose class follows from their words."""
    return [
        {"text": f"{subject} {verb}, {number}", "label": label}
        for number in range(12)
        for subject in SUBJECTS
        for label, verbs in (("bad", BAD), ("good", GOOD))
        for verb in verbs
    ]


def questions() -> dict:
    """What works, asked about sentences; every third has no answer."""
    paragraphs = []
    for number in range(60):
        subject, verb = SUBJECTS[number % 5], GOOD[number % 3]
        context = f"number {number}: {subject} {verb} and the rest does not"
        found = [] if number % 3 == 0 else [{"text": verb, "answer_start": context.index(verb)}]
        asked = {"id": f"q{number}", "question": f"what of {subject}?", "answers": found, "is_impossible": not found}
        paragraphs.append({"context": context, "qas": [asked]})
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> RunSandbox:
    """An encoder after 12 steps of masked tokens, and files with labels."""
    directory = tmp_path_factory.mktemp("pretrained")
    settings = small_settings(directory)
    settings["model"], settings["objective"] = ENCODER, {"name": "masked"}
    settings["data"]["tokenizer"]["additional_special_tokens"] = ["[MASK]", "[SEP]"]
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    sandbox = RunSandbox(directory, config)
    assert sandbox.bigtrain("data", "build", config).returncode == 0
    assert sandbox.train(1)[0] == 0
    (directory / "reviews.jsonl").write_text("".join(json.dumps(review) + "\n" for review in reviews()))
    (directory / "questions.json").write_text(json.dumps(questions()))
    return sandbox


def tuned(pretrained: RunSandbox, directory, task: str, **sections: dict) -> RunSandbox:
    """A run of a task that starts from the encoder; its data lie beside those of the encoder."""
    settings = copy.deepcopy(yaml.safe_load(pretrained.config.read_text()))
    settings["run_dir"] = str(directory / "run")
    head = {"classification": "sequence_classification", "extractive_qa": "question_answering"}[task]
    settings["model"] = ENCODER | {"init_from": str(pretrained.run), "task_head": head}
    settings["objective"] = {"name": task}
    files = pretrained.directory
    source = {"name": "reviews", "kind": "jsonl", "path": str(files / "reviews.jsonl"), "label_field": "label"}
    if task == "extractive_qa":
        path = str(files / "questions.json")
        source = {"name": "questions", "kind": "squad", "path": path, "max_query_length": 16, "doc_stride": 16}
    else:
        settings["model"]["num_labels"] = 2
    settings["data"] |= {"dir": str(files / task), "packing": "best_fit", "sources": [source]}
    settings["data"]["tokenizer"] = {"path": str(files / "data" / "tokenizer.json"), "separator": "[SEP]"}
    settings["evaluate"] = {"every_steps": 3, "max_sequences": None, "metric": "accuracy" if head[0] == "s" else "f1"}
    settings["checkpoint"] |= {"keep_best": True, "keep": 1}
    for name, values in sections.items():
        settings[name] |= values
    directory.mkdir()
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    sandbox = RunSandbox(directory, config)
    done = sandbox.bigtrain("data", "build", config)
    assert done.returncode == 0, done.stderr
    return sandbox


def numbers(run: RunSandbox, keys: tuple[str, ...] = EXACT) -> dict[int, tuple]:
    return {record["step"]: tuple(record[key] for key in keys) for record in run.metrics()}


def test_a_classifier_keeps_the_promises_and_its_best_checkpoint(pretrained, tmp_path):
    """Kills, world sizes, baselines, the export, and the evaluation that was the best."""
    whole = tuned(pretrained, tmp_path / "whole", "classification")
    status, output = whole.train(2)
    assert status == 0, output
    wanted = numbers(whole)
    scores = [
        (event["step"], event["validation"][0]["metrics"]["accuracy"])
        for event in whole.events()
        if event["event"] == "evaluate"
    ]
    best = max(scores, key=lambda each: (each[1], -each[0]))[0]
    there = sorted(int(folder.name.removeprefix("step-")) for folder in (whole.run / "checkpoints").glob("step-*"))
    assert there == sorted({best, 12})

    killed = tuned(pretrained, tmp_path / "killed", "classification")
    training = killed.start_forked(2)
    killed.wait_for_step(5)
    kill_ranks(training)
    assert killed.train(2)[0] == 0
    assert numbers(killed) == wanted
    four = tuned(pretrained, tmp_path / "four", "classification", engine={"zero_stage": 3})
    assert four.train(4, "train.micro_batch_size=1", "train.stop_after=3")[0] == STATUS_STOPPED
    same = ("step", "batch_digest", "inputs_digest")
    assert numbers(four, same) == {step: found for step, found in numbers(whole, same).items() if step <= 3}

    done = whole.bigtrain("eval", whole.run, "--baselines", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["validation"]
    assert found["metrics"]["accuracy"] == scores[-1][1]
    assert found["baseline metrics"]["bag of tokens"]["accuracy"] > found["baseline metrics"]["majority"]["accuracy"]
    exported = whole.bigtrain("export", whole.run, tmp_path / "hf", "--to", "hf")
    assert exported.returncode == 0, exported.stderr
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["ModernBertForSequenceClassification"]
    assert config["id2label"] == {"0": "bad", "1": "good"}


def test_a_run_ends_where_evaluations_get_no_better(pretrained, tmp_path):
    """It ends with status 0, and a further start finds that it is over."""
    evaluate = {"every_steps": 1, "metric": "loss", "patience": 2}
    wild = {"optimizer": {"learning_rate": 0.5}, "evaluate": evaluate}
    run = tuned(pretrained, tmp_path / "early", "classification", **wild)
    status, output = run.train(1)
    assert status == 0 and "evaluate.patience" in output, output
    steps = len(run.metrics())
    assert steps < 12
    status, output = run.train(1)
    assert status == 0 and len(run.metrics()) == steps, output


def test_questions_are_answered_as_texts(pretrained, tmp_path):
    run = tuned(pretrained, tmp_path / "answers", "extractive_qa")
    status, output = run.train(1)
    assert status == 0, output
    file = pretrained.directory / "questions.json"
    done = run.bigtrain("eval", run.run, "--answers", file, "--json")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)["answers"]
    assert answers["questions"] == 60 and 0 <= answers["exact_match"] <= answers["f1"] <= 100
    kept = json.loads((run.run / "answers.json").read_text())
    assert set(kept) == {f"q{number}" for number in range(60)}


def test_what_does_not_fit_the_labels_is_one_message(pretrained, tmp_path):
    run = tuned(pretrained, tmp_path / "refused", "classification")
    for override, words in (
        ("model.num_labels=3", ["another number of classes", "2: bad, good"]),
        ("model.task_head=none", ["task_head"]),
        ("objective.name=masked", ["reviews", "classification"]),
        ("objective.class_weights=[1.0]", ["class_weights has 1 weights"]),
        ("evaluate.metric=bleu", ["evaluate.metric bleu is not measured", "accuracy"]),
    ):
        assert_refused(run.bigtrain("train", run.config, override, timeout=200), *words)


def test_a_head_learns_beside_an_adapter(pretrained, tmp_path):
    """LoRA on the frozen encoder: the classifier learns as a whole, and both go to peft."""
    run = tuned(pretrained, tmp_path / "lora", "classification")
    settings = yaml.safe_load(run.config.read_text()) | {"adapter": {"method": "lora", "r": 4}}
    run.config.write_text(yaml.safe_dump(settings))
    status, output = run.train(1)
    assert status == 0, output
    assert run.train(1, "train.steps=14", "checkpoint.allow_change=[train.steps]")[0] == 0
    exported = run.bigtrain("export", run.run, tmp_path / "peft", "--to", "peft")
    assert exported.returncode == 0, exported.stderr
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and "classifier" in config["modules_to_save"]
    merged = run.bigtrain("export", run.run, tmp_path / "hf", "--to", "hf", "--merge")
    assert merged.returncode == 0, merged.stderr
