"""A model with the head of a task is, for `transformers`, the family's class for that task."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bigtrain.base import IGNORE_INDEX, BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.convert import Imported, compare_with_transformers, import_hf, read_hf
from bigtrain.convert.config_json import config_of, obstacles, settings_of
from bigtrain.convert.families import FAMILIES
from bigtrain.convert.weights import weight_maps
from bigtrain.data import BeginOfText
from bigtrain.model import LanguageModel
from bigtrain.model.layers.task_head import END, START, START_AND_END
from tests.convert import helpers
from tests.convert.helpers import END as END_OF_TEXT
from tests.convert.helpers import PADDING, VOCABULARY, exported, trained, weights_of
from tests.convert.test_parity import as_loaded, how
from tests.matrix import one_of_each, thinned
from tests.model.helpers import exact_t5, exact_xlnet
from tests.refusals import assert_refused

TASKS = {
    "sequence_classification": "SequenceClassification",
    "token_classification": "TokenClassification",
    "question_answering": "QuestionAnswering",
}
CLASSES, LENGTHS = 3, (9, 1, 14, 24)
"""Documents of the two rows of a packing."""
CASES = [
    (family, head.settings["task_head"])
    for family, description in FAMILIES.items()
    for head in description.heads
    if "task_head" in head.settings
]
QUICK = one_of_each(CASES, lambda case: {"family": case[0], "task": case[1]})
MISSING = [(family, task) for family in FAMILIES for task in TASKS if (family, task) not in CASES]


def settings_with(family: str, task: str, **changes: Any) -> ModelSettings:
    classes = {} if task == "question_answering" else {"num_labels": CLASSES}
    if family in helpers.MIXTURES:
        changes |= {"router_aux_loss_coef": 0.0}  # theirs is over a batch
    return helpers.settings_of(family, task_head=task, **classes, **changes)


def loaded(folder: Path, settings: ModelSettings, dtype: torch.dtype = torch.float64) -> Any:
    """The model that transformers makes of a folder; it has to find every weight, and none that it does not know."""
    import transformers

    theirs, loading = getattr(transformers, f"AutoModelFor{TASKS[settings.task_head]}").from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True, **how(settings.family)
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    for module in theirs.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # it would take no gradient
    return theirs.to(dtype)


def packed(settings: ModelSettings) -> tuple[dict[str, Any], list[Tensor]]:
    """A packing of documents that end with END's id, and their tokens. A decoder of two reads them shifted."""
    generator = torch.Generator().manual_seed(5)
    documents = [torch.randint(4, VOCABULARY, (length,), generator=generator) for length in LENGTHS]
    for ids in documents:
        ids[-1] = 0
    boundaries = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
    both = {
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS]).view(2, -1),
        "cu_seqlens": boundaries,
        "max_seqlen": max(LENGTHS),
    }
    batch = {"input_ids": torch.cat(documents).view(2, -1), **both}
    if settings.reads_pairs:
        batch |= {f"encoder_{name}": value for name, value in batch.items()}
        batch["input_ids"] = torch.cat([torch.cat((ids[-1:], ids[:-1])) for ids in documents]).view(2, -1)
    return batch, documents


