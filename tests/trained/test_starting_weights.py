"""A new run starts from an import or a run, with its own head: what fits is taken, and the log names the rest."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from bigtrain.base import ALONE, BigtrainError
from bigtrain.checkpoint import MASTER, Cursor, Fragment, StorageTiers, save
from bigtrain.config import ModelSettings, Settings, mathematics
from bigtrain.convert import StartingWeights, import_hf
from bigtrain.trained import starting_weights, verified_step
from bigtrain.trained.label_names import require_same_names
from tests.convert.helpers import END, exported, settings_of, trained, weights_of, write_tokenizer
from tests.refusals import assert_refused
from tests.tasks import sections_of_task

TEXTS, TOKENS, ANSWERS = "sequence_classification", "token_classification", "question_answering"
OBJECTIVES = {"encoder": "masked", "two_stream": "permutation", "encoder_decoder": "denoising"}
HEADS: dict[str, dict[str, Any]] = {
    "none": {},
    TEXTS: {"task_head": TEXTS, "num_labels": 3},
    TOKENS: {"task_head": TOKENS, "num_labels": 3},
    ANSWERS: {"task_head": ANSWERS},
}


def run_settings(directory: Path, model: ModelSettings, **others: Any) -> Settings:
    values = {name: getattr(model, name) for name in model.model_fields_set}
    task = {} if model.task_head == "none" else sections_of_task(model.task_head)
    return Settings.model_validate(
        {
            "run_dir": str(directory / "run"),
            "model": values | others,
            "objective": task.get("objective", {"name": OBJECTIVES.get(model.architecture, "causal")}),
            "data": {
                "dir": str(directory / "data"),
                "sequence_length": 32,
                "tokenizer": {"vocab_size": 300, "end_of_text": END, **task.get("tokenizer", {})},
                "sources": [{"name": "x", "kind": "python_stdlib"}],
                **task.get("data", {}),
            },
            "train": {"steps": 2, "global_batch_size": 2},
            "engine": {"attn_implementation": "reference"},
        }
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return write_tokenizer(tmp_path / "data" / "tokenizer.json")


def written_run(directory: Path, model: ModelSettings, state: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """A run directory with one checkpoint; its weights."""
    settings = run_settings(directory, model)
    weights = weights_of(trained(model))
    settings.run_dir.mkdir()
    (settings.run_dir / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    save(
        StorageTiers.of(settings.run_dir),
        Cursor(7, 14, "plan", 7),
        [Fragment(name, MASTER, tuple(weight.shape), 0, weight.flatten()) for name, weight in weights.items()],
        {"cpu": torch.get_rng_state()},
        mathematics=mathematics(settings),
        zero_stage=0,
        state=state or {},
        ranks=ALONE,
    )
    return weights


def started(directory: Path, model: ModelSettings, **others: Any) -> StartingWeights:
    return starting_weights(run_settings(directory, model, init_from=str(directory / "run"), **others))


CASES: list[tuple[str, str, str, dict[str, str], list[str]]] = [
    # family, head of the run, new head, what the new head starts from, what is not used
    ("llama", "none", TEXTS, {}, ["lm_head.weight"]),
    ("llama", TEXTS, "none", {}, ["task_head.classifier.weight"]),
    ("bert", "none", TOKENS, {}, ["lm_head.bias", "lm_head.dense", "lm_head.norm"]),
    ("bert", TEXTS, TEXTS, {"task_head.dense": "task_head.dense", "task_head.classifier": "task_head.classifier"}, []),
    ("bert", TEXTS, TOKENS, {}, ["task_head"]),
    ("bert", TOKENS, TEXTS, {}, ["task_head"]),
    ("roberta", TOKENS, ANSWERS, {}, ["task_head"]),
    (
        "modernbert", "none", TOKENS,
        {"task_head.dense": "lm_head.dense", "task_head.norm": "lm_head.norm"}, ["lm_head.bias"],
    ),
    (
        "modernbert", TOKENS, TEXTS,
        {"task_head.dense": "task_head.dense", "task_head.norm": "task_head.norm"}, ["task_head.classifier"],
    ),
    ("t5", "none", TEXTS, {}, []),
    ("xlnet", "none", TEXTS, {}, ["lm_head.bias"]),
]  # fmt: skip


@pytest.mark.parametrize(("family", "old", "new", "taken", "unused"), CASES)
def test_a_head_that_is_another_one_is_new_and_all_else_is_taken(
    family: str, old: str, new: str, taken: dict[str, str], unused: list[str], data: Path, tmp_path: Path
) -> None:
    """bert's pooler and modernbert's layer before the classifier are taken over, as transformers' names have it."""
    weights = written_run(tmp_path, settings_of(family, **HEADS[old]))
    model = settings_of(family, **HEADS[new])
    found = started(tmp_path, model)
    wanted = weights_of(trained(model))
    for name in wanted:
        module = name.rpartition(".")[0]
        origin = name if not name.startswith(("task_head", "lm_head")) else None
        if module in taken:
            origin = taken[module] + name.removeprefix(module)
        assert (name in found) is (origin is not None), name
        if origin is not None:
            assert torch.equal(found[name], weights[origin]), name
    assert set(found) | set(found.new) == wanted.keys() and not set(found) & set(found.new)
    assert all(name.startswith(tuple(unused)) for name in found.unused)
    assert all(any(name.startswith(start) for name in found.unused) for start in unused)


