"""The chunked loss equals cross-entropy over all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bigtrain.model.cpu.cpu_products import product_dtype
from bigtrain.model.layers.embedding import TokenEmbedding
from bigtrain.model.loss.loss import linear_cross_entropy
from bigtrain.model.loss.loss_softmax import softmax_for
from bigtrain.model.loss.shaping import Shaping
from bigtrain.model.shapes import loss_memory
from tests.model.helpers import relative_error


def problem(dtype: torch.dtype, rows: int = 700, width: int = 24, classes: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(classes, width, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[::7] = -100
    return hidden, weight, labels


def set_chunk(monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype, classes: int = 50) -> None:
    dtype = product_dtype(dtype, torch.device("cpu"))
    _, copied_bytes = softmax_for(torch.empty(classes, 0, dtype=dtype), Shaping())
    monkeypatch.setitem(loss_memory.CHUNK_BYTES, "cpu", rows * classes * (dtype.itemsize + copied_bytes))


def oracle(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    scale: float,
    logits_scaling: float = 1.0,
    softcap: float | None = None,
    z_loss_coef: float = 0.0,
    label_smoothing: float = 0.0,
) -> list[Tensor]:
    """The loss, and the gradients of what is minimised, in float64."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logits = hidden @ weight.T / logits_scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    loss = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    z_loss = logits[labels != -100].logsumexp(1).square().sum()
    learned = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum", label_smoothing=label_smoothing)
    return [loss, *torch.autograd.grad((learned + z_loss_coef * z_loss) * scale, (hidden, weight))]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 6e-3)]
)
@pytest.mark.parametrize("chunk_rows", [12, 64, 10_000])
def test_loss_and_gradients_equal_the_float64_oracle_for_any_chunk(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float, chunk_rows: int
) -> None:
    set_chunk(monkeypatch, chunk_rows, dtype)
    hidden, weight, labels = problem(dtype)
    loss = linear_cross_entropy(hidden, weight, labels)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    gradients = torch.autograd.grad(loss * 0.013, (hidden, weight))
    wanted = oracle(hidden, weight, labels, 0.013)
    for actual, expected in zip((loss.detach(), *gradients), wanted, strict=True):
        assert relative_error(actual, expected.detach()) < tolerance


EXTRAS = [
    {"logits_scaling": 8.0},
    {"softcap": 5.0},
    {"z_loss_coef": 1e-2},
    {"label_smoothing": 0.1},
    {"logits_scaling": 0.5, "softcap": 3.0, "z_loss_coef": 3e-2, "label_smoothing": 0.3},
]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 6e-3)]
)
@pytest.mark.parametrize("extras", EXTRAS, ids=lambda extras: "+".join(extras))
def test_scaled_capped_and_drawn_to_zero_logits_equal_the_float64_oracle(
    dtype: torch.dtype, tolerance: float, extras: dict[str, float]
) -> None:
    hidden, weight, labels = problem(dtype)
    loss = linear_cross_entropy(hidden, weight, labels, **extras)
    gradients = torch.autograd.grad(loss * 0.013, (hidden, weight))
    wanted = oracle(hidden, weight, labels, 0.013, **extras)
    for actual, expected in zip((loss.detach(), *gradients), wanted, strict=True):
        assert relative_error(actual, expected.detach()) < tolerance
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, labels, **extras), loss.detach())


@pytest.mark.parametrize("what", ["z_loss_coef", "label_smoothing"])
def test_the_reported_loss_is_the_cross_entropy_whatever_is_learned(what: str) -> None:
    hidden, weight, labels = problem(torch.float32)
    plain, drawn = (linear_cross_entropy(hidden, weight, labels, **{what: value}) for value in (0.0, 0.5))
    assert torch.equal(plain, drawn)
    gradients = [torch.autograd.grad(loss, hidden)[0] for loss in (plain, drawn)]
    assert relative_error(gradients[1], gradients[0]) > 0.1


def test_weight_gradient_does_not_lose_precision_with_the_number_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = []
    for chunk_rows in (12, 4096):
        set_chunk(monkeypatch, chunk_rows, torch.bfloat16)
        hidden, weight, labels = problem(torch.bfloat16, rows=4096)
        (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels), weight)
        errors.append(relative_error(gradient, oracle(hidden, weight, labels, 1.0)[2]))
    assert errors[0] < 1.5 * errors[1]


def test_without_gradients_the_loss_is_the_same() -> None:
    hidden, weight, labels = problem(torch.float32)
    with torch.no_grad():
        evaluated = linear_cross_entropy(hidden, weight, labels)
    assert torch.equal(evaluated, linear_cross_entropy(hidden, weight, labels).detach())


def test_nothing_labelled_is_a_loss_of_zero() -> None:
    hidden, weight, labels = problem(torch.float32)
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    assert loss.item() == 0
    assert all(gradient.abs().max() == 0 for gradient in torch.autograd.grad(loss, (hidden, weight)))


def test_enormous_logits_do_not_overflow() -> None:
    hidden, weight, labels = problem(torch.float32)
    loss = linear_cross_entropy(hidden * 1e4, weight, labels)
    assert loss.isfinite()


def test_the_gradient_of_a_frequent_token_is_summed_without_loss() -> None:
    embedding = TokenEmbedding(8, 16).bfloat16()
    ids = torch.zeros(1, 2000, dtype=torch.int64)
    grad = torch.rand(1, 2000, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    embedding(ids).backward(grad)
    assert embedding.weight.grad is not None
    assert relative_error(embedding.weight.grad[0], grad.double().sum((0, 1))) < 4e-3
    assert embedding.weight.grad[1:].abs().max() == 0
