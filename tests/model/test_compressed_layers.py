"""A compressed layer multiplies with the masked and rounded weight, and its weight learns where the mask lets it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from bigtrain.config import CompressionSettings
from bigtrain.model import CompressedWeights, build_model, linear_layers
from bigtrain.model.compression.compressed import CompressedLinear, compress_layers
from bigtrain.model.compression.pruning import cubic_sparsity
from bigtrain.model.compression.quantisation import quantised, rounded
from tests.model.helpers import packed_batch, relative_error, small_settings

PRUNED = {"sparsity": 0.6, "pruning_start": 2, "pruning_end": 10}
WAYS = {
    "pruned": PRUNED,
    "rounded": {"weights": "int4", "group_size": 5},
    "both": {**PRUNED, "weights": "int8", "group_size": 8},
}


def by_hand(weight: Tensor, settings: CompressionSettings, step: int) -> tuple[Tensor, Tensor]:
    """The compressed weight and the mask, weight by weight."""
    mask = torch.ones_like(weight)
    if settings.pruning_end is not None:
        share = cubic_sparsity(step, settings.pruning_start, settings.pruning_end, settings.sparsity)
        lowest = weight.abs().flatten().argsort(stable=True)[: int(weight.numel() * share)]
        mask.view(-1)[lowest] = 0
    made = weight * mask
    if settings.weights != "float":
        most = {"int8": 127, "int4": 7}[settings.weights]
        for row in made:
            for group in row.split(settings.group_size):
                scale = (group.abs().max() / most).bfloat16().to(group.dtype)
                group.copy_((group / scale).round().clamp(-most, most) * scale if scale else group)
    return made, mask


@pytest.mark.parametrize("way", WAYS)
@given(step=st.integers(0, 12), seed=st.integers(0, 1000))
def test_output_and_gradients_are_those_of_the_masked_weight(way: str, step: int, seed: int) -> None:
    """In float64: the gradient of a weight is that of the rounded one, and 0 where it is masked."""
    generator = torch.Generator().manual_seed(seed)
    settings = CompressionSettings.model_validate(WAYS[way])
    plain = nn.Linear(13, 7, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(7, 13, generator=generator, dtype=torch.float64))
    layer = CompressedLinear(plain, settings)
    layer.at_step(step)
    x = torch.randn(2, 3, 13, generator=generator, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    (layer(x) * towards).sum().backward()
    made, mask = by_hand(plain.weight.detach(), settings, step)
    assert torch.allclose(layer(x), x @ made.T + plain.bias, rtol=1e-12)
    assert x.grad is not None and torch.allclose(x.grad, towards @ made, rtol=1e-12)
    wanted = (towards.flatten(0, 1).T @ x.detach().flatten(0, 1)) * mask
    assert plain.weight.grad is not None and torch.allclose(plain.weight.grad, wanted, rtol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "mixtral"])
def test_a_plain_model_with_compressed_weights_computes_the_same(way: str, family: str) -> None:
    """What evaluation and export read of a checkpoint is what the training computed with."""
    shape = small_settings(family, **({"num_experts": 4} if family == "mixtral" else {}))
    settings = CompressionSettings.model_validate(WAYS[way])
    trains = build_model(shape, attn_implementation="reference", compression=settings)
    plain = build_model(shape, attn_implementation="reference")
    trains.init_weights(3)
    trains.at_step(7)
    weights = {name: parameter.detach() for name, parameter in trains.named_parameters()}
    made = CompressedWeights(weights, linear_layers(plain), settings, 7, torch.float32)
    assert list(made) == [name for name, _ in plain.named_parameters()]
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(made[name])
    batch = packed_batch(2, 16, shape.vocab_size, 1)
    assert relative_error(trains(**batch), plain(**batch)) < 1e-6
    trains.at_step(0)
    if way == "pruned":
        plain.load_state_dict(weights, strict=False)
        assert relative_error(trains(**batch), plain(**batch)) < 1e-6


def test_names_and_first_weights_are_those_of_the_plain_model() -> None:
    shape = small_settings()
    plain, other = build_model(shape), build_model(shape)
    compress_layers(other, CompressionSettings.model_validate(WAYS["both"]))
    for model in (plain, other):
        model.init_weights(5)
    for (name, one), (same, another) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        assert name == same and torch.equal(one, another)


@given(seed=st.integers(0, 10**6), bits=st.sampled_from([4, 8]), group=st.integers(1, 9))
def test_rounding_what_was_rounded_changes_nothing(seed: int, bits: int, group: int) -> None:
    """So `compress --quantise` of a run that trained for it stores the weights that it trained with."""
    weight = rounded(torch.randn(5, 11, generator=torch.Generator().manual_seed(seed)), bits, group)
    assert torch.equal(quantised(weight, bits, group).dequantised(), weight)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 0.5}, "pruning_end"),
        ({"pruning_end": 5}, "sparsity 0"),
        ({"sparsity": 0.5, "pruning_start": 5, "pruning_end": 5}, "not after"),
        ({"group_size": 32}, "int8 or int4"),
        ({"sparsity": 1.0, "pruning_end": 5}, "less than 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CompressionSettings.model_validate(values)
