"""Dropout by address (Srivastava et al., 2014): what is dropped follows from the seed, the site, the address of the row
and the place in it. So it is equal at every world size, in every micro-batch, when recomputed, and after every kill.

    row's key (seed, source, epoch, sequence) --position--> token's key --site--> ... --site--> word of two channels

A key is 64 random bits; a site is a name, and names form a path: `layer 3`, `attention_output`. A key and a site give
the key of that site. From a token's key at its last site comes a word of 32 bits for each pair of places, of channels
or of keys attended to, and each place is dropped by its 16 bits of the word. The mixing functions are those of
`bigtrain.objective.randomness`; `kept_at` is the definition, and `cpu_kernels.cpp` computes the same bits.

Rates are multiples of 2^-16, to which others are rounded. What is kept is divided by the share that is kept.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigtrain.model.cpu.cpu_kernels import address, kernels, obstacle
from bigtrain.model.sequence_parallel import SequenceParallel

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_GOLDEN_32, _FIRST_32, _SECOND_32 = 0x9E3779B9, 0x7FEB352D, 0x846CA68B
_STEPS = 1 << 16
"""Rates are multiples of 1 / this."""


def threshold_of(rate: float) -> int:
    """How many of the 2^16 values of 16 bits stand for a dropped place."""
    return min(round(rate * _STEPS), _STEPS - 1)


def scale_of(rate: float) -> float:
    """What is multiplied with the places that are kept: 1 / the share of these."""
    return _STEPS / (_STEPS - threshold_of(rate))


def site_number(name: str) -> int:
    """The signed 64-bit number of a site by its name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=b"dropout 1")
    return int.from_bytes(digest.digest(), "little", signed=True)


class DropoutKeys(NamedTuple):
    """The keys of the tokens of a micro-batch, at a site."""

    own: Tensor
    """[B, T / P] int64, of the tokens that this rank has where P ranks share each sequence."""
    whole: Tensor
    """[B, T] int64, of all tokens of the rows: the same tensor where a rank has whole rows."""

    @classmethod
    def of(cls, row_keys: Tensor, length: int, ranks: SequenceParallel | None = None) -> DropoutKeys:
        """The keys of all tokens of rows, before any site.

        Args:
            row_keys: [B] int64, from the addresses of the rows.
            length: T, tokens in a row.
            ranks: those that share each sequence.
        """
        places = torch.arange(1, length + 1, device=row_keys.device)
        whole = _mixed(row_keys[:, None] + places * _signed(_GOLDEN, 64))
        return cls(whole if ranks is None else ranks.own_tokens(whole), whole)

    def at(self, site: int) -> DropoutKeys:
        """The keys at a site, given by its `site_number`, further along the path."""
        whole = _mixed(self.whole ^ site)
        return DropoutKeys(whole if self.own is self.whole else _mixed(self.own ^ site), whole)


class AttentionDropout(NamedTuple):
    """Dropout of attention weights."""

    keys: Tensor
    """[N, H] int64, for each query and head. A weight is dropped by this and the key's position in its document."""
    rate: float

    @classmethod
    def of(cls, keys: DropoutKeys, rate: float, heads: int, ranks: SequenceParallel | None = None) -> AttentionDropout:
        """For all tokens of the rows and all heads, or those heads that this rank has.

        Args:
            keys: at the site of this attention.
            rate: of weights that are dropped.
            heads: H of the model.
            ranks: those that share each sequence.
        """
        numbers = torch.arange(1, heads + 1, device=keys.whole.device) * _signed(_GOLDEN, 64)
        if ranks is not None:
            numbers = ranks.own_heads(numbers)
        return cls(_mixed(keys.whole.flatten()[:, None] + numbers), rate)


class Dropout(nn.Module):
    """Dropout of the channels of tokens at a site."""

    def __init__(self, rate: float, place: str) -> None:
        """Args:
        rate: the share of channels that is dropped; at 0 the module does nothing.
        place: the last name of the site, unlike those of all others that get the same keys.
        """
        super().__init__()
        self.rate, self.place, self.site = rate, place, site_number(place)

    def forward(self, x: Tensor, keys: DropoutKeys | None) -> Tensor:
        """Map [B, T, C] to [B, T, C], for the keys of its B T tokens; without keys it does nothing."""
        if keys is None or not threshold_of(self.rate):
            return x
        return dropped(x, keys.at(self.site).own, self.rate)


