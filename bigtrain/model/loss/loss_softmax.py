"""The softmax of a chunk of logits: its loss, and in place its gradient.

    SoftmaxInPyTorch        several passes over float32 copies of the chunk: any device, any precision
    softmax_in_one_kernel   a Triton kernel without copies: CUDA, in bf16, fp16 or float32
    softmax_in_cpp          a row at a time in C++: CPUs with bf16 instructions, in bf16, without a soft cap

`softmax_for` chooses, and nothing else knows that there are several.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from bigtrain.base import IGNORE_INDEX
from bigtrain.model.cpu.cpu_kernels import address, kernels, obstacle
from bigtrain.model.loss.shaping import Shaping

Softmax = Callable[[Tensor, Tensor, Shaping, bool], Tensor]
"""(products [n, V], labels [n], shaping, gradients) -> the summed loss; with `gradients` overwrites the products with
the loss's gradient with respect to them. No chunk is larger than the first."""


def softmax_for(weight: Tensor, shaping: Shaping) -> tuple[Softmax, int]:
    """What computes the softmax of chunks of logits of this weight [V, C], and the bytes a logit that it copies."""
    if _kernel_works(weight.device, weight.dtype, weight.shape[0], shaping):
        from bigtrain.model.loss.loss_kernel import softmax_in_one_kernel

        return softmax_in_one_kernel, 0
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and shaping.softcap is None and not obstacle():
        return softmax_in_cpp, 0
    return SoftmaxInPyTorch(), 2 * torch.promote_types(weight.dtype, torch.float32).itemsize


class SoftmaxInPyTorch:
    """Keeps its memory for all chunks of a matrix: fresh memory costs a CPU as much as the softmax does."""

    def __init__(self) -> None:
        self._copies: tuple[Tensor, Tensor] | None = None

    def __call__(self, products: Tensor, labels: Tensor, shaping: Shaping, gradients: bool) -> Tensor:
        """See `Softmax`."""
        if self._copies is None:
            wide = torch.promote_types(products.dtype, torch.float32)
            self._copies = (torch.empty_like(products, dtype=wide), torch.empty_like(products, dtype=wide))
        logits, probabilities = (copy[: labels.shape[0]] for copy in self._copies)
        scaling, softcap, z_loss_coef, smoothing = shaping
        labelled = (labels != IGNORE_INDEX).to(logits.dtype)[:, None]
        target = labels[:, None].clamp(min=0)
        logits.copy_(products)
        if scaling != 1.0:
            logits.div_(scaling)
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)

        # PyTorch's softmax reads once and writes once; log(Z) follows from the largest logit and its probability.
        torch.softmax(logits, 1, out=probabilities)
        log_z = logits.amax(1, keepdim=True) - probabilities.amax(1, keepdim=True).log()
        loss = (log_z - logits.gather(1, target)).mul_(labelled).sum()
        if not gradients:
            return loss

        # d loss / d logits = softmax - one-hot, and d log(Z)^2 / d logits = 2 log(Z) softmax
        gradient = probabilities.mul_(labelled if z_loss_coef == 0 else labelled * (1 + 2 * z_loss_coef * log_z))
        gradient.scatter_add_(1, target, labelled * (smoothing - 1))
        if smoothing:  # of each label's weight a part is on all classes
            gradient.sub_(labelled, alpha=smoothing / products.shape[1])
        if softcap is not None:  # d tanh = 1 - tanh^2
            gradient.addcmul_(gradient, logits.div_(softcap).square_(), value=-1)
        if scaling != 1.0:
            gradient.div_(scaling)
        products.copy_(gradient)
        return loss


def softmax_in_cpp(products: Tensor, labels: Tensor, shaping: Shaping, gradients: bool) -> Tensor:
    """See `Softmax`. Raises IndexError where a label is no class."""
    rows, classes = products.shape
    losses = torch.empty(rows, dtype=torch.float32)
    unknown = kernels().softmax_of_rows(
        address(products), address(labels.contiguous()), address(losses),
        rows, classes, shaping.logits_scaling, shaping.z_loss_coef, shaping.label_smoothing, IGNORE_INDEX, gradients,
    )  # fmt: skip
    if unknown < 0:
        raise MemoryError("no memory for a row of logits")
    if unknown:
        raise IndexError(f"{unknown} of {rows} labels are none of the {classes} classes")
    return losses.sum()


@cache
def _kernel_works(device: torch.device, dtype: torch.dtype, classes: int, shaping: Shaping) -> bool:
    """Whether the kernel is for this device and precision, and works there. Where it is and does not, this says so
    once, and PyTorch stays."""
    if device.type != "cuda" or dtype == torch.float64 or find_spec("triton") is None:
        return False
    if obstacle := _obstacle_to_the_kernel(device, dtype, classes, shaping):
        logging.getLogger(__name__).warning(
            "the loss is computed in PyTorch, since its Triton kernel does not work here: %s", obstacle
        )
    return obstacle is None


def _obstacle_to_the_kernel(device: torch.device, dtype: torch.dtype, classes: int, shaping: Shaping) -> str | None:
    """Why the kernel does not run, or where on a few rows it differs from PyTorch; None when it agrees.

    Triton compiles at the first call: it needs a GPU of compute capability 8.0, a C compiler and a folder to write to.
    The trial costs nothing beside that, since the chunks use what it compiled.
    """
    try:
        from bigtrain.model.loss.loss_kernel import softmax_in_one_kernel

        labels = torch.tensor([0, classes // 2, IGNORE_INDEX, classes - 1], device=device)
        angles = torch.arange(4 * classes, device=device, dtype=torch.float32).view(4, classes)
        ours, theirs = (angles.sin().mul(8).to(dtype) for _ in range(2))
        loss = softmax_in_one_kernel(ours, labels, shaping, True).item()
        wanted = SoftmaxInPyTorch()(theirs, labels, shaping, True).item()
        error = ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()
    except Exception as failure:  # whatever compilers, drivers and disks can say
        return f"{type(failure).__name__}: {failure}"
    if abs(loss - wanted) <= 1e-3 * wanted and error <= 1e-2:
        return None
    return f"a loss of {loss} where PyTorch computes {wanted}, and gradients that differ by {error:.1e} of their size"
