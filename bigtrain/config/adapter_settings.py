"""The section `adapter`: few parameters that are trained in the place of the model's own, in the names of `peft`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from bigtrain.config.section import OpenUnitInterval, PositiveInt, Section

TARGETS = {
    "lora": ("*.q_proj", "*.v_proj"),
    "dora": ("*.q_proj", "*.v_proj"),
    "bottleneck": ("*.o_proj", "*.down_proj"),
}
"""The layers that a method adapts by default."""

_OF_METHODS = {
    "r": ("lora", "dora"),
    "lora_alpha": ("lora", "dora"),
    "lora_dropout": ("lora", "dora"),
    "use_rslora": ("lora", "dora"),
    "target_modules": ("lora", "dora", "bottleneck"),
    "bottleneck_size": ("bottleneck",),
    "num_virtual_tokens": ("prefix_tuning", "prompt_tuning"),
    "modules_to_save": ("lora", "dora", "bottleneck"),
}
"""The keys that only some methods have."""


class AdapterSettings(Section):
    """Parameter-efficient training: the model of model.init_from is frozen, and only what an adapter adds to it learns.
    A checkpoint holds only that, and names its base. Keys are those of `peft`."""

    method: Literal["none", "lora", "dora", "bottleneck", "prefix_tuning", "prompt_tuning"] = "none"
    """`none`: all parameters learn. `lora`: a product of two thin matrices is added to a matrix (Hu et al., 2022).
    `dora`: the same, and the length of each of the matrix's rows is learned by itself (Liu et al., 2024).
    `bottleneck`: a layer of two small matrices after attention and feed-forward layer (Houlsby et al., 2019).
    `prefix_tuning`: keys and values of virtual tokens in front of every document, in every layer (Li and Liang, 2021).
    `prompt_tuning`: embeddings of virtual tokens in front of every document (Lester et al., 2021)."""
    r: PositiveInt = 8
    """lora, dora: rows of the first of the two thin matrices, and columns of the second."""
    lora_alpha: PositiveFloat = 8.0
    """lora, dora: the product is multiplied by lora_alpha / r."""
    lora_dropout: OpenUnitInterval = 0.0
    """lora, dora: share of the channels that is dropped of what the thin matrices are multiplied with."""
    use_rslora: bool = False
    """lora, dora: the product is multiplied by lora_alpha / sqrt(r) instead (Kalajdzievski, 2023)."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Patterns for the whole names of the linear layers inside the blocks that are adapted, such as `*.q_proj` or
    `layers.3.mlp.*`. Default: `*.q_proj` and `*.v_proj`; of `bottleneck` `*.o_proj` and `*.down_proj`, with which
    attention and feed-forward layer end."""
    modules_to_save: tuple[str, ...] = ()
    """Patterns for the names of modules that learn as a whole beside the adapter, such as `lm_head` or `*norm`."""
    bottleneck_size: PositiveInt = 64
    """bottleneck: width between its two matrices."""
    num_virtual_tokens: PositiveInt = 20
    """prefix_tuning, prompt_tuning: virtual tokens in front of every document, whose positions begin after them."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The patterns of the layers that are adapted, with the default filled in."""
        return TARGETS.get(self.method, ()) if self.target_modules is None else self.target_modules

    @property
    def scaling(self) -> float:
        """lora, dora: what the product of the thin matrices is multiplied by."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)

    @property
    def virtual_tokens(self) -> int:
        """Virtual tokens in front of every document; 0 for other methods."""
        return self.num_virtual_tokens if self.method in ("prefix_tuning", "prompt_tuning") else 0

    @property
    def low_rank(self) -> bool:
        """Whether a matrix gets a product of two thin ones, which can be merged into it."""
        return self.method in ("lora", "dora")

    @model_validator(mode="after")
    def _keys_of_the_method(self) -> AdapterSettings:
        for key, methods in self._idle():
            raise ValueError(
                f"{key} {getattr(self, key)} is for method {' or '.join(methods)}, found method {self.method}; "
                "remove it, or change the method"
            )
        return self

    def _idle(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The keys with a value that this method does not have, each with the methods that do."""
        for key, methods in _OF_METHODS.items():
            if self.method not in methods and getattr(self, key) != type(self).model_fields[key].default:
                yield key, methods
