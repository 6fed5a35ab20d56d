"""Runs tasks in this process, one after the other: to see an error where it is, and for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from bigtrain.data.build.execute.executor import BuildExecutor
from bigtrain.data.build.execute.task import Attempt, run_task

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Ended(Generic[Result]):
    value: Result | None
    error: Exception | None

    def done(self) -> bool:
        return True

    def result(self) -> Result:
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # it is None only where the function returned that

    def cancel(self) -> None:
        pass


class Inline(BuildExecutor):
    """This process. A document that kills or hangs it is not isolated: it ends the build."""

    @property
    def ahead(self) -> int:
        """One: each task is run when it is submitted."""
        return 1

    def submit(self, function: Callable[[Item], Result], item: Item, attempt: Attempt) -> _Ended[Result]:
        """Run `function(item)` now."""
        try:
            return _Ended(run_task(function, item, replace(attempt, document_seconds=None, notes=None)), None)
        except Exception as error:
            return _Ended(None, error)

    def close(self, *, at_once: bool) -> None:
        """Nothing runs beside this process."""
