"""Cross-attention of packed documents on a CPU: document by document (sdpa), and in blocks of several documents.

    PYTHONPATH=. python benchmarks/cross_attention.py [--threads 1] [--repeats 5]

The heads of T5-small (8 of 64), eight rows of 512 tokens for the encoder, forward and backward. Times are those of the
process, the least of the repeats; the back-ends take turns.
"""

from __future__ import annotations

import argparse
import random
import time

import torch

from bigtrain.model.attention.attention_backends import BACKENDS
from bigtrain.model.attention.attention_rule import AttentionRule, KeyBoundaries

HEADS, WIDTH, ROWS, READ, LAYERS = 8, 64, 8, 512, 6
CASES = {"spans": (114, (1, 4, 12)), "denoising": (512, (1, 4, 12)), "pairs": (512, (30,))}
"""Tokens of the decoder's rows, and documents a row."""


def boundaries(documents: int, written: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cu_seqlens of decoder and encoder: documents of random lengths, in the same proportion on both sides."""
    chance = random.Random(documents)
    own, read = [0], [0]
    for row in range(ROWS):
        places = sorted(chance.sample(range(1, min(written, READ)), documents - 1))
        own += [row * written + place * written // min(written, READ) for place in places] + [(row + 1) * written]
        read += [row * READ + place * READ // min(written, READ) for place in places] + [(row + 1) * READ]
    return torch.tensor(own, dtype=torch.int32), torch.tensor(read, dtype=torch.int32)


def times(documents: int, written: int, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Milliseconds of a forward and a backward pass by back-end."""
    own, read = boundaries(documents, written)
    shapes = (ROWS * written, ROWS * READ, ROWS * READ)
    query, key, value = (torch.randn(tokens, HEADS, WIDTH).to(dtype).requires_grad_() for tokens in shapes)
    grad = torch.randn_like(query)
    rule = AttentionRule(WIDTH**-0.5, two_sided=True, keys=KeyBoundaries(read, int(read.diff().max())))
    found: dict[str, list[float]] = {"sdpa": [], "blockwise": []}
    for _ in range(repeats):
        for name, taken in found.items():
            started = time.process_time()
            for _ in range(LAYERS):  # of one model: they ask for the same documents
                output = BACKENDS[name](query, key, value, own, int(own.diff().max()), rule)
                torch.autograd.grad(output, (query, key, value), grad)
            taken.append((time.process_time() - started) / LAYERS * 1e3)
    return {name: min(taken) for name, taken in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for dtype in (torch.bfloat16, torch.float32):
        for name, (written, numbers) in CASES.items():
            for documents in numbers:
                found = times(documents, written, dtype, args.repeats)
                print(
                    f"{name}, {documents} documents a row, {dtype}: "
                    + ", ".join(f"{backend} {taken:.1f} ms" for backend, taken in found.items())
                    + f", {found['sdpa'] / found['blockwise']:.2f} times as fast",
                    flush=True,
                )


if __name__ == "__main__":
    main()
