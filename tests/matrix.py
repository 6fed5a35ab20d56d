"""Thins a matrix of cases: the quick suite has one representative of each kind, `-m long` has all.

    @pytest.mark.parametrize("case", thinned(cases(), keep=one_of_each(cases(), asdict)), ids=name)

A case that is not kept has the mark `long`. A new stage, precision or fault is kept by itself: `one_of_each` finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import pytest

Case = TypeVar("Case")


def one_of_each(cases: Iterable[Case], kinds: Callable[[Case], Mapping[str, Hashable]]) -> list[Case]:
    """A few of the cases, in which each value of each kind occurs at least once: a greedy cover.

    Args:
        cases: to choose from; of cases that add as much, the first is taken, so cheap ones belong in front.
        kinds: what a case represents: kind -> value, such as `{"stage": 3, "precision": "bf16"}`.
    """
    left = list(cases)
    wanted = {kind for case in left for kind in kinds(case).items()}
    chosen: list[Case] = []
    while wanted:
        best = max(left, key=lambda case: len(wanted & set(kinds(case).items())))
        wanted -= set(kinds(best).items())
        left.remove(best)
        chosen.append(best)
    return chosen


def thinned(cases: Iterable[Case], keep: Sequence[Case]) -> list[Any]:
    """The cases as parameters of pytest; those that are not in `keep` have the mark `long`."""
    every = list(cases)
    assert keep and all(case in every for case in keep), "a case to keep is none of the cases"
    return [_parameter(case) if case in keep else _parameter(case, pytest.mark.long) for case in every]


def _parameter(case: Any, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(*(case if type(case) is tuple else (case,)), marks=marks)


def selected(request: pytest.FixtureRequest, name: str) -> list[Any]:
    """The values of parameter `name` in the tests that will run, within the scope of the fixture that asks.

    A fixture that computes many cases in one launch takes these alone. Its scope is "module" or "package": that of the
    session would take parameters of this name from everywhere.
    """
    found: list[Any] = []
    for item in request.session.items:
        if request.node in item.listchain() and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            parameters = item.callspec.params
            if name in parameters and parameters[name] not in found:
                found.append(parameters[name])
    return found
