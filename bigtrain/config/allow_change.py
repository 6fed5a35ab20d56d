"""Checks `checkpoint.allow_change`: it may name only keys that a checkpoint fixes, so that a typing error is found."""

from __future__ import annotations

from bigtrain.base import BigtrainError
from bigtrain.config.document import Problem, SourceLocation, YamlDocument
from bigtrain.config.keys import find
from bigtrain.config.mathematics import kind_of
from bigtrain.config.settings import Settings
from bigtrain.config.suggest import unknown_key


def problems_of_allow_change(settings: Settings, document: YamlDocument) -> list[Problem]:
    """What is wrong with the keys that are allowed to change."""
    problems = []
    for index, key in enumerate(settings.checkpoint.allow_change):
        place = document.place(("checkpoint", "allow_change", index))
        if (error := _error(key, place)) is not None:
            problems.append(Problem(place, error))
    return problems


def _error(key: str, place: SourceLocation) -> BigtrainError | None:
    where = f"{place.text}: checkpoint.allow_change names"
    known = find(key) if key else None
    if known is None:
        return unknown_key(key, f"{place.text}: checkpoint.allow_change")
    if known.kind == "section" or key == "data.sources":
        return BigtrainError(
            f"{where} a section", found=key, wanted="single keys", fix=f"see: bigtrain config explain {key}"
        )
    match kind_of(key):
        case "mathematics":
            return None
        case "plan":
            return BigtrainError(
                f"{where} a key of the data plan, which is not locked",
                found=key,
                wanted="a key that changes the mathematics in another way",
                fix="remove it: the plan may change for samples that the run has not used yet; see what moves: "
                "bigtrain data diff RUN CONFIG",
            )
        case "operation":
            return BigtrainError(
                f"{where} a key that does not change the mathematics",
                found=key,
                wanted="a key that does, such as train.steps",
                fix="remove it: such a key may have another value at every start",
            )
