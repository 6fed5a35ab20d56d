"""Columns of numbers that stand one behind the other in a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class ColumnReader:
    """Takes columns out of bytes, in their order.

    Args:
        data: all of the file.
        position: of the first column.
    """

    def __init__(self, data: memoryview, position: int) -> None:
        self._data = data
        self.position = position
        """Where the next column begins."""

    def __call__(self, dtype: str, length: int) -> npt.NDArray[Any]:
        """[length], the next column: a view."""
        values = np.frombuffer(self._data, dtype, length, self.position)
        self.position += values.nbytes
        return values