def test_the_log_names_the_weights_that_are_new_and_those_not_used(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written_run(tmp_path, settings_of("llama"))
    started(tmp_path, settings_of("llama", **HEADS[TEXTS]))
    lines = [record.message for record in caplog.records if record.levelno >= logging.INFO]
    assert lines == [
        f"the run starts from the weights of step 7 of {tmp_path / 'run'}",
        f"weights of model.init_from {tmp_path / 'run'}; new: task_head.classifier.weight; not used: lm_head.weight",
    ]


def test_classes_of_another_number_get_a_new_classifier(data: Path, tmp_path: Path) -> None:
    """Of a run and of an import; the pooler before it is kept."""
    weights = written_run(tmp_path, settings_of("bert", **HEADS[TEXTS]))
    exported(trained(settings_of("bert", **HEADS[TEXTS])), data, tmp_path / "hf", dtype=torch.float32)
    import_hf(tmp_path / "hf", tmp_path / "imported")
    model = settings_of("bert", task_head=TEXTS, num_labels=5)
    for folder in ("run", "imported"):
        found = starting_weights(run_settings(tmp_path, model, init_from=str(tmp_path / folder)))
        assert sorted(found.new) == sorted(found.unused) == ["task_head.classifier.bias", "task_head.classifier.weight"]
        assert torch.equal(found["task_head.dense.weight"], weights["task_head.dense.weight"])


def test_a_pooler_that_was_trained_on_pairs_is_taken_over(data: Path, tmp_path: Path) -> None:
    exported(trained(settings_of("bert", sentence_head=True)), data, tmp_path / "hf", dtype=torch.float32)
    import_hf(tmp_path / "hf", tmp_path / "imported")
    model = settings_of("bert", **HEADS[TEXTS])
    found = starting_weights(run_settings(tmp_path, model, init_from=str(tmp_path / "imported")))
    assert found.new == ["task_head.classifier.weight", "task_head.classifier.bias"]
    plain = starting_weights(run_settings(tmp_path, settings_of("bert"), init_from=str(tmp_path / "imported")))
    assert not plain.new and all(name.startswith("sentence_head.") for name in plain.unused)


def test_a_classifier_of_other_classes_is_refused() -> None:
    """Their order counts. Names that nobody gave are not compared."""
    names = ["negative", "positive"]
    for theirs in (names, None, ["LABEL_0", "LABEL_1"]):
        require_same_names(names, theirs, "imported")
    require_same_names(None, names, "imported")
    for theirs in (names[::-1], ["no", "yes"]):
        with pytest.raises(BigtrainError) as caught:
            require_same_names(names, theirs, "imported")
        assert_refused(caught, "model.init_from imported", found="negative, positive", wanted=", ".join(theirs))


def test_dropout_and_smoothing_may_change(data: Path, tmp_path: Path) -> None:
    weights = written_run(tmp_path, settings_of("llama"))
    changed = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "label_smoothing": 0.1, "z_loss_coef": 1e-4}
    found = started(tmp_path, settings_of("llama"), **changed)
    assert found.sentence is None and set(found) == weights.keys()


