"""What the loader yields: micro-batches as tensors, and all micro-batches of a rank for one step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from bigtrain.objective import PreparedRows

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass: B rows of T tokens, D documents in them."""

    input_ids: Tensor
    """int32 [B, T]"""
    labels: Tensor
    """int32 [B, T], what is to be predicted at each position, by the objective: the next token, or the one that was
    hidden there. -100 if nothing is, as in padding."""
    position_ids: Tensor
    """int32 [B, T], from 0 in each document."""
    cu_seqlens: Tensor
    """int32 [D+1], boundaries of documents in the B*T flattened tokens. Every row starts a document."""
    max_seqlen: int
    """Tokens in the longest document."""
    label_tokens: int
    """Labels that are not -100."""
    input_tokens: int
    """Tokens that are not padding."""
    others: dict[str, Tensor] = field(default_factory=dict)
    """What else the objective gives to the model, by the names of its arguments: [B, ...]."""

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same on a device, converted there to int64, the type that models take."""
        import torch

        wide = {
            name: getattr(self, name).to(device, non_blocking=True).to(torch.int64)
            for name in ("input_ids", "labels", "position_ids")
        }
        others = {name: tensor.to(device, non_blocking=True) for name, tensor in self.others.items()}
        return replace(self, **wide, cu_seqlens=self.cu_seqlens.to(device, non_blocking=True), others=others)

    def model_inputs(self) -> dict[str, Any]:
        """The keyword arguments of the model's forward pass."""
        names = ("input_ids", "labels", "position_ids", "cu_seqlens", "max_seqlen")
        return {name: getattr(self, name) for name in names} | self.others


@dataclass(frozen=True)
class RankBatch:
    """One rank's share of a global batch."""

    first_sample: int
    """Number of the global batch's first sample; the next one starts global_batch_size later."""
    micro_batches: list[MicroBatch]
    label_tokens: int
    """Labels in this rank's share that are not -100."""
    input_tokens: int
    """Tokens in this rank's share that are not padding."""
    digest: int
    """This rank's part of the digest of the global batch, as int64. The sum over ranks, modulo 2^64, is the same at
    every world size."""
    inputs_digest: int = 0
    """Likewise of what the objective made of the batch; 0 where that is the tokens as they are."""


def micro_batches_of(rows: PreparedRows, size: int) -> list[MicroBatch]:
    """Rows as micro-batches of `size` rows each, which share their memory."""
    import torch

    count, length = rows.input_ids.shape
    cuts = rows.boundaries.searchsorted(np.arange(0, count + 1, size) * length)
    longest = np.maximum.reduceat(rows.boundaries[1:] - rows.boundaries[:-1], cuts[:-1]).tolist()
    starts = np.arange(0, count, size) * length
    tensors = (torch.split(torch.from_numpy(each), size) for each in (rows.input_ids, rows.labels, rows.positions))
    others = {name: torch.split(torch.from_numpy(array), size) for name, array in rows.others.items()}
    label_tokens, input_tokens = (
        tokens.reshape(-1, size).sum(axis=1).tolist() for tokens in (rows.label_tokens, rows.input_tokens)
    )
    return [
        MicroBatch(
            ids,
            labels,
            positions,
            torch.from_numpy((rows.boundaries[cut : after + 1] - start).astype(np.int32)),
            longest[number],
            label_tokens[number],
            input_tokens[number],
            {name: parts[number] for name, parts in others.items()},
        )
        for number, (ids, labels, positions, start, cut, after) in enumerate(
            zip(*tensors, starts.tolist(), cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
        )
    ]


def digest_rows(values: npt.NDArray[Any], first_position: int) -> int:
    """Sum of the digests of rows [R, ...] that follow each other in the global batch.

    The digest of a row is the xxh3-64 of its values, of token ids in 32 bits each, seeded with its position in the
    global batch.
    """
    if not len(values):
        return 0
    size = values.nbytes // len(values)
    data = np.ascontiguousarray(values).data.cast("B")
    return sum(
        xxhash.xxh3_64_intdigest(data[row * size : (row + 1) * size], seed=first_position + row)
        for row in range(len(values))
    )


def digest_inputs(rows: PreparedRows, own: slice, first_position: int) -> int:
    """The digest of everything that an objective gives to a model of some rows: see `digest_rows`."""
    arrays = [rows.input_ids, rows.labels, rows.positions, *(rows.others[name] for name in sorted(rows.others))]
    # Each array has a weight of its own, so that two that change places give another sum.
    return sum((2 * number + 1) * digest_rows(array[own], first_position) for number, array in enumerate(arrays))


def wrap_int64(total: int) -> int:
    """An integer modulo 2^64, as int64, which an all-reduce can sum."""
    total &= (1 << 64) - 1
    return total - (1 << 64) if total >> 63 else total


def format_digest(total: int) -> str:
    """The digest of a global batch, summed over ranks, as 16 hexadecimal digits."""
    return f"{total & ((1 << 64) - 1):016x}"
