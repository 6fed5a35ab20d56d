"""A mixture of experts is what its definition says, token by token, and its losses do not depend on the split."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from bigtrain.config.model_settings import ModelSettings
from bigtrain.model import Decoder, build_model
from bigtrain.model.layers.experts import Experts, MixtureOfExperts, _has_kernel, grouped_linear
from bigtrain.model.layers.router import Router
from tests.model.helpers import CountOperators, packed_batch, relative_error, small_settings

EVERYTHING = {"router_aux_loss_coef": 0.3, "router_z_loss_coef": 0.02, "router_bias_update_rate": 0.01}


def moe_settings(**changes: Any) -> ModelSettings:
    return small_settings(**{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16} | changes)


def layer(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> MixtureOfExperts:
    torch.manual_seed(seed)
    made = MixtureOfExperts(moe_settings(**changes), None).to(dtype)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def model(dtype: torch.dtype = torch.float64, *, how: dict[str, Any] | None = None, **changes: Any) -> Decoder:
    built = build_model(moe_settings(**changes), **(how or {})).to(dtype)
    built.init_weights(seed=1)
    return built


def gradients(loss: Tensor, module: torch.nn.Module) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def by_definition(moe: MixtureOfExperts, x: Tensor) -> Tensor:
    """One token after the other, as Mixtral's paper writes it: softmax, the best k, a weighted sum of experts."""
    rows = []
    for token in x.flatten(0, 1):
        probabilities = (moe.router.weight @ token).softmax(dim=0)
        best = sorted(range(len(probabilities)), key=lambda e: -probabilities[e].item())[: moe.router.top_k]
        total = sum(probabilities[e] for e in best) if moe.router.normalises else 1.0
        row = torch.zeros_like(token)
        for e in best:
            inner = torch.nn.functional.silu(moe.experts.gate_proj[e] @ token) * (moe.experts.up_proj[e] @ token)
            row = row + probabilities[e] / total * (moe.experts.down_proj[e] @ inner)
        rows.append(row)
    return torch.stack(rows).view(x.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 3), length=st.integers(1, 9), experts=st.integers(1, 5), top_k=st.integers(1, 5),
    normalises=st.booleans(), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_output_and_all_gradients_are_those_of_the_definition(
    dtype: torch.dtype, rows: int, length: int, experts: int, top_k: int, normalises: bool, seed: int
) -> None:
    """In float64 by a loop over experts, in float32 by the grouped kernel."""
    top_k = min(top_k, experts)
    moe = layer(seed, dtype, num_experts=experts, num_experts_per_tok=top_k, norm_topk_prob=normalises)
    x = torch.randn(rows, length, 32, dtype=dtype, requires_grad=True)
    upstream = torch.randn(rows, length, 32, dtype=dtype)
    found = {}
    for name, output in (("ours", moe(x)[0]), ("definition", by_definition(moe, x))):
        x.grad = None
        found[name] = [output.detach(), *gradients((output * upstream).sum(), moe).values(), x.grad]
    for ours, wanted in zip(*found.values(), strict=True):
        floor = 0.1 * float(upstream.norm())  # a router that is sure has hardly a gradient, one of a single choice none
        assert relative_error(ours, wanted, floor) < (1e-10 if dtype == torch.float64 else 1e-4)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 7), min_size=1, max_size=6), aligned=st.booleans(), seed=st.integers(0, 2**16))
def test_the_grouped_product_is_a_linear_layer_for_each_group(sizes: list[int], aligned: bool, seed: int) -> None:
    """The grouped product is a linear layer for each group by kernel and by loop."""
    torch.manual_seed(seed)
    width, inner = (8, 24) if aligned else (6, 10)
    x = torch.randn(sum(sizes), width)
    weight, grad = torch.randn(len(sizes), inner, width), torch.randn(sum(sizes), inner)
    assert _has_kernel(x, weight) == aligned
    ends = torch.tensor(sizes).cumsum(0).int()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)):
        results = []
        for exact in (False, True):
            inputs = [each.to(dtype).to(torch.float64 if exact else dtype).requires_grad_() for each in (x, weight)]
            if exact:
                groups = zip(inputs[0].split(sizes), inputs[1], strict=True)
                output = torch.cat([rows @ matrix.T for rows, matrix in groups])
            else:
                output = grouped_linear(*inputs, ends)
            results.append([output, *torch.autograd.grad(output, inputs, grad.to(dtype).to(output.dtype))])
        for ours, wanted in zip(*results, strict=True):
            assert relative_error(ours, wanted) < tolerance