def dropped(x: Tensor, keys: Tensor, rate: float) -> Tensor:
    """x [..., C] with some channels set to zero and the others scaled, by keys [...] at a site. No mask is stored: the
    backward pass computes it again."""
    if x.is_cuda and torch.compiler.is_compiling():  # one kernel with what stands around it
        return torch.where(kept(keys, x.shape[-1], rate), x * scale_of(rate), 0.0)
    output: Tensor = _drop(x, keys, rate)
    return output


def kept_at(keys: Tensor, places: Tensor, rate: float) -> Tensor:
    """Whether places are kept, for keys and places that broadcast: the definition.

    Args:
        keys: [...] int64, at a site.
        places: [...] int64, below 2^32: channels, or positions of attended tokens in their documents.
        rate: of places that are dropped.
    """
    return (_words(keys, places >> 1) >> ((places & 1) << 4)) & 0xFFFF >= threshold_of(rate)


def kept(keys: Tensor, count: int, rate: float) -> Tensor:
    """[..., count]: `kept_at` of the places 0 to count - 1, for keys [...]; each word is computed once."""
    words = _words(keys[..., None], torch.arange((count + 1) // 2, device=keys.device))
    return _halves(words, -1, rate)[..., :count]


def kept_in(keys: Tensor, first: int, last: int, rate: float) -> Tensor:
    """[..., last - first, n]: `kept_at` of the places from `first` to before `last`, for keys [..., n]."""
    pairs = torch.arange(first // 2, (last + 1) // 2, device=keys.device)
    both = _halves(_words(keys[..., None, :], pairs[:, None]), -2, rate)
    return both[..., first % 2 : first % 2 + last - first, :]


def _halves(words: Tensor, dim: int, rate: float) -> Tensor:
    """Whether the two places of each word are kept, one after the other along a dimension counted from the end."""
    return torch.stack((words & 0xFFFF, words >> 16 & 0xFFFF), dim).flatten(dim - 1, dim) >= threshold_of(rate)


@torch.library.custom_op("bigtrain::dropout", mutates_args=())
def _drop(x: Tensor, keys: Tensor, rate: float) -> Tensor:
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16) or obstacle() is not None:
        return torch.where(kept(keys, x.shape[-1], rate), x * scale_of(rate), 0.0)
    x, keys = x.contiguous(), keys.contiguous()
    output = torch.empty_like(x)
    kernels().drop_channels(
        address(x), address(keys), keys.numel(), x.shape[-1], threshold_of(rate), scale_of(rate),
        x.dtype == torch.bfloat16, address(output),
    )  # fmt: skip
    return output


@_drop.register_fake
def _(x: Tensor, keys: Tensor, rate: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.rate = inputs[2]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _drop(grad, ctx.saved_tensors[0], ctx.rate), None, None


_drop.register_autograd(_differentiate, setup_context=_save)


def _mixed(x: Tensor) -> Tensor:
    """Splitmix64's finaliser (Steele, Lea and Flood, 2014) of int64."""
    x = (x ^ _shifted(x, 30, 64)) * _signed(_FIRST, 64)
    x = (x ^ _shifted(x, 27, 64)) * _signed(_SECOND, 64)
    return x ^ _shifted(x, 31, 64)


def _words(keys: Tensor, pairs: Tensor) -> Tensor:
    """The int32 words of pairs of places. It is `lowbias32` (Wellons, 2018) of the pair's number, where half of the key
    is joined to the number, and the other half before the second product."""
    x = (pairs.to(torch.int32) * _signed(_GOLDEN_32, 32)) ^ keys.to(torch.int32)
    x = (x ^ _shifted(x, 16, 32)) * _signed(_FIRST_32, 32)
    x = (x ^ _shifted(x, 15, 32) ^ (keys >> 32).to(torch.int32)) * _signed(_SECOND_32, 32)
    return x ^ _shifted(x, 16, 32)


def _shifted(x: Tensor, by: int, bits: int) -> Tensor:
    """A shift to the right that brings zeros, which PyTorch has for unsigned integers only."""
    return (x >> by) & ((1 << (bits - by)) - 1)


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) else number
