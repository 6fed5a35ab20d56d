"""The one kind of error that a user is meant to read."""

from __future__ import annotations

from bigtrain.base.exit_status import WRONG


class BigtrainError(Exception):
    """The user's input or environment is wrong; nothing is broken inside.

    The command line prints it without a traceback and exits with `status`. A good message has four parts,
    given here by name so that none is forgotten:

    Args:
        what: one sentence: what is wrong and where (file, line, key).
        found: the value that was found.
        wanted: the value that would have been right.
        fix: what to do about it, as a command or an edit where possible.
    """

    def __init__(self, what: str, *, found: object = None, wanted: object = None, fix: str | None = None) -> None:
        self.what, self.found, self.wanted, self.fix = what, found, wanted, fix
        self.shared = False
        """Whether every rank of a job raises this same error, so that it is enough if one of them prints it."""
        self.status = WRONG
        """The exit status of a process that ends with this error; not 1 where another start may help."""
        super().__init__(what, found, wanted, fix)

    def on_all_ranks(self) -> BigtrainError:
        """Mark this error as one that every rank raises, and return it."""
        self.shared = True
        return self

    def leaving_with(self, status: int) -> BigtrainError:
        """Set the exit status of a process that ends with this error, and return the error."""
        self.status = status
        return self

    def __str__(self) -> str:
        lines = [self.what]
        for label, value in (("found", self.found), ("wanted", self.wanted), ("fix", self.fix)):
            if value is not None:
                lines.append(f"  {label + ':':8}{value}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return (
            _rebuild,
            (type(self), self.what, self.found, self.wanted, self.fix),
            {"shared": self.shared, "status": self.status},
        )


def _rebuild(cls: type[BigtrainError], what: str, found: object, wanted: object, fix: str | None) -> BigtrainError:
    return cls(what, found=found, wanted=wanted, fix=fix)