def test_biases_choose_experts_and_do_not_weigh_them() -> None:
    router = layer(router_bias_update_rate=0.5, norm_topk_prob=False, num_experts_per_tok=1).router
    x = torch.randn(1, 50, 32, dtype=torch.float64)
    before, weights, _ = router(x)
    router.move(torch.tensor([0, 0, 90, 10]))
    assert router.moves is not None and router.biases is not None
    assert router.moves.tolist() == [1, 1, -1, 1] and router.biases.tolist() == [0.5, 0.5, -0.5, 0.5]
    router.move(torch.tensor([25, 25, 25, 25]))
    assert router.moves.tolist() == [1, 1, -1, 1]
    after, weights_after, _ = router(x)
    probabilities = (x @ router.weight.T).softmax(-1)
    assert (before == 2).any() and not (after == 2).any()  # a probability is never a whole 1 behind another
    assert torch.equal(weights, probabilities.gather(-1, before))
    assert torch.equal(weights_after, probabilities.gather(-1, after))
    wide = router.to(torch.bfloat16)
    assert wide.moves is not None and wide.moves.dtype == torch.int64  # no cast of the model rounds them


def test_biases_even_out_the_loads() -> None:
    router = layer(router_bias_update_rate=0.002).router
    x = torch.randn(1, 400, 32, dtype=torch.float64) + 0.2 * router.weight.detach()[0]
    everyone = torch.ones(1, 400, dtype=torch.bool)
    imbalance = []
    for _ in range(200):
        _, _, report = router(x, everyone)
        assert report is not None
        imbalance.append(float(report.loads.max() * len(report.loads) / report.loads.sum()))
        router.move(report.loads)
    assert imbalance[0] > 1.3 and max(imbalance[-5:]) < 1.05, imbalance


def test_router_losses_are_those_of_the_field() -> None:
    """The load-balancing loss is transformers' for one layer and one row, masked; the z-loss its formula."""
    router = layer().router
    x = torch.randn(3, 20, 32, dtype=torch.float64)
    labelled = torch.rand(3, 20) < 0.7
    logits = x @ router.weight.T
    rows = [
        load_balancing_loss_func((logits[row],), 4, 2, labelled[row : row + 1]) * labelled[row].sum()
        for row in range(3)
    ]
    _, _, report = router(x, labelled)
    assert report is not None
    assert report.balance_loss.item() == pytest.approx(float(sum(rows)), rel=1e-6)  # theirs sums in float32
    assert report.z_loss.item() == pytest.approx(float((logits[labelled].exp().sum(-1).log() ** 2).sum()), rel=1e-12)
    chosen = logits.topk(2).indices[labelled].flatten().tolist()
    assert report.loads.tolist() == [Counter(chosen)[e] for e in range(4)]


@pytest.mark.parametrize("changes", [{}, {"num_nextn_predict_layers": 2, "mtp_loss_coef": 0.5}])
def test_gradients_are_the_same_for_any_split_into_micro_batches(changes: dict[str, Any]) -> None:
    batch = packed_batch(6, 24, 96, seed=4)
    batch["labels"][2] = -100  # a row without labels counts nothing
    decoder = model(**EVERYTHING, **changes)
    found = []
    for size in (6, 3, 1):
        parts = [part_of(batch, first, first + size) for first in range(0, 6, size)]
        losses = [decoder(**part) for part in parts]
        found.append((torch.stack(losses).sum().item(), gradients(torch.stack(losses).sum(), decoder)))
        counted = decoder.auxiliary.take()
        assert int(counted.loads[0].sum()) == 2 * int((batch["labels"] != -100).sum())
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-12)
        for name, grad in grads.items():
            assert relative_error(grad, found[0][1][name]) < 1e-9, name


