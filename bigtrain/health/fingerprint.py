"""Fingerprints of tensors, computed on their device: ranks compare their weights without sending them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import xxhash

_AT_ONCE = 1 << 24
"""Words of 8 bytes that a GPU sums at a time: 128 MiB beside the tensor."""


def fingerprints(tensors: Iterable[torch.Tensor]) -> list[int]:
    """Compute a 64-bit fingerprint of each tensor: equal for equal bits, and different if any one bit differs.

    Only fingerprints from devices of the same kind compare. On a CPU it is xxh3, at the speed of the memory. On a GPU
    it is a sum modulo 2^64 of the 8-byte words, each times an odd number that depends on its position. A flipped bit
    adds a power of two times an odd number, which is never 0.
    """
    found: list[Any] = []
    for tensor in tensors:
        octets = tensor.detach().contiguous().view(-1).view(torch.uint8)
        if tensor.device.type == "cpu":
            memory: Any = octets.numpy()
            found.append(xxhash.xxh3_64_intdigest(memory))
        else:
            found.append(_weighted_sum(octets))
    on_device = [each for each in found if isinstance(each, torch.Tensor)]
    if not on_device:
        return found
    return [number % 2**64 for number in torch.stack(on_device).tolist()]  # one wait for the device


def fingerprint(tensors: Iterable[torch.Tensor]) -> int:
    """Compute one 64-bit fingerprint for all tensors, in their order."""
    words = b"".join(number.to_bytes(8, "little") for number in fingerprints(tensors))
    return xxhash.xxh3_64_intdigest(words)


def _weighted_sum(octets: torch.Tensor) -> torch.Tensor:
    """Returns an int64 scalar on the device."""
    whole = octets.numel() // 8 * 8
    rest = torch.nn.functional.pad(octets[whole:], (0, 8 - (octets.numel() - whole)))
    total = rest.view(torch.int64)[0] * 3
    words = octets[:whole].view(torch.int64)
    for first in range(0, words.numel(), _AT_ONCE):
        some = words[first : first + _AT_ONCE]
        odd = torch.arange(5 + 2 * first, 5 + 2 * (first + some.numel()), 2, device=octets.device)
        total += (some * odd).sum()
    return total
