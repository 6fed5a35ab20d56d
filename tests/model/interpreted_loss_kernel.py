"""The loss's kernel in Triton's interpreter, on a CPU: run by test_loss_kernel.py in a process of its own, since
TRITON_INTERPRET has to be set before Triton is imported."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.model.loss import loss as loss_module
from bigtrain.model.loss import loss_kernel, loss_softmax
from bigtrain.model.loss.loss import linear_cross_entropy
from bigtrain.model.loss.loss_kernel import BLOCK, softmax_in_one_kernel
from bigtrain.model.loss.shaping import Shaping
from bigtrain.model.shapes import loss_memory
from tests.model.helpers import relative_error
from tests.model.loss_helpers import assert_equals_float64, chunk
from tests.model.test_loss import EXTRAS, oracle, problem

CPU = torch.device("cpu")
classes = st.one_of(
    st.integers(1, 200), st.integers(BLOCK - 2, BLOCK + 2), st.sampled_from([2 * BLOCK, 2 * BLOCK + 1]),
    st.integers(BLOCK, 3 * BLOCK),
)  # fmt: skip
shapings = st.builds(
    Shaping,
    logits_scaling=st.sampled_from([1.0, 0.5, 3.0, 8.0]),
    softcap=st.sampled_from([None, 3.0, 30.0]),
    z_loss_coef=st.sampled_from([0.0, 1e-4, 0.1]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
)


@settings(max_examples=30)
@given(
    rows=st.integers(1, 3),
    classes=classes,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    size=st.sampled_from([0.1, 3.0, 30.0, 1e4]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    shaping=shapings,
    seed=st.integers(0, 2**32),
)
def test_loss_and_gradients_are_as_exact_as_float32_allows(
    rows: int, classes: int, dtype: torch.dtype, size: float, ignored: float, shaping: Shaping, seed: int
) -> None:
    products, labels = chunk(rows, classes, dtype, size, seed, ignored)
    gradient = products.clone()
    loss = softmax_in_one_kernel(gradient, labels, shaping, True)
    assert_equals_float64(products, labels, shaping, loss, gradient)


def test_without_gradients_the_loss_is_the_same_and_nothing_is_written() -> None:
    products, labels = chunk(3, BLOCK + 5, torch.bfloat16)
    untouched, shaping = products.clone(), Shaping(softcap=3.0)
    loss = softmax_in_one_kernel(untouched, labels, shaping, False)
    assert torch.equal(untouched, products)
    assert torch.equal(softmax_in_one_kernel(products, labels, shaping, True), loss)


def test_labels_may_lie_anywhere_in_memory() -> None:
    products, labels = chunk(5, 70, torch.float32)
    scattered = labels.new_empty(15)[1::3].copy_(labels)
    losses = [softmax_in_one_kernel(products.clone(), x, Shaping(), True) for x in (labels, scattered)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_logit_that_is_nan_or_infinite_makes_the_loss_nan(value: float) -> None:
    products, labels = chunk(2, BLOCK + 5, torch.bfloat16, ignored=0)
    products[1, BLOCK + 2] = value
    assert softmax_in_one_kernel(products, labels, Shaping(), True).isnan()


def test_a_logit_of_minus_infinity_has_no_probability_and_no_gradient() -> None:
    products, labels = chunk(2, BLOCK + 5, torch.float32, ignored=0)
    products[:, :BLOCK] = -math.inf  # a whole block of them, before any finite one
    labels[:] = BLOCK + 1
    loss = softmax_in_one_kernel(products, labels, Shaping(), True)
    assert loss.isfinite() and products.isfinite().all()
    assert products[:, :BLOCK].abs().max() == 0


@pytest.mark.parametrize("label", [-1, 70, 2**40])
def test_a_label_that_is_no_class_makes_the_loss_nan_and_is_not_looked_up(label: int) -> None:
    products, labels = chunk(2, 70, torch.float32, ignored=0)
    labels[1] = label
    assert softmax_in_one_kernel(products, labels, Shaping(), True).isnan()


@pytest.mark.parametrize("extras", [{}, EXTRAS[-1]], ids=["plain", "+".join(EXTRAS[-1])])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-3)])
def test_chunk_by_chunk_it_is_the_loss_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float, extras: dict[str, float]
) -> None:
    monkeypatch.setattr(loss_module, "softmax_for", lambda weight, shaping: (softmax_in_one_kernel, 0))
    monkeypatch.setitem(loss_memory.CHUNK_BYTES, "cpu", 5 * 50 * dtype.itemsize)
    hidden, weight, labels = problem(dtype, rows=12)
    loss = linear_cross_entropy(hidden, weight, labels, **extras)
    gradients = torch.autograd.grad(loss * 0.013, (hidden, weight))
    for actual, expected in zip(
        (loss.detach(), *gradients), oracle(hidden, weight, labels, 0.013, **extras), strict=True
    ):
        assert relative_error(actual, expected.detach()) < tolerance
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, labels, **extras), loss.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shaping", [Shaping(), Shaping(0.5, 3.0, 0.03), Shaping(16.0, 30.0)])
def test_the_trial_finds_no_obstacle_to_a_kernel_that_is_right(dtype: torch.dtype, shaping: Shaping) -> None:
    assert loss_softmax._obstacle_to_the_kernel(CPU, dtype, 5003, shaping) is None


def test_the_trial_finds_a_kernel_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def obstacle() -> str | None:
        return loss_softmax._obstacle_to_the_kernel(CPU, torch.float32, 100, Shaping())

    right = loss_kernel.softmax_in_one_kernel
    for wrong in (
        lambda *arguments: right(*arguments) * 1.01,
        lambda products, *rest: (right(products, *rest), products.mul_(1.05))[0],
        lambda products, *rest: right(products, *rest) * torch.nan,
        lambda products, labels, shaping, _: right(products, labels, shaping, False),
    ):
        monkeypatch.setattr(loss_kernel, "softmax_in_one_kernel", wrong)
        assert "where PyTorch computes" in (obstacle() or "")


def test_ignored_rows_have_no_gradient_whatever_is_in_them() -> None:
    products = torch.full((3, BLOCK + 1), math.nan)
    loss = softmax_in_one_kernel(products, torch.full((3,), IGNORE_INDEX), Shaping(z_loss_coef=0.1), True)
    assert loss == 0 and products.abs().max() == 0
