"""How many samples each step has, and which samples: in closed form, for both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class BatchStage(NamedTuple):
    """Steps in a row whose global batches have the same number of samples."""

    first_step: int
    """Steps count from 1."""
    first_sample: int
    """Samples count from 0: the first of `first_step`'s batch."""
    global_batch_size: int


class BatchSchedule:
    """The sizes of all global batches of a run.

    Args:
        warmup: (steps, global_batch_size) of the stages before the last, in order.
        global_batch_size: the size of all batches after them.
    """

    def __init__(self, warmup: Sequence[tuple[int, int]], global_batch_size: int) -> None:
        stages: list[BatchStage] = []
        keys: list[str] = []
        step, sample = 1, 0
        for number, (steps, size) in enumerate((*warmup, (0, global_batch_size))):
            if not stages or stages[-1].global_batch_size != size:
                stages.append(BatchStage(step, sample, size))
                section = f"train.batch_size_warmup.{number}" if number < len(warmup) else "train"
                keys.append(f"{section}.global_batch_size")
            step, sample = step + steps, sample + steps * size
        self.stages = tuple(stages)
        self.keys = tuple(keys)
        """The key of the settings that gives each stage its size."""

    @property
    def sizes(self) -> list[int]:
        """The global batch sizes, in the order of the stages."""
        return [stage.global_batch_size for stage in self.stages]

    def samples_of(self, step: int) -> range:
        """The numbers of the samples in a step's global batch."""
        stage = next(s for s in reversed(self.stages) if s.first_step <= step)
        start = stage.first_sample + (step - stage.first_step) * stage.global_batch_size
        return range(start, start + stage.global_batch_size)

    def consumed_after(self, step: int) -> int:
        """Samples in all steps up to this one; 0 after step 0."""
        return self.samples_of(step + 1).start

    def step_of(self, sample: int) -> int:
        """The step whose global batch holds a sample."""
        stage = next(s for s in reversed(self.stages) if s.first_sample <= sample)
        return stage.first_step + (sample - stage.first_sample) // stage.global_batch_size
