"""Recurrences over packed documents, step by step, with gradients that are gathered over all steps at once.

    gates from below [N, G H] --+
    state of the step before ---+--> gates --> state [b, H]        step t: the b documents that have a token there

The tokens lie in the order of `Sequences`: the first token of each document, then the second of each, and so on, with
the longest document first. So a step is a slice, and a document that has ended takes no further part in it.

PyTorch's own layers run anywhere, but on a CPU their backward pass multiplies for a weight's gradient at each step.
Here the derivatives of all gates are prepared in a few operations over all tokens, each step multiplies the running
gradient with the weight, and the gradient of the weight is one product at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

GATES = {"lstm": 4, "gru": 3}
"""Gates of a cell, in PyTorch's order: input, forget, candidate, output; or reset, update, candidate."""


@torch.library.custom_op("bigtrain::lstm_scan", mutates_args=())
def lstm_scan(
    below: Tensor, weight: Tensor, bias: Tensor, start: Tensor, start_cells: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory (Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000).

    Args:
        below: [N, 4 H], the gates' part of the inputs.
        weight: [4 H, H], from the state to the gates.
        bias: [4 H], of the gates.
        start: [D, H], the states before the first tokens.
        start_cells: [D, H], the cells before the first tokens.
        sizes: [steps] int64 on the CPU, the documents that have a token at each step.

    Returns:
        States [N, H], cells [N, H], and the values of the gates [N, 4 H].
    """
    width = weight.shape[1]
    gates = below + bias
    states, cells = (below.new_empty(below.shape[0], width) for _ in range(2))
    state, cell, transposed = start, start_cells, weight.t()
    for own in _steps(sizes):
        count = own.stop - own.start
        step = gates[own].addmm_(state[:count], transposed)
        step[:, : 2 * width].sigmoid_()
        candidate = step[:, 2 * width : 3 * width].tanh_()
        output = step[:, 3 * width :].sigmoid_()
        torch.mul(step[:, width : 2 * width], cell[:count], out=cells[own])
        cell = cells[own].addcmul_(step[:, :width], candidate)
        state = torch.mul(output, cell.tanh(), out=states[own])
    return states, cells, gates


@lstm_scan.register_fake
def _(
    below: Tensor, weight: Tensor, bias: Tensor, start: Tensor, start_cells: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    shape = below.shape[0], weight.shape[1]
    return below.new_empty(shape), below.new_empty(shape), torch.empty_like(below)


@torch.library.custom_op("bigtrain::lstm_scan_backward", mutates_args=())
def lstm_scan_backward(
    grad: Tensor,
    weight: Tensor,
    start: Tensor,
    start_cells: Tensor,
    sizes: Tensor,
    states: Tensor,
    cells: Tensor,
    gates: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradient of the states [N, H] to those of `below`, `weight`, `bias`, `start` and `start_cells`."""
    width = weight.shape[1]
    entered, forget, candidate, output = gates.view(-1, 4, width).unbind(1)
    tanh = cells.tanh()
    to_cell = output * (1 - tanh.square())
    # By how much a gate's input moves the cell, and in the last column the state.
    slopes = torch.stack(
        (
            candidate * entered * (1 - entered),
            _before(cells, start_cells, sizes) * forget * (1 - forget),
            entered * (1 - candidate.square()),
            tanh * output * (1 - output),
        ),
        dim=1,
    )
    of_gates = torch.empty_like(gates)
    of_state, of_cell = torch.zeros_like(start), torch.zeros_like(start)
    for own in _backwards(sizes):
        count = own.stop - own.start
        state, cell = of_state[:count], of_cell[:count]
        state += grad[own]
        cell.addcmul_(state, to_cell[own])
        step = of_gates[own]
        parts = step.view(count, 4, width)
        torch.mul(slopes[own, :3], cell[:, None], out=parts[:, :3])
        torch.mul(slopes[own, 3], state, out=parts[:, 3])
        cell *= forget[own]
        torch.mm(step, weight, out=state)
    return of_gates, of_gates.t() @ _before(states, start, sizes), of_gates.sum(0), of_state, of_cell


@lstm_scan_backward.register_fake
def _(
    grad: Tensor,
    weight: Tensor,
    start: Tensor,
    start_cells: Tensor,
    sizes: Tensor,
    states: Tensor,
    cells: Tensor,
    gates: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return tuple(  # type: ignore[return-value]
        torch.empty_like(each) for each in (gates, weight, weight[:, 0], start, start_cells)
    )


@torch.library.custom_op("bigtrain::gru_scan", mutates_args=())
def gru_scan(
    below: Tensor, weight: Tensor, bias: Tensor, start: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gated recurrent units (Cho et al., 2014), with the reset gate after the product, as PyTorch and cuDNN have them.

    Args:
        below: [N, 3 H], the gates' part of the inputs.
        weight: [3 H, H], from the state to the gates.
        bias: [3 H], of the gates; its last part is under the reset gate.
        start: [D, H], the states before the first tokens.
        sizes: [steps] int64 on the CPU, the documents that have a token at each step.

    Returns:
        States [N, H], the values of the gates [N, 3 H], and what the reset gate multiplies [N, H].
    """
    width = weight.shape[1]
    gates = below.clone()
    gates[:, : 2 * width] += bias[: 2 * width]
    states, reset = (below.new_empty(below.shape[0], width) for _ in range(2))
    state, to_gates, to_candidate = start, weight[: 2 * width].t(), weight[2 * width :].t()
    for own in _steps(sizes):
        before = state[: own.stop - own.start]
        step = gates[own]
        step[:, : 2 * width].addmm_(before, to_gates).sigmoid_()
        torch.addmm(bias[2 * width :], before, to_candidate, out=reset[own])
        candidate = step[:, 2 * width :].addcmul_(step[:, :width], reset[own]).tanh_()
        state = torch.lerp(candidate, before, step[:, width : 2 * width], out=states[own])
    return states, gates, reset


@gru_scan.register_fake
def _(below: Tensor, weight: Tensor, bias: Tensor, start: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = below.shape[0], weight.shape[1]
    return below.new_empty(shape), torch.empty_like(below), below.new_empty(shape)


@torch.library.custom_op("bigtrain::gru_scan_backward", mutates_args=())
def gru_scan_backward(
    grad: Tensor, weight: Tensor, start: Tensor, sizes: Tensor, states: Tensor, gates: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of the states [N, H] to those of `below`, `weight`, `bias` and `start`."""
    width = weight.shape[1]
    resets, update, candidate = gates.view(-1, 3, width).unbind(1)
    before = _before(states, start, sizes)
    to_candidate = (1 - update) * (1 - candidate.square())
    slopes = torch.stack(
        (
            to_candidate * reset * resets * (1 - resets),
            (before - candidate) * update * (1 - update),
            to_candidate * resets,
        ),
        dim=1,
    )
    of_gates, of_states = torch.empty_like(gates), torch.empty_like(states)
    of_state = torch.zeros_like(start)
    for own in _backwards(sizes):
        count = own.stop - own.start
        running = of_state[:count]
        state = torch.add(running, grad[own], out=of_states[own])
        step = of_gates[own]
        torch.mul(slopes[own], state[:, None], out=step.view(count, 3, width))
        torch.mul(state, update[own], out=running)
        running.addmm_(step, weight)
    of_weight, of_bias = of_gates.t() @ before, of_gates.sum(0)
    of_gates[:, 2 * width :] = of_states * to_candidate  # the inputs' part is not under the reset gate
    return of_gates, of_weight, of_bias, of_state


@gru_scan_backward.register_fake
def _(
    grad: Tensor, weight: Tensor, start: Tensor, sizes: Tensor, states: Tensor, gates: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(each) for each in (gates, weight, weight[:, 0], start))  # type: ignore[return-value]


def _steps(sizes: Tensor) -> Iterator[slice]:
    """The tokens of each step."""
    return (slice(*bounds) for bounds in pairwise(accumulate(sizes.tolist(), initial=0)))


def _backwards(sizes: Tensor) -> Iterator[slice]:
    return reversed(list(_steps(sizes)))


def _before(states: Tensor, start: Tensor, sizes: Tensor) -> Tensor:
    """The states [N, H] before each token."""
    steps = list(_steps(sizes))
    earlier = [states[before.start : before.start + own.stop - own.start] for before, own in pairwise(steps)]
    return torch.cat((start[: steps[0].stop], *earlier))


def _keep_lstm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, weight, _, start, start_cells, sizes = inputs
    ctx.save_for_backward(weight, start, start_cells, sizes, *output)


def _lstm_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *lstm_scan_backward(grad.contiguous(), *ctx.saved_tensors), None


def _keep_gru(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, weight, _, start, sizes = inputs
    ctx.save_for_backward(weight, start, sizes, *output)


def _gru_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *gru_scan_backward(grad.contiguous(), *ctx.saved_tensors), None


lstm_scan.register_autograd(_lstm_gradients, setup_context=_keep_lstm)
gru_scan.register_autograd(_gru_gradients, setup_context=_keep_gru)