def part_of(batch: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    length = batch["labels"].shape[1]
    bounds = batch["cu_seqlens"]
    bounds = bounds[(bounds >= first * length) & (bounds <= last * length)] - first * length
    rows = {name: batch[name][first:last] for name in ("input_ids", "labels", "position_ids")}
    return {**rows, "cu_seqlens": bounds, "max_seqlen": length}


def test_auxiliary_losses_are_learned_from_and_not_told() -> None:
    batch = packed_batch(2, 24, 96, seed=2)
    plain, decoder = model(), model(**EVERYTHING)
    assert plain(**batch).item() == decoder(**batch).item()
    plain.auxiliary.take(), decoder.auxiliary.take()

    found = gradients(decoder(**batch), decoder)
    counted = decoder.auxiliary.take()
    objective = plain(**batch)
    hidden = record_inputs(plain, batch)
    for moe, x in hidden:
        _, _, report = moe.router(x, batch["labels"] != -100)
        assert report is not None
        objective = objective + 0.3 * report.balance_loss + 0.02 * report.z_loss
    for name, wanted in gradients(objective, plain).items():
        assert relative_error(found[name], wanted) < 1e-10, name
    assert counted.losses["router_aux_loss"] > 0 and counted.losses["router_z_loss"] > 0


def record_inputs(decoder: Decoder, batch: dict[str, Any]) -> list[tuple[MixtureOfExperts, Tensor]]:
    found: list[tuple[MixtureOfExperts, Tensor]] = []
    layers = [module for module in decoder.modules() if isinstance(module, MixtureOfExperts)]
    hooks = [each.register_forward_pre_hook(lambda m, args: found.append((m, args[0]))) for each in layers]
    decoder(**batch)
    for hook in hooks:
        hook.remove()
    return found


def test_evaluation_counts_nothing_and_does_no_auxiliary_work() -> None:
    decoder, batch = model(**EVERYTHING, num_nextn_predict_layers=1), packed_batch(2, 24, 96, seed=2)
    called: list[str] = []
    decoder.next_token_layers[0].register_forward_hook(lambda *_: called.append("ahead"))
    trained = decoder(**batch).item()
    assert called and decoder.auxiliary.take().losses
    with torch.no_grad():
        assert decoder(**batch).item() == trained
    assert decoder.eval()(**batch).item() == trained
    decoder.logits(batch["input_ids"])
    assert called == ["ahead"] and not decoder.auxiliary.take().losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputation_changes_no_bit_and_counts_once(dtype: torch.dtype) -> None:
    """Recomputation changes no bit counts once and keeps grouped products."""
    batch = packed_batch(2, 40, 96, seed=0)
    results, operators = {}, {}
    for kept, budget in (("none", 1.0), ("selective", 1.0), ("selective", 0.5), ("full", 1.0)):
        how = {"activation_checkpointing": kept, "activation_memory_budget": budget}
        decoder = model(dtype, how=how, **EVERYTHING)
        with CountOperators() as counter:
            results[kept] = gradients(decoder(**batch), decoder)
        operators[kept, budget] = counter.counts["bigtrain.grouped_product.default"]
        assert decoder.auxiliary.take().loads.sum() == 2 * 2 * (batch["labels"] != -100).sum()
        assert all(torch.equal(grad, results["none"][name]) for name, grad in results[kept].items())
    # Two layers of three products forward and three backward. The budget has room for gate and up.
    assert operators == {("none", 1): 12, ("selective", 1): 12, ("selective", 0.5): 14, ("full", 1): 18}


@pytest.mark.slow
def test_a_block_with_experts_compiles_whole() -> None:
    torch._dynamo.reset()
    how, changes = {"activation_checkpointing": "selective"}, {"num_hidden_layers": 1, **EVERYTHING}
    plain, compiled = (model(torch.float32, how=how, **changes) for _ in range(2))
    compiled.compiled = True
    for block in compiled.layers:
        block.compile(fullgraph=True, backend="aot_eager")
    for seed in range(2):
        batch = packed_batch(2, 40, 96, seed)
        found, wanted = (gradients(each(**batch), each) for each in (compiled, plain))
        assert torch.equal(compiled.auxiliary.take().loads, plain.auxiliary.take().loads)
        for name, grad in found.items():
            assert relative_error(grad, wanted[name]) < 1e-4, name


def test_eight_bits_leave_router_and_experts_alone() -> None:
    batch = packed_batch(2, 24, 96, seed=1)
    moes = {}
    for float8 in (False, True):
        decoder = model(torch.bfloat16, how={"float8": float8})
        ((_, x), *_), moe = record_inputs(decoder, batch), decoder.layers[0].mlp
        moes[float8] = (moe, x)
    (moe, x), (moe8, _) = moes[False], moes[True]
    assert torch.equal(moe(x)[0], moe8(x)[0])


def test_layers_that_keep_one_feed_forward_layer() -> None:
    decoder = model(num_hidden_layers=3, mlp_only_layers=[1])
    assert list(decoder.routers()) == ["layers.0.mlp.router", "layers.2.mlp.router"]
    assert decoder.layers[1].mlp.up_proj.weight.shape == (48, 32)
    experts = decoder.layers[2].mlp.experts
    assert isinstance(experts, Experts)
    assert {n: tuple(p.shape) for n, p in experts.named_parameters()} == {
        "gate_proj": (4, 16, 32), "up_proj": (4, 16, 32), "down_proj": (4, 32, 16),
    }  # fmt: skip
    assert float(experts.down_proj.std()) == pytest.approx(0.02 / 6**0.5, rel=0.1)


def test_moves_are_the_only_state_beside_parameters_and_go_through_json() -> None:
    import json

    decoder = model(**EVERYTHING)
    for router in decoder.routers().values():
        router.move(torch.tensor([9, 1, 1, 1]))
    moves = decoder.router_moves()
    assert moves == {f"layers.{n}.mlp.router": [-1, 1, 1, 1] for n in range(2)}
    other = model(**EVERYTHING)
    other.set_router_moves(json.loads(json.dumps(moves)))
    batch = packed_batch(2, 24, 96, seed=1)
    assert other(**batch).item() == decoder(**batch).item() != model(**EVERYTHING)(**batch).item()
    assert not decoder.state_dict().keys() ^ dict(decoder.named_parameters()).keys()
    assert isinstance(decoder.layers[0].mlp.router, Router)