def labels_for(settings: ModelSettings, documents: list[Tensor]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Labels [2, T] of the packing, and those of each document as transformers takes them. The third has none."""
    labels, theirs = torch.full((sum(LENGTHS),), IGNORE_INDEX), []
    for number, (begin, end) in enumerate(pairwise([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])):
        if number == 2:
            theirs.append({})
        elif settings.task_head == "sequence_classification":
            labels[begin if settings.architecture == "encoder" else end - 1] = number % CLASSES
            theirs.append({"labels": torch.tensor([number % CLASSES])})
        elif settings.task_head == "token_classification":
            labels[begin:end:2] = documents[number][::2] % CLASSES
            theirs.append({"labels": labels[None, begin:end].clone()})
        else:
            first, last = (end - begin) // 3, (end - begin) // 2
            labels[begin + first], labels[begin + last] = START, END
            if first == last:
                labels[begin + first] = START_AND_END
            theirs.append({"start_positions": torch.tensor([first]), "end_positions": torch.tensor([last])})
    return labels.view(2, -1), theirs


def logits_of(found: Any, task: str) -> Tensor:
    return torch.stack((found.start_logits, found.end_logits), -1) if task == "question_answering" else found.logits


@pytest.mark.parametrize(("family", "task"), thinned(CASES, keep=QUICK))
def test_logits_losses_and_gradients_of_packed_documents_are_theirs(
    family: str, task: str, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers sees one document at a time, and shifts the texts of an encoder-decoder itself."""
    exact_t5(monkeypatch)
    exact_xlnet(monkeypatch)
    ours = trained(settings_with(family, task), torch.float64)
    theirs = loaded(exported(ours, tokenizer_file, tmp_path / "out", dtype=torch.float64), ours.settings)
    batch, documents = packed(ours.settings)
    labels, given = labels_for(ours.settings, documents)
    logits = ours.task_logits(**batch).flatten(0, 1)
    loss = ours(labels=labels, **batch)
    loss.backward()
    total = torch.zeros(())
    for ids, asked, (begin, end) in zip(documents, given, pairwise(batch["cu_seqlens"].tolist()), strict=True):
        found = theirs(input_ids=ids[None], **asked)
        own = logits[begin:end]
        if task == "sequence_classification":
            own = own[:1] if ours.settings.architecture == "encoder" else own[-1:]
        their_logits = logits_of(found, task).view(own.shape)
        torch.testing.assert_close(own, their_logits, rtol=0, atol=2e-5 * own.abs().max().item())
        if asked:
            count = (asked["labels"] != IGNORE_INDEX).sum() if task == "token_classification" else 1
            total = total + found.loss * count
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    total.backward()
    assert_same_gradients(ours, theirs)


def assert_same_gradients(ours: LanguageModel, theirs: nn.Module) -> None:
    """Up to transformers' softmax and angles, which are float32. What they do not use has a gradient of zero here."""
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    named = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = as_loaded(
        {name: grad for each in weight_maps(ours.settings) for name, grad in each.to_theirs(gradients).items()}
    )
    assert expected.keys() == named.keys()
    largest = max(grad.abs().max().item() for grad in expected.values())
    for name, grad in expected.items():
        wanted = torch.zeros_like(grad) if named[name] is None else named[name]
        torch.testing.assert_close(
            grad, wanted, rtol=1e-4, atol=5e-4 * largest, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("family", "task"), thinned(CASES, keep=QUICK))
def test_a_head_comes_back_bit_for_bit_with_its_settings(
    family: str, task: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    ours = trained(settings_with(family, task, classifier_dropout=0.1))
    exported(ours, tokenizer_file, tmp_path / "out", dtype=torch.float32)
    back = import_hf(tmp_path / "out", tmp_path / "back")
    assert (back.settings.task_head, back.settings.num_labels) == (task, ours.settings.num_labels)
    assert not [note for note in back.notes if note.startswith("left out")]
    stored: dict[str, Tensor] = {}
    for file in (tmp_path / "back").glob("*.safetensors"):
        stored |= load_file(file)
    weights = weights_of(ours)
    assert stored.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(stored[name], weight), name


@pytest.mark.parametrize(("family", "task"), thinned(CASES, keep=QUICK))
def test_the_check_of_an_export_compares_the_logits_of_the_task(
    family: str, task: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    """And finds one wrong weight of the head."""
    ours = trained(settings_with(family, task))
    folder = exported(ours, tokenizer_file, tmp_path / "out", dtype=torch.float32)
    compared = compare_with_transformers(folder, weights_of(ours), ours.settings, torch.float32)
    compared.check(folder)
    with torch.no_grad():
        next(p for name, p in ours.named_parameters() if name == "task_head.classifier.weight")[0] += 1
    with pytest.raises(BigtrainError):
        compare_with_transformers(folder, weights_of(ours), ours.settings, torch.float32).check(folder)


@pytest.mark.parametrize(("family", "task"), thinned(CASES, keep=QUICK))
def test_a_folder_that_transformers_saved_is_read_back_with_its_logits(family: str, task: str, tmp_path: Path) -> None:
    """As it writes keys and names of tensors itself, with random weights of its own."""
    import transformers

    config = {"pad_token_id": 0} | config_of(settings_with(family, task))
    kind = transformers.CONFIG_MAPPING[config.pop("model_type")]
    torch.manual_seed(0)
    made = getattr(transformers, f"AutoModelFor{TASKS[task]}").from_config(kind(**config))
    made.save_pretrained(tmp_path)
    settings, weights = read_hf(tmp_path)
    assert (settings.task_head, settings.num_labels) == (task, 0 if task == "question_answering" else CLASSES)
    found = compare_with_transformers(tmp_path, dict(weights.items()), settings, torch.float32)
    found.check(tmp_path)
    assert found.largest_logit > 0


@pytest.mark.parametrize(("family", "task"), MISSING)
def test_a_task_without_a_class_in_transformers_is_refused_by_name(family: str, task: str) -> None:
    settings = settings_with(family, task)
    assert obstacles(settings) == [f"transformers has no class for family {family} with task_head {task}"]
    with pytest.raises(BigtrainError) as caught:
        config_of(settings)
    assert_refused(caught, task, family)


def test_the_names_of_classes_go_into_config_json(tokenizer_file: Path, tmp_path: Path) -> None:
    """They come back in their order; not one for each class, they are refused."""
    ours = trained(settings_with("bert", "token_classification"))
    names = ["O", "B-PER", "I-PER"]
    folder = exported(ours, tokenizer_file, tmp_path / "out", label_names=names)
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "O", "1": "B-PER", "2": "I-PER"}
    assert config["label2id"] == {"O": 0, "B-PER": 1, "I-PER": 2}
    assert loaded(folder, ours.settings).config.id2label == dict(enumerate(names))
    import_hf(folder, tmp_path / "back", end_of_text=END_OF_TEXT)
    assert Imported(tmp_path / "back").label_names == names
    for wrong in (names[:2], ["O", "O", "B"]):
        with pytest.raises(BigtrainError) as caught:
            exported(ours, tokenizer_file, tmp_path / "other", label_names=wrong)
        assert_refused(caught, wanted="3 different ones")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"problem_type": "regression"}, "problem_type"),
        ({"problem_type": "multi_label_classification"}, "problem_type"),
        ({"id2label": {"1": "a", "2": "b"}}, "id2label"),
        ({"id2label": {"0": "a"}}, "num_labels"),
        ({"id2label": ["a", "b"]}, "id2label"),
        ({"architectures": ["BertForMultipleChoice"]}, "architectures"),
    ],
)
def test_a_head_of_another_kind_is_refused_by_an_import(changes: dict[str, Any], part: str) -> None:
    config = config_of(settings_with("bert", "sequence_classification"))
    with pytest.raises(BigtrainError) as caught:
        settings_of(config | changes)
    assert_refused(caught, part)


