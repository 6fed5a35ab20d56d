"""The decoder as a whole: gradients, checkpointing, compilation, initial weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu

from bigtrain.config import RopeScaling
from bigtrain.model import Decoder, build_model
from bigtrain.model.activation_checkpointing import kept_products
from bigtrain.model.layers.norm import RMSNorm
from tests.matrix import thinned
from tests.model.helpers import CountOperators, packed_batch, relative_error, small_settings

FAMILIES = ["llama", "gpt2"]


def built(family: str = "llama", dtype: torch.dtype = torch.float32, *, tied: bool = True, **choices: Any) -> Decoder:
    model = build_model(small_settings(family, tie_word_embeddings=tied), **choices)
    model.init_weights(seed=1)
    return model.to(dtype)


def gradients(model: Decoder, seed: int = 0) -> list[Tensor]:
    loss = model(**packed_batch(2, 40, 96, seed))
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_and_float32_gradients_are_those_of_the_float64_reference(family: str, tied: bool) -> None:
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 0.05)):
        model = built(family, dtype, tied=tied)
        oracle = built(family, torch.float64, tied=tied, attn_implementation="reference")
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), oracle.parameters(), strict=True):
                theirs.copy_(mine)
        for name, actual, wanted in zip(
            ["loss", *dict(model.named_parameters())], gradients(model), gradients(oracle), strict=True
        ):
            if name.endswith("k_proj.bias"):  # adds the same to all of a query's scores: its gradient is rounding
                continue
            assert relative_error(actual, wanted) < tolerance, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_batch_is_the_sum_of_its_documents(family: str) -> None:
    model, batch = built(family, torch.float64), packed_batch(2, 40, 96, seed=5)
    bounds = batch["cu_seqlens"].tolist()
    alone = torch.zeros((), dtype=torch.float64)
    for start, end in pairwise(bounds):
        ids, labels = (batch[key].flatten()[start:end][None] for key in ("input_ids", "labels"))
        logits = model.logits(ids)
        alone += torch.nn.functional.cross_entropy(logits[0], labels[0], ignore_index=-100, reduction="sum")
    assert torch.allclose(model(**batch), alone, rtol=1e-12)


@pytest.mark.parametrize("attention", ["blockwise", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", ["selective", "full", "offloaded"])
def test_activation_checkpointing_changes_no_bit_of_a_gradient(kept: str, dtype: torch.dtype, attention: str) -> None:
    wanted = gradients(built(dtype=dtype, attn_implementation=attention))
    actual = gradients(built(dtype=dtype, attn_implementation=attention, activation_checkpointing=kept))
    assert all(torch.equal(a, b) for a, b in zip(actual, wanted, strict=True))


def test_selective_checkpointing_recomputes_no_costly_operator() -> None:
    """Selective checkpointing recomputes no costly operator and full does."""
    runs = {}
    for kept in ("none", "selective", "full"):
        with CountOperators() as operators:
            gradients(built(activation_checkpointing=kept))
        runs[kept] = operators.counts
    # Full recomputation stops before down_proj, whose result no gradient needs.
    for costly, per_layer in (("aten.mm.default", 6), ("bigtrain.blockwise_attention.default", 1)):
        assert runs["selective"][costly] == runs["none"][costly]
        assert runs["full"][costly] == runs["none"][costly] + 2 * per_layer
    assert runs["selective"]["aten.silu.default"] == 2 * runs["none"]["aten.silu.default"]


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (0.0, set()),
        (0.2, {(48, 32)}),  # down_proj: dearest for its size
        (0.45, {(48, 32), (32, 16)}),  # then keys and values; queries and output no longer fit
        (0.6, {(48, 32), (32, 16), (32, 32)}),
        (1.0, None),
    ],
)
def test_a_memory_budget_keeps_what_is_dearest_to_recompute(budget: float, kept: set[Any]) -> None:
    """A budget of memory keeps what is dearest to recompute for its size."""
    assert kept_products(small_settings(), budget) == kept
    wanted = gradients(built())
    with CountOperators() as operators:
        actual = gradients(built(activation_checkpointing="selective", activation_memory_budget=budget))
    assert all(torch.equal(a, b) for a, b in zip(actual, wanted, strict=True))
    with CountOperators() as everything_kept:
        gradients(built())
    recomputed = operators.counts["aten.mm.default"] - everything_kept.counts["aten.mm.default"]
    in_a_layer = 0 if kept is None else 6 - sum({(32, 16): 2, (32, 32): 2}.get(shape, 0) for shape in kept)
    assert recomputed == 2 * in_a_layer  # of two layers; down_proj is never recomputed: nothing needs its result
    assert operators.counts["bigtrain.blockwise_attention.default"] == 2


def test_offloaded_inputs_of_blocks_are_all_that_leaves_the_device() -> None:
    left: list[torch.Size] = []

    class Counting(save_on_cpu):
        def __init__(self, pin_memory: bool = False) -> None:
            super().__init__(pin_memory)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: (left.append(tensor.shape), pack(tensor))[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bigtrain.model.activation_checkpointing.save_on_cpu", Counting)
        gradients(built(activation_checkpointing="offloaded"))
    assert left == [torch.Size([2, 40, 32])] * 2


def test_activation_checkpointing_keeps_less() -> None:
    kept_bytes = {}
    for kept in ("none", "selective", "full"):
        model = built(activation_checkpointing=kept)
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        held: dict[int, int] = {}

        def pack(tensor: Tensor, held: dict[int, int] = held, weights: set[int] = weights) -> Tensor:
            if tensor.data_ptr() not in weights:
                held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(**packed_batch(2, 40, 96, 0))
        kept_bytes[kept] = sum(held.values())
        del loss
    assert kept_bytes["full"] < kept_bytes["none"] / 2
    assert kept_bytes["selective"] < kept_bytes["none"]


@pytest.mark.parametrize("kept", thinned(["none", "selective", "offloaded"], keep=["selective"]))
def test_compiled_blocks_compute_the_same_and_compile_once_for_any_packing(kept: str) -> None:
    from torch._dynamo.utils import counters

    plain, compiled = built(), built(activation_checkpointing=kept)
    compiled.compile_blocks()
    torch._dynamo.reset()
    counters.clear()
    for seed in range(4):
        for actual, wanted in zip(gradients(compiled, seed), gradients(plain, seed), strict=True):
            assert relative_error(actual, wanted) < 1e-5
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_initial_weights_depend_on_name_and_seed_alone() -> None:
    ordinary = built()
    with torch.device("meta"):
        later = build_model(small_settings(tie_word_embeddings=True))
    later.to_empty(device="cpu")
    later.init_weights(seed=1)
    assert later.lm_head.weight is later.embed_tokens.weight
    for (name, a), (_, b) in zip(ordinary.named_parameters(), later.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    later.init_weights(seed=2)
    assert not torch.equal(ordinary.embed_tokens.weight, later.embed_tokens.weight)


def test_initial_weights_have_the_promised_spread() -> None:
    model = build_model(small_settings(hidden_size=128, intermediate_size=512, num_hidden_layers=8))
    model.init_weights(seed=0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all()
            continue
        wanted = 0.02 / 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        assert parameter.std().item() == pytest.approx(wanted, rel=0.05), name
        assert abs(parameter.mean().item()) < wanted / 10, name


def test_rms_norm_gradients_equal_autograd_in_float64() -> None:
    norm = RMSNorm(16, eps=1e-5).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, x)
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(norm, {"weight": w}, x), norm.weight)


@pytest.mark.parametrize("rope_type", ["linear", "ntk", "yarn", "llama3"])
def test_a_rotation_set_later_is_that_of_a_model_made_so(rope_type: str) -> None:
    """`rotate_by` gives loss and gradients of a model that was made with these settings, to the last bit."""
    scaling = RopeScaling.model_validate({"rope_type": rope_type, "factor": 4.0})
    model, plain = built(), gradients(built())
    made = build_model(model.settings.model_copy(update={"rope_theta": 5e4, "rope_scaling": scaling}))
    made.init_weights(seed=1)
    model.rotate_by(made.settings)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), gradients(made), strict=True))
    model.rotate_by(model.settings)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), plain, strict=True))
    assert not torch.equal(plain[0], gradients(made)[0])


@pytest.mark.long
def test_compiled_blocks_follow_length_and_rotation() -> None:
    """Blocks that were compiled for one length and rotation compute what others do at the next ones."""
    compiled, eager = built(), built()
    compiled.compile_blocks()
    scaling = RopeScaling(rope_type="yarn", factor=4.0)
    for length, update in ((40, {}), (80, {"rope_scaling": scaling}), (40, {"rope_theta": 3e4})):
        for model in (compiled, eager):
            model.rotate_by(model.settings.model_copy(update=update))
        batch = packed_batch(2, length, 96, 3)
        wanted, actual = eager(**batch), compiled(**batch)
        assert torch.allclose(actual, wanted, rtol=1e-5)
