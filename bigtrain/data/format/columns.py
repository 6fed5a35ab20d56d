"""Columns of numbers that are stored one after the other in a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class ColumnReader:
    """Reads columns from bytes, in their order.

    Args:
        data: the bytes of the file.
        position: offset of the first column, in bytes.
    """

    def __init__(self, data: memoryview, position: int) -> None:
        self._data = data
        self.position = position
        """Offset of the next column, in bytes."""

    def __call__(self, dtype: str, length: int) -> npt.NDArray[Any]:
        """[length], the next column: a view."""
        values = np.frombuffer(self._data, dtype, length, self.position)
        self.position += values.nbytes
        return values
