"""An exported folder is, for `transformers`, the model that was trained, whatever the family and the shape."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bigtrain.config.model_settings import ModelSettings
from bigtrain.convert.families import FAMILIES
from bigtrain.convert.weights import our_shapes, weight_maps
from tests.convert.helpers import (
    ENCODERS,
    MIXTURES,
    OF_BOTH,
    TWO_STREAMS,
    VOCABULARY,
    auto_class,
    exported,
    settings_of,
    shapes,
    trained,
)
from tests.model.helpers import exact_t5, exact_xlnet

LENGTH = 40


def families() -> list[str]:
    return [name for name in FAMILIES if name not in MIXTURES or has_experts(name)]


def has_experts(family: str) -> bool:
    return any("experts" in name for name in our_shapes(settings_of(family)))


@pytest.mark.parametrize("family", families())
@given(data=st.data())
@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_transformers_computes_the_same_logits_and_gradients(
    family: str, tokenizer_file: Path, data: st.DataObject
) -> None:
    compare(data.draw(shapes(family)), tokenizer_file)


def compare(chosen: ModelSettings, tokenizer_file: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        exact_t5(monkeypatch)
        exact_xlnet(monkeypatch)
        compare_both(chosen, tokenizer_file)


def compare_both(chosen: ModelSettings, tokenizer_file: Path) -> None:
    # Their balancing loss is over a batch, ours over each sequence; it is tested with the experts.
    ours = trained(chosen.model_copy(update={"router_aux_loss_coef": 0.0}), torch.float64)
    with TemporaryDirectory() as folder:
        exported(ours, tokenizer_file, Path(folder) / "out", dtype=torch.float64)
        theirs = auto_class(chosen.family).from_pretrained(
            Path(folder) / "out", dtype=torch.float64, **how(chosen.family)
        )
        theirs = theirs.double()  # tensors of an XLNet's attention stay in float32 otherwise
    input_ids = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    input_ids[0, :10] = torch.arange(10)  # special tokens too
    if chosen.architecture == "encoder":
        input_ids = input_ids.clamp(min=4)  # transformers takes no gradient of a padding token
    ours_reads: dict[str, Any] = {}
    theirs_reads: dict[str, Any] = {"input_ids": input_ids}
    if of_both := chosen.architecture == "encoder_decoder":
        input_ids = input_ids.clamp(min=4)
        ours_reads = {"encoder_input_ids": input_ids.flip(1)}
        theirs_reads = {"input_ids": input_ids.flip(1), "decoder_input_ids": input_ids}
    our_logits, their_logits = ours.logits(input_ids, **ours_reads), theirs(**theirs_reads).logits
    torch.testing.assert_close(our_logits, their_logits, rtol=0, atol=2e-5 * our_logits.abs().max().item())

    if chosen.architecture != "decoder":  # the last token of a row has no label, as for decoders
        labels = torch.cat((input_ids[:, :-1], torch.full((2, 1), -100)), dim=1)
    else:
        labels = torch.cat((input_ids[:, 1:], torch.full((2, 1), -100)), dim=1)
    their_labels = input_ids if chosen.architecture == "decoder" else labels
    if chosen.architecture == "two_stream":
        labels, their_labels, ours_reads, order = in_an_order(input_ids)
        theirs_reads |= order
    positions = torch.arange(LENGTH).expand(2, LENGTH)
    boundaries = torch.tensor([0, LENGTH, 2 * LENGTH], dtype=torch.int32)
    if of_both:
        ours_reads |= {"encoder_position_ids": positions, "encoder_cu_seqlens": boundaries}
        ours_reads["encoder_max_seqlen"] = LENGTH
    loss = ours(input_ids, labels, positions, boundaries, LENGTH, **ours_reads) / int((labels != -100).sum())
    loss.backward()
    their_loss = theirs(**theirs_reads, labels=their_labels).loss
    their_loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    gradients = {key: parameter.grad for key, parameter in ours.named_parameters()}
    named = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    if chosen.position_embedding == "sinusoidal":  # transformers has a table of them, which a loaded model would train
        named = {key: gradient for key, gradient in named.items() if not key.endswith("embed_positions.weight")}
    assert_same_gradients(chosen, gradients, named)


def in_an_order(input_ids: Tensor) -> tuple[Tensor, Tensor, dict[str, Any], dict[str, Any]]:
    """Every third token predicted in the order of their ids: labels of ours and theirs, and the order in both ways."""
    places = torch.arange(2, LENGTH, 3)
    ranks = torch.zeros_like(input_ids)
    ranks[:, places] = 1 + input_ids[:, places].argsort(1).argsort(1)
    labels = torch.full_like(input_ids, -100)
    labels[:, places] = input_ids[:, places]
    hidden = (ranks[:, None, :] >= ranks[:, :, None]) & (labels != -100)[:, None, :]
    targets = torch.nn.functional.one_hot(places, LENGTH).expand(2, -1, -1)
    order = {"perm_mask": hidden.double(), "target_mapping": targets.double()}
    return labels, labels[:, places], {"order_ranks": ranks}, order


def how(family: str) -> dict[str, Any]:
    return {} if family in ENCODERS | OF_BOTH | TWO_STREAMS else {"experts_implementation": "eager"}


def assert_same_gradients(chosen: ModelSettings, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Alike up to transformers' rotary angles, which are float32: sharp attention scales their rounding up."""
    expected = as_loaded({k: grad for each in weight_maps(chosen) for k, grad in each.to_theirs(ours).items()})
    largest = max(grad.abs().max().item() for grad in expected.values())
    expected.pop("final_logits_bias", None)  # a buffer at transformers
    if chosen.architecture == "two_stream":  # no segments were given
        assert all(not expected.pop(name).any() for name in list(expected) if name.endswith(("r_s_bias", "seg_embed")))
        theirs = {name: gradient for name, gradient in theirs.items() if gradient is not None}
    assert expected.keys() == theirs.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(
            grad, theirs[name], rtol=1e-4, atol=5e-4 * largest, msg=lambda text, name=name: f"{name}: {text}"
        )


def as_loaded(files: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes as transformers 5 has them in memory, where those are not the files': experts together."""
    loaded: dict[str, Tensor] = {}
    experts: dict[str, dict[str, list[Tensor]]] = {}
    for name, tensor in files.items():
        name = name.replace("embed_out", "lm_head").replace(".block_sparse_moe.", ".mlp.")
        if match := re.fullmatch(r"(.*\.experts)\.\d+\.(\w+)\.weight", name):
            part = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.get(match[2], match[2])
            experts.setdefault(match[1], {}).setdefault(part, []).append(tensor)
        else:
            loaded[name] = tensor
    for name, parts in experts.items():
        gate, up, down = (torch.stack(parts[part]) for part in ("gate_proj", "up_proj", "down_proj"))
        loaded |= {f"{name}.gate_up_proj": torch.cat((gate, up), dim=1), f"{name}.down_proj": down}
    return loaded
