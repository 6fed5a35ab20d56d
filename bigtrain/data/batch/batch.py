"""What the loader yields: micro-batches as tensors, and all micro-batches of a rank for one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from bigtrain.objective import PreparedRows

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

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
    label_examples: int = 0
    """Labels of whole examples that are not -100: those of `example_labels` in `others`."""
    others: dict[str, Tensor | int] = field(default_factory=dict)
    """What else the objective gives to the model, by the names of its arguments: tensors [B, ...], and for an
    encoder-decoder encoder_input_ids, encoder_position_ids [B, S], encoder_cu_seqlens and encoder_max_seqlen. Where the
    model has dropout, row_keys int64 [B], from the addresses of the rows."""

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same on a device, converted there to int64, the type that models take."""
        import torch

        def there(name: str, value: Any) -> Any:
            if isinstance(value, int):
                return value
            moved = value.to(device, non_blocking=True)
            return moved.to(torch.int64) if name.endswith(("labels", "_ids")) else moved

        names = ("input_ids", "labels", "position_ids", "cu_seqlens")
        own = {name: there(name, getattr(self, name)) for name in names}
        return replace(self, **own, others={name: there(name, value) for name, value in self.others.items()})

    def model_inputs(self) -> dict[str, Any]:
        """The keyword arguments of the model's forward pass."""
        names = ("input_ids", "labels", "position_ids", "cu_seqlens", "max_seqlen")
        return {name: getattr(self, name) for name in names} | self.others


@dataclass(frozen=True)
class LabelCounts:
    """The labels of a global batch, by loss term."""

    tokens: int
    """Tokens that have a label."""
    examples: int = 0
    """Whole examples that have one."""

    def of_terms(self, number: int) -> list[int]:
        """The counts of the first terms of a loss; at least 1, so that a term without labels is 0."""
        return [max(count, 1) for count in (self.tokens, self.examples)[:number]]


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
    label_examples: int
    """Labels of whole examples in this rank's share that are not -100."""
    digest: int
    """This rank's part of the digest of the global batch, as int64. The sum over ranks, modulo 2^64, is the same at
    every world size."""
    loss_terms: int = 1
    """1, or 2 where the objective labels whole examples, too."""
    inputs_digest: int = 0
    """Likewise of what the objective made of the batch; 0 where that is the tokens as they are."""


def micro_batches_of(rows: PreparedRows, size: int, keys: U64 | None = None) -> list[MicroBatch]:
    """Rows as micro-batches of `size` rows each, which share their memory; with keys [R] these are `row_keys`."""
    import torch

    labels = torch.split(torch.from_numpy(rows.labels), size)
    label_tokens, input_tokens = (
        tokens.reshape(-1, size).sum(axis=1).tolist() for tokens in (rows.label_tokens, rows.input_tokens)
    )
    batches = [
        MicroBatch(ids, labels[number], positions, cu_seqlens, longest, label_tokens[number], input_tokens[number])
        for number, (ids, positions, cu_seqlens, longest) in enumerate(
            _parts_of(rows.input_ids, rows.positions, rows.boundaries, size)
        )
    ]
    if rows.label_examples is not None:
        examples = rows.label_examples.reshape(-1, size).sum(axis=1).tolist()
        batches = [replace(batch, label_examples=count) for batch, count in zip(batches, examples, strict=True)]
    others = dict(rows.others) if keys is None else {**rows.others, "row_keys": keys.view(np.int64)}
    for name, array in others.items():
        for batch, part in zip(batches, torch.split(torch.from_numpy(array), size), strict=True):
            batch.others[name] = part
    if (encoder := rows.encoder) is not None:
        names = ("encoder_input_ids", "encoder_position_ids", "encoder_cu_seqlens", "encoder_max_seqlen")
        parts = _parts_of(encoder.input_ids, encoder.positions, encoder.boundaries, size)
        for batch, own in zip(batches, parts, strict=True):
            batch.others.update(zip(names, own, strict=True))
    return batches


def _parts_of(ids: I32, positions: I32, boundaries: I64, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """Of each `size` rows: ids and positions [size, T], boundaries of documents, and the longest document."""
    import torch

    count, length = ids.shape
    cuts = boundaries.searchsorted(np.arange(0, count + 1, size) * length)
    longest = np.maximum.reduceat(boundaries[1:] - boundaries[:-1], cuts[:-1]).tolist()
    starts = np.arange(0, count, size) * length
    tensors = (torch.split(torch.from_numpy(each), size) for each in (ids, positions))
    for own_ids, own_positions, start, cut, after, most in zip(
        *tensors, starts.tolist(), cuts[:-1].tolist(), cuts[1:].tolist(), longest, strict=True
    ):
        cu_seqlens = torch.from_numpy((boundaries[cut : after + 1] - start).astype(np.int32))
        yield own_ids, own_positions, cu_seqlens, most


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
    arrays += [] if rows.encoder is None else [rows.encoder.input_ids, rows.encoder.positions]
    # Each array has a weight of its own, so that two that change places give another sum.
    return sum((2 * number + 1) * digest_rows(array[own], first_position) for number, array in enumerate(arrays))


def wrap_int64(total: int) -> int:
    """An integer modulo 2^64, as int64, which an all-reduce can sum."""
    total &= (1 << 64) - 1
    return total - (1 << 64) if total >> 63 else total


def format_digest(total: int) -> str:
    """The digest of a global batch, summed over ranks, as 16 hexadecimal digits."""
    return f"{total & ((1 << 64) - 1):016x}"
