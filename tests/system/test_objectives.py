"""Objectives from the command line: each keeps the promises of a run, at any world size and after every kill."""

from __future__ import annotations

import copy
import json

import pytest
import yaml

from tests import forkserver
from tests.matrix import thinned
from tests.refusals import assert_refused
from tests.system.run_sandbox import STATUS_STOPPED, RunSandbox, kill_ranks, small_settings

SENTINELS = [f"<extra_id_{number}>" for number in range(20)]
ADDITIONAL = ["<pad>", "[MASK]", "[CLS]", "[SEP]", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", *SENTINELS]
ENCODER = {
    "family": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 1024,
    "max_position_embeddings": 64,
}
OBJECTIVES = {
    "fill_in_the_middle": {"objective": {"name": "fill_in_the_middle"}},
    "masked": {"objective": {"name": "masked"}, "model": ENCODER},
    "prefix": {"objective": {"name": "prefix"}},
    "permutation": {"objective": {"name": "permutation"}, "model": ENCODER | {"family": "xlnet"}},
    "span_corruption": {"objective": {"name": "span_corruption"}, "model": ENCODER | {"family": "t5"}},
    "denoising": {"objective": {"name": "denoising"}, "model": ENCODER | {"family": "t5_v1_1"}},
    "next_sentence": {
        "objective": {"name": "masked", "sentence_task": "next_sentence"},
        "model": ENCODER | {"sentence_head": True},
        "data": {"packing": "next_sentence_pairs"},
    },
    "sentence_order": {
        "objective": {"name": "masked", "sentence_task": "sentence_order"},
        "model": ENCODER | {"family": "albert", "embedding_size": 32, "sentence_head": True},
        "data": {"packing": "sentence_pairs"},
    },
    "translation": {
        "objective": {"name": "translation"},
        "model": ENCODER | {"family": "marian", "label_smoothing": 0.1},
        "data": {"packing": "best_fit", "sources": [{"name": "django", "kind": "gettext", "package": "django"}]},
    },
    "mixture": {
        "objective": {
            "name": "mixture",
            "components": [
                {"name": "span_corruption", "weight": 2},
                {"name": "span_corruption", "noise_density": 0.5, "decoder_start_token": "[CLS]"},
                {"name": "denoising", "decoder_start_token": "[SEP]"},
            ],
        },
        "model": ENCODER | {"family": "t5"},
    },
    "whole_words": {"objective": {"name": "masked", "whole_words": True, "mask_rate": 0.3}, "model": ENCODER},
}
DROPPED = {"masked_with_dropout": "masked", "denoising_with_dropout": "denoising"}
RATES = {f"{place}_dropout": 0.1 for place in ("embedding", "attention", "hidden", "activation", "final")}
OBJECTIVES |= {name: OBJECTIVES[of] | {"model": OBJECTIVES[of]["model"] | RATES} for name, of in DROPPED.items()}
EXACT = ("step", "loss", "grad_norm", "tokens", "batch_digest", "inputs_digest")


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> RunSandbox:
    """Data whose tokenizer has the tokens that objectives need."""
    directory = tmp_path_factory.mktemp("objectives")
    settings = small_settings(directory)
    settings["data"]["tokenizer"]["additional_special_tokens"] = ADDITIONAL
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    sandbox = RunSandbox(directory, config)
    done = sandbox.bigtrain("data", "build", config)
    assert done.returncode == 0, done.stderr
    return sandbox


def run_of(data: RunSandbox, directory, objective: str, name: str, **engine: object) -> RunSandbox:
    settings = yaml.safe_load(data.config.read_text())
    changes = copy.deepcopy(OBJECTIVES[objective])
    settings["data"] |= changes.pop("data", {})
    settings |= changes
    settings["run_dir"] = str(directory / name / "run")
    settings["engine"] |= engine
    (directory / name).mkdir()
    config = directory / name / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    sandbox = RunSandbox(directory / name, config)
    if "packing" in settings["data"]:
        if settings["data"]["sources"][0]["kind"] == "gettext":
            settings["data"]["sources"][0]["languages"] = ["de", "fr"]
            settings["data"]["dir"] = str(data.directory / "pairs")
            config.write_text(yaml.safe_dump(settings))
        assert sandbox.bigtrain("data", "build", config).returncode == 0
    return sandbox


def numbers(sandbox: RunSandbox, keys: tuple[str, ...] = EXACT) -> list[tuple]:
    return [tuple(record[key] for key in keys) for record in sandbox.metrics()]


def assert_fills_masks(run: RunSandbox) -> None:
    """transformers' own pipeline takes the export as it is."""
    done = run.bigtrain("export", run.run, run.directory / "hf", "--to", "hf")
    assert done.returncode == 0, done.stderr
    transformers = pytest.importorskip("transformers")
    fill = transformers.pipeline("fill-mask", str(run.directory / "hf"), device="cpu", top_k=2)
    (first, _) = fill("import [MASK]")
    evaluated = run.bigtrain("eval", run.run, "--baselines", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    for source in json.loads(evaluated.stdout)["validation"]:
        assert 50 < source["unigram perplexity"] < 1024 and "5-gram perplexity" not in source
        assert 0 < source["unigram accuracy"] < 0.5 and 0 <= source["accuracy"] < 0.9
    assert first["token_str"] and fill.tokenizer.pad_token == "<pad>"


def assert_writes_spans(run: RunSandbox) -> None:
    """From the command line with sentinels in the prompt, and as samples of held-out documents."""
    done = run.bigtrain("generate", run.run, "x = <extra_id_0> + 1", "", "--greedy", "--max-new-tokens", "6", "--json")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["texts"]
    assert 0 < len(first["tokens"]) <= 6 and first["prompt"] == "x = <extra_id_0> + 1" and second["tokens"]
    shown = run.bigtrain("generate", run.run, "x = <extra_id_0> + 1", "--greedy", "--max-new-tokens", "6")
    assert shown.stdout == f"{first['prompt']}\n{first['completion']}\n"
    reported = run.bigtrain("report", run.run, "--samples", "2")
    assert reported.returncode == 0, reported.stderr
    samples = json.loads((run.run / "samples.json").read_text())["samples"]
    assert len(samples) == 2 and all("<extra_id_0>" in sample["prompt"] for sample in samples)


def assert_translates(run: RunSandbox) -> None:
    """BLEU and chrF of held-out pairs beside those of copies, and a text from the command line."""
    done = run.bigtrain("eval", run.run, "--translations", "12", "--json")
    assert done.returncode == 0, done.stderr
    (scores,) = json.loads(done.stdout)["translations"]
    assert 6 <= scores["pairs"] <= 12 and 0 <= scores["bleu"] <= 100 and scores["copy_chrf"] > 0
    assert scores["signature"].startswith("nrefs:1|") and len(scores["examples"]) == 3
    shown = run.bigtrain("eval", run.run, "--translations", "3")
    assert shown.returncode == 0 and "BLEU of copies" in shown.stdout
    written = run.bigtrain("generate", run.run, ">>de<< Save", "--greedy", "--max-new-tokens", "5", "--json")
    assert written.returncode == 0, written.stderr
    reported = run.bigtrain("report", run.run, "--samples", "1")
    assert reported.returncode == 0, reported.stderr
    (sample,) = json.loads((run.run / "samples.json").read_text())["samples"]
    assert ">>" in sample["prompt"]


def assert_relates_sentences(run: RunSandbox) -> None:
    """Both terms of the loss are recorded, and the share of pairs whose relation is right is evaluated."""
    for record in run.metrics():
        assert record["loss"] == pytest.approx(record["token_loss"] + record["example_loss"])
    done = run.bigtrain("eval", run.run, "--json")
    assert done.returncode == 0, done.stderr
    assert all(0 <= source["sentence accuracy"] <= 1 for source in json.loads(done.stdout)["validation"])
    refused = run.bigtrain("eval", run.run, "--translations", "3")
    assert_refused(refused, "translates nothing", "objective.name masked")


def assert_goes_to_transformers(run: RunSandbox) -> None:
    """The export is compared with transformers' logits; evaluation beside a unigram model; no text is continued."""
    done = run.bigtrain("export", run.run, run.directory / "hf", "--to", "hf")
    assert done.returncode == 0 and "logits equal ours within" in done.stdout + done.stderr, done.stderr
    evaluated = run.bigtrain("eval", run.run, "--baselines", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    for source in json.loads(evaluated.stdout)["validation"]:
        assert 50 < source["unigram perplexity"] < 1024 and "5-gram perplexity" not in source
    assert_refused(run.bigtrain("generate", run.run, "def load("), "continues no text", "two_stream")


def assert_continues_prefixes(run: RunSandbox) -> None:
    """A prompt is a prefix, held-out text is evaluated beside a 5-gram model, and no other tool gets the model."""
    done = run.bigtrain("generate", run.run, "def load(", "--json", "--max-new-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["texts"][0]["tokens"]) <= 8
    evaluated = run.bigtrain("eval", run.run, "--baselines", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    for source in json.loads(evaluated.stdout)["validation"]:
        assert source["unigram perplexity"] > source["5-gram perplexity"] > 1
    for to in ("hf", "gguf"):
        refused = run.bigtrain("export", run.run, run.directory / to, "--to", to)
        assert_refused(refused, "from one side only", "objective.name prefix", "allow_change")


@pytest.mark.parametrize("objective", thinned(OBJECTIVES, keep=["next_sentence", "span_corruption"]))
def test_a_run_is_the_same_after_kills_and_at_other_world_sizes(with_tokens, tmp_path, objective):
    """Inputs are equal at 1, 2 and 4 ranks; what was killed repeats its steps bit for bit; a step can be replayed."""
    whole = run_of(with_tokens, tmp_path, objective, "whole")
    assert whole.train(2)[0] == 0
    steps = numbers(whole)
    assert len({inputs for *_, inputs in steps}) == 12 and len({batch for *_, batch, _ in steps}) == 12

    if objective == "masked":
        assert_fills_masks(whole)
    if objective == "span_corruption":
        assert_writes_spans(whole)
    if objective == "translation":
        assert_translates(whole)
    if "sentence" in objective:
        assert_relates_sentences(whole)
    if objective == "permutation":
        assert_goes_to_transformers(whole)
    if objective == "prefix":
        assert_continues_prefixes(whole)

    killed = run_of(with_tokens, tmp_path, objective, "killed")
    training = killed.start_forked(2)
    killed.wait_for_step(6)
    kill_ranks(training)
    assert killed.train(2, "train.stop_after=10")[0] == STATUS_STOPPED
    status, output = killed.train(2)
    assert status == 0, output
    assert {numbers_of_step[0]: numbers_of_step for numbers_of_step in numbers(killed)} == {
        numbers_of_step[0]: numbers_of_step for numbers_of_step in steps
    }

    for world, stage in ((1, 0), (4, 3)):
        other = run_of(with_tokens, tmp_path, objective, f"ranks-{world}", zero_stage=stage, precision="fp32")
        status, output = other.train(world, "train.micro_batch_size=1", "train.stop_after=4")
        assert status == STATUS_STOPPED, output
        same = ("step", "tokens", "batch_digest", "inputs_digest")
        assert numbers(other, same) == numbers(whole, same)[:4]

    replayed = whole.bigtrain("replay", whole.run, "--step", "7", "--json")
    assert replayed.returncode == 0, replayed.stderr
    found = json.loads(replayed.stdout)
    assert abs(found["loss"] / steps[6][1] - 1) < 1e-2 and found["documents"]


@pytest.mark.slow
def test_losses_with_dropout_are_equal_however_the_work_is_spread(with_tokens, tmp_path):
    """In float32 at 1 and 2 ranks, micro-batches of 1, 2 and 4. Dropout changes no digest, and it changes losses."""
    found = {}
    for name, world, micro, of in (
        ("one-4", 1, 4, "masked_with_dropout"),
        ("one-1", 1, 1, "masked_with_dropout"),
        ("two-2", 2, 2, "masked_with_dropout"),
        ("none", 1, 4, "masked"),
    ):
        run = run_of(with_tokens, tmp_path, of, name, precision="fp32", zero_stage=world)
        status, output = run.train(world, f"train.micro_batch_size={micro}", "train.stop_after=5")
        assert status == STATUS_STOPPED, output
        found[name] = run.metrics()
    for name, metrics in found.items():
        for record, wanted in zip(metrics, found["one-4"], strict=True):
            assert record["inputs_digest"] == wanted["inputs_digest"]
            equal = record["loss"] == pytest.approx(wanted["loss"], rel=2e-6)
            assert equal if name != "none" else not equal


@pytest.mark.long
def test_verify_resume_finds_every_promise_kept_with_dropout(with_tokens, tmp_path):
    run = run_of(with_tokens, tmp_path, "masked_with_dropout", "verified")
    with_launcher = ("--launcher", forkserver.launcher("{n}"))
    done = run.bigtrain("verify-resume", run.config, "--json", *with_launcher, "-n", "2", "--steps", "4", timeout=280)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["ok"] and len(report["checks"]) == 7, report


def test_what_an_objective_lacks_is_one_message_before_the_first_step(with_tokens, tmp_path):
    fim = run_of(with_tokens, tmp_path, "fill_in_the_middle", "fim")
    for override, words in (
        ("objective.fim_tokens=qwen", ["<|fim_prefix|>", "additional_special_tokens"]),
        ("objective.fim_rate=0", ["fim_rate"]),
        ("objective.mask_rate=0.3", ["mask_rate", "fill_in_the_middle"]),
        ("objective.name=masked", ["masked", "encoder"]),
        ("objective.prefix_min_share=0.5", ["prefix_min_share", "fill_in_the_middle"]),
    ):
        assert_refused(fim.bigtrain("train", fim.config, override), *words)
    masked = run_of(with_tokens, tmp_path, "masked", "bert")
    for override, words in (
        ("objective.mask_token=<mask>", ["<mask>", "[MASK]"]),
        ("objective.mask_rate=1", ["mask_rate"]),
        ("objective.name=causal", ["causal", "encoder"]),
    ):
        assert_refused(masked.bigtrain("train", masked.config, override), *words)
    prefix = run_of(with_tokens, tmp_path, "prefix", "prefix")
    for override, words in (
        ("engine.attn_implementation=blockwise", ["attn_implementation blockwise", "auto, flex, sdpa"]),
        ("model.position_embedding=alibi", ["position_embedding", "alibi", "rope, learned"]),
        ("model.num_nextn_predict_layers=1", ["num_nextn_predict_layers"]),
        ("objective.prefix_max_share=0", ["prefix_max_share"]),
    ):
        assert_refused(prefix.bigtrain("train", prefix.config, override), *words)
    assert not fim.run.exists() and not masked.run.exists()


def test_a_finished_tokenizer_gets_the_tokens_after_its_last_id(with_tokens, tmp_path):
    settings = small_settings(tmp_path)
    settings["model"]["vocab_size"] = 1088
    settings["data"]["tokenizer"] = {
        "path": str(with_tokens.directory / "data" / "tokenizer.json"),
        "additional_special_tokens": ["<|fim_prefix|>", "[MASK]"],
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    sandbox = RunSandbox(tmp_path, config)
    for _ in range(2):  # the second time it is there
        done = sandbox.bigtrain("data", "build", config)
        assert done.returncode == 0, done.stderr
    tokens = json.loads((tmp_path / "data" / "tokenizer.json").read_text())["added_tokens"]
    assert {token["content"]: token["id"] for token in tokens}["<|fim_prefix|>"] == 1024
    assert sum(token["content"] == "[MASK]" for token in tokens) == 1
