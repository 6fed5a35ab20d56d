"""What the loader yields: micro-batches as tensors, and all of a rank's for one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from bigtrain.data.packing import PackedRows

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass: B rows of T tokens, D documents in them."""

    input_ids: Tensor
    """int64 [B, T]"""
    labels: Tensor
    """int64 [B, T], shifted already: the token after the one at the same place in input_ids; -100 where there is
    none (the last token of a document, padding)."""
    position_ids: Tensor
    """int64 [B, T], from 0 in each document."""
    cu_seqlens: Tensor
    """int32 [D+1], boundaries of documents over the B*T flattened tokens; every row starts a document."""
    max_seqlen: int
    """Tokens in the longest document."""
    label_tokens: int
    """Labels that are not -100."""
    input_tokens: int
    """Tokens that are not padding."""

    @classmethod
    def of(cls, rows: PackedRows) -> MicroBatch:
        """Rows as tensors."""
        import torch

        return cls(
            input_ids=torch.from_numpy(rows.window[:, :-1].astype(np.int64)),
            labels=torch.from_numpy(rows.labels),
            position_ids=torch.from_numpy(rows.positions),
            cu_seqlens=torch.from_numpy(rows.boundaries),
            max_seqlen=rows.max_document,
            label_tokens=rows.label_tokens,
            input_tokens=rows.input_tokens,
        )

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same on a device."""
        tensors = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "labels", "position_ids", "cu_seqlens")
        }
        return MicroBatch(**{**vars(self), **tensors})

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
    """This rank's contribution to the digest of the global batch, as int64: the sum over ranks, with wrap-around,
    is the same at every world size."""


def digest_rows(rows: PackedRows, first_position: int) -> int:
    """Sum of the digests of rows that follow each other in the global batch."""
    return sum(digest_row(row[:-1], first_position + index) for index, row in enumerate(rows.window))


def digest_row(token_ids: npt.NDArray[np.uint32], position: int) -> int:
    """xxh3-64 of a row's T token ids as u32, seeded with its position in the global batch."""
    return xxhash.xxh3_64_intdigest(token_ids.data, seed=position)


def wrap_int64(total: int) -> int:
    """An integer modulo 2^64, as the int64 that an all-reduce adds up."""
    total &= (1 << 64) - 1
    return total - (1 << 64) if total >> 63 else total


def format_digest(total: int) -> str:
    """The digest of a global batch, summed over ranks, as 16 hexadecimal digits."""
    return f"{total & ((1 << 64) - 1):016x}"
