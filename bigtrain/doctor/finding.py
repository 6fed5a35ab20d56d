"""The finding of a check: one line of the table, and how to fix what is wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from bigtrain.base import BigtrainError

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class CheckFinding:
    """The outcome of a check, or of a part of it."""

    check: str
    status: Status
    found: str
    """One sentence. It names ranks and hosts where it concerns some and not all."""
    wanted: str | None = None
    fix: str | None = None
    hosts: tuple[str, ...] = ()
    """Machines that are at fault themselves, as the scheduler names them. Empty where it may be anything else: a
    setting, a version, something that all machines have in common."""

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {**asdict(self), "hosts": list(self.hosts)}

    @classmethod
    def of_error(cls, check: str, error: BigtrainError, where: str = "") -> CheckFinding:
        """Make a failed check of a user's error.

        Args:
            check: the name of the check.
            error: what it raised.
            where: the ranks, put in front of what was found.
        """
        found = error.what if error.found is None else f"{error.what}: {error.found}"
        wanted = None if error.wanted is None else str(error.wanted)
        return cls(check, "failed", f"{where}{found}", wanted, error.fix)
