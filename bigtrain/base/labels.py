"""The label of a position that has none: the data write it, and the loss and its metrics leave it out."""

from __future__ import annotations

IGNORE_INDEX = -100
"""PyTorch's default for `ignore_index` of the cross-entropy, and Hugging Face's."""
