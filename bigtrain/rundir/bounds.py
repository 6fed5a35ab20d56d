"""What a number in a run's records may be. A record with another one is damaged, or another program wrote it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

LONGEST_SECONDS = 1e12
"""A record that says more, some 30,000 years, is damaged."""
LARGEST_COUNT = 2**53
"""The largest integer up to which JSON's numbers are exact in every language."""

Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Move = Annotated[int, Field(ge=-LARGEST_COUNT, le=LARGEST_COUNT)]
Seconds = Annotated[float, Field(ge=0, lt=LONGEST_SECONDS)]
Quantity = Annotated[float, Field(ge=0, lt=1e300)]
"""A rate or a share: not negative, and finite, so that sums and products of it are."""
