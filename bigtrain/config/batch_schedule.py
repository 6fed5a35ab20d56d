"""How many samples each step has, and which samples: in closed form, for both directions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple


class BatchStage(NamedTuple):
    """Steps in a row whose global batches have the same number of samples."""

    first_step: int
    """Steps count from 1."""
    first_sample: int
    """Samples count from 0: the first of `first_step`'s batch."""
    global_batch_size: int
    length: Fraction = Fraction(1)
    """Tokens of a sample as a multiple of `data.sequence_length`."""

    def micro_batch_size(self, of_first: int) -> int:
        """Samples in one forward pass that hold as many tokens as `of_first` samples of `data.sequence_length`; at
        least one."""
        return max(1, int(of_first / self.length))


class LengthChange(NamedTuple):
    """From a step on, samples of another length."""

    first_step: int
    length: Fraction
    """As a multiple of `data.sequence_length`."""
    key: str
    """Of the setting that says so."""


class BatchSchedule:
    """The sizes of all global batches of a run.

    Args:
        warmup: (steps, global_batch_size) of the stages before the last, in order.
        global_batch_size: the size of all batches after them.
    """

    def __init__(self, warmup: Sequence[tuple[int, int]], global_batch_size: int) -> None:
        sizes: list[tuple[int, int, Fraction, str]] = []
        step = 1
        for number, (steps, size) in enumerate((*warmup, (0, global_batch_size))):
            section = f"train.batch_size_warmup.{number}" if number < len(warmup) else "train"
            sizes.append((step, size, Fraction(1), f"{section}.global_batch_size"))
            step += steps
        self._set(sizes)

    def _set(self, sizes: Iterable[tuple[int, int, Fraction, str]]) -> None:
        """Set the stages from (first step, size, length, key); equal ones in a row are one stage."""
        stages: list[BatchStage] = []
        keys: list[str] = []
        for step, size, length, key in sizes:
            last = stages[-1] if stages else BatchStage(1, 0, 0)
            if (size, length) != (last.global_batch_size, last.length):
                sample = last.first_sample + (step - last.first_step) * last.global_batch_size
                stages.append(BatchStage(step, sample, size, length))
                keys.append(key)
        self.stages = tuple(stages)
        self.keys = tuple(keys)
        """The key of the settings that gives each stage its size."""

    def with_lengths(self, changes: Sequence[LengthChange]) -> BatchSchedule:
        """The same steps, each with as many tokens as before, in samples of other lengths.

        Args:
            changes: in the order of their steps. A size that is no whole number is rounded down: settings refuse it.
        """
        sizes: list[tuple[int, int, Fraction, str]] = []
        for step in sorted({stage.first_step for stage in self.stages} | {change.first_step for change in changes}):
            own = self.stage_of(step)
            length, key = Fraction(1), self.keys[self.stages.index(own)]
            for change in changes:
                if change.first_step <= step:
                    length, key = change.length, change.key if change.length != 1 else key
            sizes.append((step, int(own.global_batch_size / length), length, key))
        schedule = BatchSchedule((), 1)
        schedule._set(sizes)
        return schedule

    @property
    def sizes(self) -> list[int]:
        """The global batch sizes, in the order of the stages."""
        return [stage.global_batch_size for stage in self.stages]

    def stage_of(self, step: int) -> BatchStage:
        """The stage that a step is in."""
        return next(s for s in reversed(self.stages) if s.first_step <= step)

    def samples_of(self, step: int) -> range:
        """The numbers of the samples in a step's global batch."""
        stage = self.stage_of(step)
        start = stage.first_sample + (step - stage.first_step) * stage.global_batch_size
        return range(start, start + stage.global_batch_size)

    def consumed_after(self, step: int) -> int:
        """Samples in all steps up to this one; 0 after step 0."""
        return self.samples_of(step + 1).start

    def held_before(self, sample: int) -> Fraction:
        """The samples before this one, each as a multiple of one of `data.sequence_length`."""
        ends = [*(stage.first_sample for stage in self.stages[1:]), sample]
        counts = (
            (min(end, sample) - stage.first_sample, stage.length) for stage, end in zip(self.stages, ends, strict=True)
        )
        return sum((max(0, count) * length for count, length in counts), Fraction(0))

    def step_of(self, sample: int) -> int:
        """The step whose global batch holds a sample."""
        stage = next(s for s in reversed(self.stages) if s.first_sample <= sample)
        return stage.first_step + (sample - stage.first_sample) // stage.global_batch_size
