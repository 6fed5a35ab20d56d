"""Weights that a new run may start from, `model.init_from`: of an import, or of a run. Its head may be another one.

name of a parameter of the new model  --origins-->  name of the tensor here; none: it is new
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigtrain.base import BigtrainError, read_json
from bigtrain.config import ModelSettings
from bigtrain.convert.config_json import OF_TOKENS_HEAD, differences, function_of
from bigtrain.convert.shards import tensor_digest
from bigtrain.model import build_model

TOKENIZER_BYTES = 1 << 28
"""A tokenizer.json is not longer: those with 260,000 tokens have 35 MB."""

_ADJUSTABLE = ("max_position_embeddings", "rope_scaling")
"""Settings that a continued training may change on purpose: a longer context, and how positions stretch over it."""
_OF_HEADS = ("sentence_head", "task_head", "num_labels", "classifier_transform")
"""Settings of heads, which may be others."""
_OF_ONE_HEAD = (*OF_TOKENS_HEAD, "head_act", "head_transform_bias")
"""Settings that only some heads have: they may be others where one of the two models does not have them."""


class WeightSource(Mapping[str, Tensor]):
    """Weights by our names, each read when it is asked for."""

    folder: Path
    """What model.init_from names."""
    settings: ModelSettings
    """Of the model that has these weights."""
    end_of_text: str
    """The token that ends a document."""
    tokenizer_file: Path
    """The tokenizer that they were trained with."""
    model_file: Path
    """Where the section model is."""

    @property
    def name(self) -> str:
        """What others know the model by."""
        return str(self.folder)

    @property
    def notes(self) -> list[str]:
        """What the user ought to know of them."""
        return []

    def digest(self, name: str) -> str:
        """xxh3-128 of a weight: see `tensor_digest`."""
        return tensor_digest(self[name])

    @property
    def router_moves(self) -> dict[str, list[int]]:
        """The biases of the routers as moves: see `LanguageModel.router_moves`."""
        return {}

    @property
    def begin(self) -> list[str]:
        """The tokens that documents began with."""
        return []

    @property
    def label_names(self) -> list[str] | None:
        """The names of the classes of a model with a task_head, in their order; None without any."""
        return None

    def check_model(self, settings: ModelSettings) -> list[str]:
        """Compare a section model with these weights'; returns notes on what it changes on purpose.

        Raises:
            BigtrainError: it would compute something else with them, other than in its head.
        """
        ours, theirs = function_of(settings), function_of(self.settings)
        of_one = {key for key in _OF_ONE_HEAD if (key in ours) != (key in theirs)}
        differing = {
            key: values
            for key, values in differences(settings, self.settings).items()
            if key not in of_one and key not in _OF_HEADS
        }
        adjusted = {key: differing.pop(key) for key in _ADJUSTABLE if key in differing and self._may_change(key)}
        if differing:
            raise BigtrainError(
                f"the section model is not that of model.init_from {self.folder}",
                found="; ".join(f"{key} {value}" for key, (value, _) in differing.items()),
                wanted="; ".join(f"{key} {value}" for key, (_, value) in differing.items()),
                fix=f"take the section model from {self.model_file}",
            )
        return [f"model.{key} is {now}, and was {before} before" for key, (now, before) in adjusted.items()]

    def check_tokenizer(self, file: Path) -> None:
        """Compare a tokenizer with the one that these weights were trained with; it may have further tokens.

        Raises:
            BigtrainError: it would give texts other ids.
        """
        ours, theirs = _encoding(file), _encoding(self.tokenizer_file)
        differing = [part for part in theirs if part != "added_tokens" and ours[part] != theirs[part]]
        changed = sorted(theirs["added_tokens"].items() - ours["added_tokens"].items())
        if differing or changed:
            raise BigtrainError(
                "the data were not made with the tokenizer of model.init_from",
                found=f"{file}: another {', '.join([*differing, *(f'token {token}' for _, token in changed[:5])])}",
                wanted=self.tokenizer_file,
                fix=f"set data.tokenizer.path to {self.tokenizer_file} and data.tokenizer.end_of_text to "
                f"{self.end_of_text!r}, and build the data in another data.dir",
            )

    def for_model(self, settings: ModelSettings) -> StartingWeights:
        """These weights by the names of the parameters of a new model, which `check_model` has accepted."""
        with torch.device("meta"):
            names = [name for name, _ in build_model(settings).named_parameters()]
        origins = {name: origin for name in names if (origin := self._origin(name, settings)) and origin in self}
        unused = sorted(set(self) - set(origins.values()))
        return StartingWeights(self, origins, [name for name in names if name not in origins], unused)

    def _origin(self, name: str, new: ModelSettings) -> str | None:
        """The name here of what a parameter of a new model starts from; None where it is new whatever is here."""
        if not name.startswith("task_head."):
            return name
        old, part = self.settings, name.removeprefix("task_head.")
        if part.startswith("classifier."):
            return name if (old.task_head, old.num_labels) == (new.task_head, new.num_labels) else None
        if old.task_head != "none" and old.transform_of_task == new.transform_of_task:
            return name
        # As transformers' names have it: a classifier takes over the pooler of bert, and the head of modernbert.
        return {"pooler": f"sentence_head.{part}", "norm": f"lm_head.{part}"}.get(new.transform_of_task)

    def _may_change(self, key: str) -> bool:
        return key == "rope_scaling" or self.settings.position_embedding != "learned"


class StartingWeights(Mapping[str, Tensor]):
    """The first weights of a new model by the names of its parameters, as far as they are not random."""

    def __init__(
        self, source: WeightSource, origins: Mapping[str, str], new: Sequence[str], unused: Sequence[str]
    ) -> None:
        """Args:
        source: where they are read.
        origins: the name there of each.
        new: parameters that get random weights.
        unused: names there of which nothing is taken.
        """
        self._source, self._origins = source, origins
        self.new, self.unused = new, unused
        self.router_moves = source.router_moves

    def under(self, prefix: str) -> StartingWeights:
        """The same by names that begin with something more."""
        return StartingWeights(
            self._source, {f"{prefix}{name}": origin for name, origin in self._origins.items()}, self.new, self.unused
        )

    @property
    def sentence(self) -> str | None:
        """What is new and what is unused, for the log; None where neither is."""
        parts = [f"{what}: {_listed(names)}" for what, names in (("new", self.new), ("not used", self.unused)) if names]
        return f"weights of model.init_from {self._source.folder}; {'; '.join(parts)}" if parts else None

    @property
    def folder(self) -> Path:
        """Where they are read."""
        return self._source.folder

    @property
    def name(self) -> str:
        """What others know the model by that they are of."""
        return self._source.name

    @cached_property
    def digests(self) -> dict[str, str]:
        """xxh3-128 of every weight: see `tensor_digest`."""
        return {name: self._source.digest(origin) for name, origin in self._origins.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._source[self._origins[name]]

    def __contains__(self, name: object) -> bool:  # else it would be read to answer
        return name in self._origins

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f", and {len(names) - 20:,} more" if len(names) > 20 else "")


def _encoding(file: Path) -> dict[str, Any]:
    """What decides which ids a text gets."""
    try:
        content = read_json(file, TOKENIZER_BYTES)
        added = {token["id"]: token["content"] for token in content.get("added_tokens") or ()}
    except (OSError, BigtrainError, KeyError, TypeError, AttributeError) as error:
        found = error.found if isinstance(error, BigtrainError) else error
        raise BigtrainError(f"no tokenizer can be read from {file}", found=str(found)) from None
    return {part: content.get(part) for part in ("model", "normalizer", "pre_tokenizer")} | {"added_tokens": added}
