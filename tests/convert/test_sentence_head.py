"""A model with a sentence_head is, for `transformers`, the one for pre-training: BertForPreTraining and ALBERT's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

from bigtrain.convert import import_hf
from bigtrain.convert.weights import weight_maps
from tests.convert.helpers import VOCABULARY, exported, settings_of, trained

LENGTH = 24
LABEL = {"bert": "next_sentence_label", "albert": "sentence_order_label"}


@pytest.mark.parametrize("family", LABEL)
def test_both_losses_and_all_gradients_are_those_of_transformers(
    family: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    """Their loss is the sum of two means: over hidden tokens, and over pairs. So is ours, with two scales."""
    ours = trained(settings_of(family, sentence_head=True, type_vocab_size=2), torch.float64)
    exported(ours, tokenizer_file, tmp_path / "out", dtype=torch.float64)
    theirs, loading = AutoModelForPreTraining.from_pretrained(
        tmp_path / "out", dtype=torch.float64, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    random = torch.Generator().manual_seed(3)
    input_ids = torch.randint(4, VOCABULARY, (3, LENGTH), generator=random)
    types = (torch.arange(LENGTH) > 10).long().expand(3, LENGTH)
    labels = torch.where(torch.rand(3, LENGTH, generator=random) < 0.3, input_ids.flip(1), -100)
    relation = torch.tensor([0, 1, 1])

    of_examples = torch.full((3, LENGTH), -100)
    of_examples[:, 0] = relation
    positions = torch.arange(LENGTH).expand(3, LENGTH)
    boundaries = torch.arange(4, dtype=torch.int32) * LENGTH
    sums = ours(input_ids, labels, positions, boundaries, LENGTH, token_type_ids=types, example_labels=of_examples)
    loss = sums[0] / (labels != -100).sum() + sums[1] / 3
    loss.backward()
    found = theirs(input_ids, token_type_ids=types, labels=labels, **{LABEL[family]: relation})
    found.loss.backward()
    assert loss.item() == pytest.approx(found.loss.item(), rel=1e-6)

    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    named = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = {name: grad for each in weight_maps(ours.settings) for name, grad in each.to_theirs(gradients).items()}
    assert expected.keys() == named.keys()
    for name, grad in expected.items():
        # Both sums are taken in float32.
        torch.testing.assert_close(
            grad, named[name], rtol=1e-4, atol=1e-7, msg=lambda text, name=name: f"{name} {text}"
        )


@pytest.mark.parametrize("family", LABEL)
def test_the_sentence_head_comes_back_bit_for_bit(family: str, tokenizer_file: Path, tmp_path: Path) -> None:
    ours = trained(settings_of(family, sentence_head=True, type_vocab_size=2))
    exported(ours, tokenizer_file, tmp_path / "out", dtype=torch.float32)
    back = import_hf(tmp_path / "out", tmp_path / "back")
    assert back.settings.sentence_head and not [note for note in back.notes if note.startswith("left out")]
    stored = {}
    for file in (tmp_path / "back").glob("*.safetensors"):
        stored |= load_file(file)
    for name, parameter in ours.named_parameters():
        assert torch.equal(stored[name], parameter), name
