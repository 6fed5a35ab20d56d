"""The section `distillation`: a model that learns from another one beside its labels, now or by what it said before."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from bigtrain.config.section import Section, UserPath

KEPT_CLASSES, KEPT_LOG_PROBS = "kept_classes", "kept_log_probs"
"""The names of what was kept of a teacher among the inputs of a model: [B, T, k] integers, and float32 in nats."""


class DistillationSettings(Section):
    """Learning from a larger model of the same family and tokenizer, the teacher. What is learned is label_weight times
    the loss, plus weight and hidden_weight times what the models differ by (Hinton et al., 2015; Sanh et al., 2019).
    The loss that is reported stays that of the labels."""

    teacher: UserPath | None = None
    """A run directory, or a folder written by `bigtrain import`: its model is run beside the one that learns, without
    learning. With ZeRO stage 3 its weights are divided over the ranks, too. Default: no teacher."""
    kept_outputs: UserPath | None = None
    """In place of a teacher: a folder that `bigtrain keep-outputs TEACHER CONFIG` has written for this configuration,
    with what the teacher says of each training sample. Any number of ranks, micro-batch and epoch reads it. Not for
    objectives that make other inputs of a sample in every epoch, and not for hidden_weight. Default: none."""
    kept_classes: Annotated[PositiveInt, Field(le=65536)] = 64
    """kept_outputs: of each prediction the probabilities of so many likeliest classes are kept, where there are more.
    All others count as one class."""
    temperature: PositiveFloat = 2.0
    """Both models' logits are divided by it before they are compared."""
    weight: NonNegativeFloat = 1.0
    """Weight of the divergence of the two models' predictions, for each label."""
    label_weight: NonNegativeFloat = 1.0
    """Weight of the loss of the labels."""
    hidden_weight: NonNegativeFloat = 0.0
    """Weight of the mean square of what the hidden states after some layers differ by, where there are labels (Jiao et
    al., 2020). Where the teacher is wider, a projection of the states is learned, which is thrown away afterwards."""
    layer_map: Annotated[tuple[tuple[NonNegativeInt, NonNegativeInt], ...], Field(max_length=1000)] = ()
    """hidden_weight: pairs of a layer of the model and one of the teacher, each from 0, whose states are compared.
    Default: all layers of the model with layers of the teacher at equal distances, the last one with the last one."""

    @property
    def is_on(self) -> bool:
        """Whether there is a teacher, or what was kept of one."""
        return self.teacher is not None or self.kept_outputs is not None

    def classes_kept(self, classes: int) -> int:
        """How many of so many classes are kept."""
        return min(self.kept_classes, classes)

    @model_validator(mode="after")
    def _work_together(self) -> DistillationSettings:
        fields = type(self).model_fields.items()
        idle = [key for key, field in fields if getattr(self, key) != field.default]  # a run's config.yaml has all keys
        if idle and not self.is_on:
            raise ValueError(f"{', '.join(idle)} without a teacher; set teacher or kept_outputs")
        if self.teacher is not None and self.kept_outputs is not None:
            raise ValueError("teacher and kept_outputs are two ways to learn from a teacher; remove one of them")
        if self.teacher is not None and "kept_classes" in idle:
            raise ValueError("kept_classes is for kept_outputs, found a teacher; remove it")
        if self.kept_outputs is not None and self.hidden_weight:
            raise ValueError(f"hidden_weight {self.hidden_weight} needs hidden states, which are not kept; set teacher")
        if self.layer_map and not self.hidden_weight:
            raise ValueError("layer_map is for hidden_weight, found 0.0; set it, or remove layer_map")
        if self.is_on and not (self.weight or self.hidden_weight):
            raise ValueError("weight and hidden_weight are 0: nothing is learned from the teacher; raise one of them")
        return self

    def layer_pairs(self, own: int, teachers: int) -> tuple[tuple[int, int], ...]:
        """The pairs of layers whose states are compared, for models of so many layers.

        Raises:
            ValueError: layer_map names a layer that there is not.
        """
        if not self.hidden_weight:
            return ()
        if not self.layer_map:
            return tuple((layer, (layer + 1) * teachers // own - 1) for layer in range(own))
        for layer, other in self.layer_map:
            if layer >= own or other >= teachers:
                raise ValueError(
                    f"distillation.layer_map has the pair {layer}, {other}; the model has layers 0 to {own - 1}, the "
                    f"teacher 0 to {teachers - 1}"
                )
        return self.layer_map
