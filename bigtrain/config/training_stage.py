"""The stages of a run: steps whose samples have one length, and whose model has one rotation.

    data.phases, train  --> staged_batches   the samples of each step: a step holds the same tokens in every stage
                        --> training_stages  the length and the model from each border on

Since all steps hold the same tokens, a schedule by steps or by tokens means the same with and without stages.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from bigtrain.config.batch_schedule import BatchSchedule, LengthChange
from bigtrain.config.data_settings import DataSettings, PhaseSettings
from bigtrain.config.model_settings import ModelSettings


class TrainingStage(NamedTuple):
    """Steps in a row with one length of samples and one rotation of the model."""

    first_step: int
    sequence_length: int
    model: ModelSettings
    """With the rotation of these steps."""
    phase: int | None
    """The phase with which it starts; None for the start of the run."""


def first_step_of(phase: PhaseSettings, data: DataSettings, batches: BatchSchedule) -> int:
    """The first step of a phase that starts with a whole step.

    Args:
        phase: one of `data.phases`.
        data: the `data` section.
        batches: in samples of `data.sequence_length`: `TrainSettings.batches`.
    """
    return batches.step_of(-(-phase.from_tokens // data.sequence_length) - 1) + 1


def staged_batches(data: DataSettings, batches: BatchSchedule) -> BatchSchedule:
    """The samples of each step, in the lengths that they have.

    Args:
        data: the `data` section.
        batches: in samples of `data.sequence_length`: `TrainSettings.batches`.
    """
    changes = []
    for cut in data.cuts[1:]:
        assert cut.phase is not None
        step, length = first_step_of(data.phases[cut.phase], data, batches), cut.sequence_length
        changes.append(
            LengthChange(step, Fraction(length, data.sequence_length), f"data.phases.{cut.phase}.sequence_length")
        )
    return batches.with_lengths(changes) if changes else batches


def training_stages(data: DataSettings, model: ModelSettings, batches: BatchSchedule) -> tuple[TrainingStage, ...]:
    """The stages of a run, the first from step 1.

    Args:
        data: the `data` section.
        model: the `model` section.
        batches: in samples of `data.sequence_length`: `TrainSettings.batches`.
    """
    stages = [TrainingStage(1, data.sequence_length, model, None)]
    for number, phase in enumerate(data.phases):
        length = phase.sequence_length or stages[-1].sequence_length
        if phase.rotation or length != stages[-1].sequence_length:
            rotated = stages[-1].model.model_copy(update=phase.rotation)
            stages.append(TrainingStage(first_step_of(phase, data, batches), length, rotated, number))
    return tuple(stages)
