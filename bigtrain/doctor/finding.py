"""What a check has found: one line of the table, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from bigtrain.base.errors import BigtrainError

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """The outcome of a check, or of a part of it."""

    check: str
    status: Status
    found: str
    """One sentence, with the rank and the host where it is about some and not all."""
    wanted: str | None = None
    fix: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of_error(cls, check: str, error: BigtrainError, where: str = "") -> Finding:
        """A user's error as a failed check."""
        found = error.what if error.found is None else f"{error.what}: {error.found}"
        wanted = None if error.wanted is None else str(error.wanted)
        return cls(check, "failed", f"{where}{found}", wanted, error.fix)
