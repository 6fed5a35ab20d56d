"""What every layer knows of the tokens at hand beside their hidden states."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from torch import Tensor

from bigtrain.model.attention.attention_rule import KeyBoundaries, OrderRanks
from bigtrain.model.attention.cache import KeyValueCache
from bigtrain.model.attention.virtual_tokens import VirtualPlaces
from bigtrain.model.layers.dropout import DropoutKeys, site_number
from bigtrain.model.layers.rotary import Rotary


class Encoded(NamedTuple):
    """What an encoder has made of what it read, for the decoder that attends to it."""

    states: Tensor
    """[B, S, C], its normalised last hidden states."""
    keys: KeyBoundaries
    """Where its documents begin: as many as the decoder has, in the same order."""


class QueryStream(NamedTuple):
    """Where the second of two streams is, and what it sees of the first."""

    places: Tensor
    """[P] int64, increasing: places among the B T tokens."""
    order: OrderRanks
    """Of these places, and of the tokens."""


class Context(NamedTuple):
    """One for all layers of a forward pass. A tuple, so that compiled and recomputed blocks see the tensors in it."""

    cu_seqlens: Tensor
    """[documents + 1] int32, where documents begin among the B T tokens; each row begins one."""
    max_seqlen: int
    """The longest document, or more."""
    rotary: Rotary | None = None
    """The rotation of queries and keys by position."""
    local_rotary: Rotary | None = None
    """The rotation in layers with sliding attention, where it is another one."""
    distance_bias: Tensor | None = None
    """[H, L], added to the score of a token so many places back; two-sided [H, 2 L - 1]."""
    labelled: Tensor | None = None
    """[B, T] bool, the tokens that count in the losses; None where there are no losses."""
    cache: KeyValueCache | None = None
    """Generation: the tokens before these."""
    order: OrderRanks | None = None
    """In which order tokens see each other; None: as the architecture says."""
    query_stream: QueryStream | None = None
    """Of two streams: the second one, whose states come after those of the B T tokens."""
    distances: Tensor | None = None
    """[2 L - 1, C], what stands for the distances 1 - L to L - 1 in relative attention."""
    segments: Tensor | None = None
    """[B T], the number of each token's segment in relative attention."""
    encoded: Encoded | None = None
    """What the blocks of an encoder-decoder's decoder attend to; None where the cache holds all of it."""
    virtual: VirtualPlaces | None = None
    """Where the virtual tokens stand that an adapter puts in front of every document; None where they are among the
    tokens at hand."""
    dropout: DropoutKeys | None = None
    """The keys of the tokens' dropout, at the site of the layer at hand; None where nothing is dropped."""

    def at_layer(self, number: int) -> Context:
        """The same for one layer, each time that it is used. It has dropout of its own."""
        return self if self.dropout is None else self._replace(dropout=self.dropout.at(_layer_site(number)))


@cache
def _layer_site(number: int) -> int:
    return site_number(f"layer {number}")