def test_without_names_a_config_has_the_number_that_transformers_takes() -> None:
    config = config_of(settings_with("bert", "sequence_classification"))
    plain = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
    assert settings_of(plain)[0].num_labels == 2
    assert settings_of(plain | {"num_labels": 5})[0].num_labels == 5
    of_bart = config_of(settings_with("bart", "sequence_classification"))
    assert settings_of({n: v for n, v in of_bart.items() if n not in ("id2label", "label2id")})[0].num_labels == 3


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "llama", "bart", "xlnet"])
def test_the_tokenizer_encodes_texts_and_pairs_as_documents_are(
    family: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    """With the tokens around them, the separator between two, and types where the model has them."""
    from transformers import AutoTokenizer

    ours = trained(settings_with(family, "sequence_classification"))
    begin, separator = BeginOfText((2,), before_prompts=False), PADDING[2]
    folder = exported(
        ours, tokenizer_file, tmp_path / "out", dtype=torch.float32, begin_of_text=begin, separator=separator
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("def main", "return 1"))
    assert tokenizer("def main")["input_ids"] == [2, *first, 0]
    pair = tokenizer("def main", "return 1", return_tensors="pt")
    assert pair["input_ids"].tolist() == [[2, *first, 3, *second, 0]]
    types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert pair.get("token_type_ids", torch.tensor([[]])).tolist() == ([types] if family == "bert" else [[]])
    theirs = loaded(folder, ours.settings, torch.float32)
    batch = {"input_ids": pair["input_ids"]}
    if ours.settings.reads_pairs:
        batch |= {"encoder_input_ids": batch["input_ids"], "input_ids": pair["input_ids"].roll(1, 1)}
    elif family == "bert":
        batch |= {"token_type_ids": pair["token_type_ids"]}
    logits = ours.task_logits(**batch)[0, 0 if ours.settings.architecture == "encoder" else -1]
    torch.testing.assert_close(theirs(**pair).logits[0], logits, rtol=1e-4, atol=1e-5)
