"""What a family is at Hugging Face: rows of its table, and the classes of transformers that its models have by head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bigtrain.config import ModelSettings
from bigtrain.convert.config_keys import Keys


@dataclass(frozen=True)
class Module:
    """A module at Hugging Face and what its weight, and its bias where there is one, are made of here.

    `{}` in a name is the layer; in theirs, a second one is the expert. Of a `row` and of `heads_last` both are names of
    whole tensors.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Literal["joined", "conv1d", "by_head", "experts", "row", "heads_last", "heads_last_transposed"] = "joined"
    gated: bool | None = None
    """Only of models whose feed-forward layers are gated, or are not."""


@dataclass(frozen=True)
class Head:
    """A class of transformers whose model has another head than the family's language model."""

    architecture: str
    settings: Mapping[str, Any]
    """What the architecture says of the section model."""
    modules: tuple[Module, ...] = ()
    """Of the head."""
    keys: tuple[Keys, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    training_only: frozenset[str] = frozenset()
    starts: tuple[str, str] | None = None
    """What begins the names of the language model's tensors, and what begins them here."""


@dataclass(frozen=True)
class Family:
    """A family at Hugging Face."""

    architecture: str
    """The class of its language model."""
    keys: tuple[Keys, ...]
    modules: tuple[Module, ...]
    """In the order in which their tensors are written: before the layers, of each layer, after them; the head last."""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys of config.json that may have these values only: with others a model would compute something else."""
    same_as: Mapping[str, str] = field(default_factory=dict)
    """Keys that published files have beside another of the same value."""
    training_only: frozenset[str] = frozenset({"attention_dropout"})
    """Keys that make training noisy, which ours is not; what a trained model computes is the same."""
    idle: frozenset[str] = frozenset()
    """Keys of this family that change nothing."""
    prefix: str = "model."
    """Published files may lack it in front of their tensors' names."""
    buffers: str = r"rotary_emb\.inv_freq$"
    """Names of tensors that published files hold beside the weights, though they follow from config.json."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Tensors' names in other releases of transformers, and those of this table. A file may hold both, alike."""
    older_ends: Mapping[str, str] = field(default_factory=dict)
    """Ends of tensors' names in older files, and those of today."""
    token_ids: frozenset[str] = frozenset()
    """Keys of tokens that only this family has; an export writes that there are none."""
    other_heads: str = r"(?!)"
    """Names of tensors of heads that the language model does not have; an import leaves them out with a note."""
    model_type: str | None = None
    """Its name in config.json, where that is another family's, too. Default: the family's own."""
    heads: tuple[Head, ...] = ()
    """Its models with other heads than the language model's."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the architecture says of the section model."""
    whole_heads: bool = False
    """transformers asks for a hidden_size that is a multiple of num_attention_heads."""

    def of(self, settings: ModelSettings) -> Family | None:
        """The family with the head that a model of these settings has; None where transformers has no such class."""
        chosen = {name: getattr(settings, name) for name in _NO_OTHER_HEAD}
        return next((each for each in self.variants() if {**_NO_OTHER_HEAD, **each.settings} == chosen), None)

    def variants(self) -> Iterator[Family]:
        """The family with each head that it may have, that of the language model first."""
        yield self
        for head in self.heads:
            yield self._with(head)

    def _with(self, head: Head) -> Family:
        own = self.modules
        if head.settings.get("task_head"):  # it takes the place of the others
            own = tuple(module for module in own if not module.ours[0].startswith(("lm_head", "sentence_head")))
        old, new = head.starts or ("", "")

        def moved(name: str) -> str:
            return new + name.removeprefix(old) if name.startswith(old) else name

        return replace(
            self,
            architecture=head.architecture,
            keys=self.keys + head.keys,
            modules=(*(replace(module, theirs=moved(module.theirs)) for module in own), *head.modules),
            only={**self.only, **head.only},
            training_only=self.training_only | head.training_only,
            idle=self.idle - head.training_only,
            prefix=moved(self.prefix),
            renamed={moved(name): moved(today) for name, today in self.renamed.items()},
            settings=head.settings,
        )


_NO_OTHER_HEAD: Mapping[str, Any] = {"sentence_head": False, "task_head": "none"}