@pytest.mark.parametrize("head", ["none", TEXTS])
@pytest.mark.parametrize(
    "changes", [{"norm_eps": 1e-3}, {"rope_theta": 5e5}, {"hidden_size": 64}, {"hidden_act": "relu2"}]
)
def test_whatever_else_changes_the_mathematics_is_refused(
    head: str, changes: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    written_run(tmp_path, settings_of("llama"))
    (key,) = changes
    with pytest.raises(BigtrainError) as caught:
        started(tmp_path, settings_of("llama", **HEADS[head]), **changes)
    assert_refused(caught, "model.init_from", found=f"{key} {changes[key]}", wanted=key, fix="config.yaml")


def test_a_head_for_tokens_has_to_be_that_of_the_run(data: Path, tmp_path: Path) -> None:
    """Where both models predict tokens, what is done to logits is a part of the mathematics."""
    written_run(tmp_path, settings_of("gemma2"))
    with pytest.raises(BigtrainError) as caught:
        started(tmp_path, settings_of("gemma2"), final_logit_softcapping=None)
    assert_refused(caught, found="final_logit_softcapping None")
    assert started(tmp_path, settings_of("gemma2", **HEADS[TEXTS]), final_logit_softcapping=None).new


def test_routers_go_on_with_the_biases_of_the_run(data: Path, tmp_path: Path) -> None:
    model = settings_of("mixtral", router_bias_update_rate=0.01)
    moves = {f"layers.{layer}.mlp.router": [layer, -1, 2, 0] for layer in range(2)}
    written_run(tmp_path, model, {"router_moves": moves})
    assert started(tmp_path, model).router_moves == moves


def test_data_of_another_tokenizer_are_refused(data: Path, tmp_path: Path) -> None:
    written_run(tmp_path, settings_of("llama"))
    (tmp_path / "other").mkdir()
    content = data.read_text().replace('"def"', '"fed"').replace('"ĠNone"', '"Ġenon"')
    assert content != data.read_text()
    (tmp_path / "other" / "tokenizer.json").write_text(content)
    settings = run_settings(tmp_path, settings_of("llama"), init_from=str(tmp_path / "run"))
    other = settings.data.model_copy(update={"dir": tmp_path / "other"})
    with pytest.raises(BigtrainError) as caught:
        starting_weights(settings.model_copy(update={"data": other}))
    assert_refused(caught, "tokenizer of model.init_from", found=str(tmp_path / "other"), wanted=str(data))


@pytest.mark.parametrize("damage", ["no checkpoint", "a changed byte"])
def test_a_run_without_a_checkpoint_to_trust_is_refused(damage: str, data: Path, tmp_path: Path) -> None:
    written_run(tmp_path, settings_of("llama"))
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    if damage == "no checkpoint":
        checkpoint.rename(tmp_path / "elsewhere")
    else:
        file = max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    settings = run_settings(tmp_path, settings_of("llama"), init_from=str(tmp_path / "run"))
    for look in (lambda: verified_step(tmp_path / "run"), lambda: starting_weights(settings)):
        with pytest.raises(BigtrainError) as caught:
            look()
        assert_refused(caught, "no checkpoint that can be trusted")


def test_the_step_that_one_rank_verified_is_the_one_that_all_read(data: Path, tmp_path: Path) -> None:
    written_run(tmp_path, settings_of("llama"))
    settings = run_settings(tmp_path, settings_of("llama"), init_from=str(tmp_path / "run"))
    assert verified_step(tmp_path / "run") == 7
    assert math.isfinite(float(starting_weights(settings, 7)["norm.weight"].sum()))
    with pytest.raises(BigtrainError) as caught:
        starting_weights(settings, 8)
    assert_refused(caught, "no checkpoint of step 8")
