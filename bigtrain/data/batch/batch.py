"""What the loader yields: micro-batches as tensors, and all micro-batches of a rank for one step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from bigtrain.data.batch.assemble import AssembledRows

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass: B rows of T tokens, D documents in them."""

    input_ids: Tensor
    """int32 [B, T]"""
    labels: Tensor
    """int32 [B, T], already shifted: the token after the one at the same position of input_ids. -100 if there is none:
    at the last token of a document, and in padding."""
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

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same on a device, converted there to int64, the type that models take."""
        import torch

        wide = {
            name: getattr(self, name).to(device, non_blocking=True).to(torch.int64)
            for name in ("input_ids", "labels", "position_ids")
        }
        return replace(self, **wide, cu_seqlens=self.cu_seqlens.to(device, non_blocking=True))

    def model_inputs(self) -> dict[str, Any]:
        """The keyword arguments of the model's forward pass."""
        names = ("input_ids", "labels", "position_ids", "cu_seqlens", "max_seqlen")
        return {name: getattr(self, name) for name in names}


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


def micro_batches_of(rows: AssembledRows, size: int) -> list[MicroBatch]:
    """Rows as micro-batches of `size` rows each, which share their memory."""
    import torch

    count, length = rows.input_ids.shape
    cuts = rows.boundaries.searchsorted(np.arange(0, count + 1, size) * length)
    longest = np.maximum.reduceat(rows.boundaries[1:] - rows.boundaries[:-1], cuts[:-1]).tolist()
    starts = np.arange(0, count, size) * length
    tensors = (torch.split(torch.from_numpy(each), size) for each in (rows.input_ids, rows.labels, rows.positions))
    return [
        MicroBatch(
            ids, labels, positions, torch.from_numpy((rows.boundaries[cut : after + 1] - start).astype(np.int32)), *rest
        )
        for ids, labels, positions, start, cut, after, *rest in zip(
            *tensors,
            starts.tolist(),
            cuts[:-1].tolist(),
            cuts[1:].tolist(),
            longest,
            rows.label_tokens.reshape(-1, size).sum(axis=1).tolist(),
            rows.input_tokens.reshape(-1, size).sum(axis=1).tolist(),
            strict=True,
        )
    ]


def digest_rows(input_ids: npt.NDArray[np.int32], first_position: int) -> int:
    """Sum of the digests of rows (int32 [R, T]) that follow each other in the global batch.

    The digest of a row is the xxh3-64 of its T token ids, in 32 bits each, seeded with its position in the global
    batch.
    """
    size = input_ids.shape[1] * input_ids.itemsize
    data = input_ids.data.cast("B")
    return sum(
        xxhash.xxh3_64_intdigest(data[row * size : (row + 1) * size], seed=first_position + row)
        for row in range(len(input_ids))
    )


def wrap_int64(total: int) -> int:
    """An integer modulo 2^64, as int64, which an all-reduce can sum."""
    total &= (1 << 64) - 1
    return total - (1 << 64) if total >> 63 else total


def format_digest(total: int) -> str:
    """The digest of a global batch, summed over ranks, as 16 hexadecimal digits."""
    return f"{total & ((1 << 64) - 1):016x}"
