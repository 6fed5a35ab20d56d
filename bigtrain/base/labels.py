"""Numbers that data and models agree on: the label of a position that has none, and the bytes of tokens."""

from __future__ import annotations

IGNORE_INDEX = -100
"""PyTorch's default for `ignore_index` of the cross-entropy, and Hugging Face's."""

BYTE_SYMBOLS = 260
"""Tokens by their bytes: 0 is padding, 1 to 256 are the bytes 0 to 255. 257 stands before the bytes of a token, or 259
before those of a special one, and 258 after them."""
