"""The base class of every section of the settings, and types that their fields share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bigtrain.base import has_home

UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
OpenUnitInterval = Annotated[float, Field(ge=0.0, lt=1.0)]
LARGEST = 2**53
"""Integers up to this are exact in JSON and as floats, and all sums of a run fit 64 bits."""
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


def _home_filled_in(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path cannot hold the character NUL")
    try:
        if path.parts[:1] == ("~",) and not has_home():
            raise RuntimeError
        return path.expanduser()
    except RuntimeError:  # pydantic would not turn it into a validation error
        raise ValueError(f"the home directory that {path.parts[0]} stands for is unknown; write it out") from None


def _checked(place: str) -> str:
    if "://" not in place:
        _home_filled_in(Path(place))
    return place


UserPath = Annotated[Path, AfterValidator(_home_filled_in)]
"""A path in which ~ at the start means the home directory."""
PathOrUrl = Annotated[str, AfterValidator(_checked)]
"""A path, in which ~ at the start means the home directory, or a URL."""


class Section(BaseModel):
    """A part of the tree. Unknown keys are refused; a value is never converted into another type."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
