"""The section `compression`: training with weights that are pruned or rounded in each forward pass."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from bigtrain.config.section import NonNegativeInt, OpenUnitInterval, PositiveInt, Section


class CompressionSettings(Section):
    """Training with fewer or coarser weights, so that the model learns to do with them. It concerns the matrices of the
    linear layers inside the blocks. Evaluations, exports and runs that start from this one have the compressed weights;
    checkpoints hold those that learn."""

    sparsity: OpenUnitInterval = 0.0
    """Share of each matrix that is 0 from `pruning_end` on: the weights of the smallest magnitude. A weight that is 0
    for now does not learn; it comes back where others become smaller. 0: none."""
    pruning_start: NonNegativeInt = 0
    """The step after which the share begins to rise, by a cubic schedule (Zhu and Gupta, 2017)."""
    pruning_end: PositiveInt | None = None
    """The step after which the share is `sparsity`."""
    weights: Literal["float", "int8", "int4"] = "float"
    """`int8`, `int4`: quantisation-aware training. Weights are rounded to what integers of this type with a scale for
    each group stand for; the gradient goes to the weight before the rounding (Bengio et al., 2013)."""
    group_size: PositiveInt = 64
    """int8, int4: weights in a row that share a scale."""

    @property
    def is_on(self) -> bool:
        """Whether anything is compressed."""
        return self.sparsity > 0 or self.weights != "float"

    @model_validator(mode="after")
    def _schedule_of_pruning(self) -> CompressionSettings:
        if self.sparsity and self.pruning_end is None:
            raise ValueError(
                f"sparsity {self.sparsity} needs pruning_end, the step from which on it is reached, such as two thirds "
                "of train.steps"
            )
        if not self.sparsity and (self.pruning_start or self.pruning_end is not None):
            raise ValueError(
                "pruning_start and pruning_end are for pruning, found sparsity 0; set sparsity, or remove them"
            )
        if self.pruning_end is not None and self.pruning_end <= self.pruning_start:
            raise ValueError(f"pruning_end {self.pruning_end} is not after pruning_start {self.pruning_start}")
        if self.weights == "float" and self.group_size != type(self).model_fields["group_size"].default:
            raise ValueError(f"group_size {self.group_size} is for weights int8 or int4, found float; remove it")
        return self
