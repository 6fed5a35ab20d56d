"""Products widened to float32 are no less exact than narrow ones, of the same types, and known to recomputation.

The tests decide for themselves what this processor widens, so that they mean the same on every machine.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bigtrain.model import Decoder, build_model
from bigtrain.model.cpu import cpu_products
from bigtrain.model.cpu.cpu_products import CpuLinear, product_dtype
from tests.model.helpers import CountOperators, packed_batch, relative_error, small_settings

NARROW = [torch.bfloat16, torch.float16]


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without instructions for either."""
    change_what_is_widened(monkeypatch, frozenset(NARROW))


def change_what_is_widened(monkeypatch: pytest.MonkeyPatch, dtypes: frozenset[torch.dtype]) -> None:
    monkeypatch.setattr(cpu_products, "WIDENED", dtypes)


def test_only_narrow_types_on_a_cpu_are_widened(widened: None) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for dtype in NARROW:
        assert product_dtype(dtype, cpu) == torch.float32
        assert product_dtype(dtype, cuda) == dtype
    assert product_dtype(torch.float32, cpu) == torch.float32
    assert product_dtype(torch.float64, cpu) == torch.float64


@pytest.mark.parametrize("bias", [False, True])
@given(tokens=st.integers(1, 40), seed=st.integers(0, 2**20), dtype=st.sampled_from(NARROW))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_output_and_gradients_are_rounded_once(widened: None, bias: bool, tokens: int, seed: int, dtype: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = CpuLinear(48, 32, bias=bias).to(dtype)
    x = torch.randn(2, tokens, 48, generator=generator).to(dtype).requires_grad_()
    grad = torch.randn(2, tokens, 32, generator=generator).to(dtype)
    layer(x).backward(grad)

    exact = nn.Linear(48, 32, bias=bias, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    x64 = x.detach().double().requires_grad_()
    y64 = exact(x64)
    y64.backward(grad.double())

    once = torch.finfo(dtype).eps / 2 * (2.0 if bias else 1.0)  # a bias is added after the rounding, and rounds again
    pairs = [(layer(x).detach(), y64.detach()), (x.grad, x64.grad), (layer.weight.grad, exact.weight.grad)]
    for got, wanted in pairs:
        assert got is not None and wanted is not None and got.dtype == dtype
        assert relative_error(got, wanted) <= once


def gradients(model: Decoder, batch: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def built(**how: Any) -> Decoder:
    model = build_model(small_settings(), **how)
    model.init_weights(1)
    return model.bfloat16()


def test_a_model_is_as_near_to_float64_as_with_narrow_products(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = packed_batch(3, 48, 96, seed=5)
    exact = gradients(built().double(), batch)
    errors = []
    for dtypes in (frozenset[torch.dtype](), frozenset(NARROW)):
        change_what_is_widened(monkeypatch, dtypes)
        found = gradients(built(), batch)
        assert all(gradient.dtype == torch.bfloat16 for gradient in found.values())
        errors.append(sum(relative_error(found[name], exact[name]) for name in exact) / len(exact))
    narrow, wide = errors
    assert wide <= 1.05 * narrow


def test_selective_recomputation_keeps_widened_products(widened: None) -> None:
    batch = packed_batch(3, 48, 96, seed=6)
    counts, found = {}, {}
    for kept in ("none", "selective", "full"):
        with CountOperators() as counter:
            found[kept] = gradients(built(activation_checkpointing=kept), batch)
        counts[kept] = counter.counts["bigtrain.wide_mm.default"]
    assert counts["selective"] == counts["none"] < counts["full"]
    for name, gradient in found["none"].items():
        assert torch.equal(gradient, found["selective"][name]) and torch.equal(gradient, found["full"][name])
