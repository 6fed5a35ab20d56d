"""What a ladder may cost: floating-point operations, or hours on this machine.

Hours need a speed. Two pilots, short runs of a small and of a larger model, measure what a start costs, and the two
numbers of a straight line: seconds a token = a + b x operations a token. A larger model has larger matrices and is
nearer to the machine's peak, which a share of the peak that is the same for all sizes would miss.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bigtrain.base import BigtrainError, duration, quantity
from bigtrain.rundir import RunDirectory, read_events, read_metrics
from bigtrain.trials.ladder.rungs import LadderRun
from bigtrain.trials.ladder.sizes import RungSize

MOST_EPOCHS = 4
"""How often a run may read its text: up to here, repeated text is nearly as good as new text (Muennighoff et al., 2023,
"Scaling Data-Constrained Language Models")."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class PilotTime:
    """What a pilot has measured."""

    size: RungSize
    start_seconds: float
    """Of a run beside its steps: processes, imports, evaluation, the last save."""
    token_seconds: float

    @classmethod
    def read(cls, size: RungSize, pilot: LadderRun) -> PilotTime:
        """The times of a pilot that has ended; its first steps do not count."""
        directory = RunDirectory(pilot.settings.run_dir)
        seconds = [float(line["step_seconds"]) for line in read_metrics(directory.metrics)]
        lived = max(float(event.get("uptime", 0.0)) for event in read_events(directory.events))
        tokens = pilot.settings.train.global_batch_size * pilot.settings.data.sequence_length
        steady = statistics.median(seconds[len(seconds) // 3 :])
        return cls(size, max(0.0, lived - sum(seconds)), steady / tokens)


@dataclass(frozen=True)
class MachineSpeed:
    """The seconds of a run on this machine: a start, and a straight line in the operations a token."""

    start_seconds: float
    token_seconds: float
    flop_seconds: float

    @classmethod
    def of(cls, small: PilotTime, large: PilotTime) -> MachineSpeed:
        """The line through two pilots; or through the origin and the larger, where theirs does not rise."""
        start = max(small.start_seconds, large.start_seconds)
        more = large.size.flops_per_token - small.size.flops_per_token
        slope = (large.token_seconds - small.token_seconds) / more
        offset = small.token_seconds - slope * small.size.flops_per_token
        if slope <= 0 or offset < 0:
            return cls(start, 0.0, large.token_seconds / large.size.flops_per_token)
        return cls(start, offset, slope)

    def seconds(self, run: LadderRun) -> float:
        """What a run takes."""
        return self.start_seconds + self.token_seconds * run.tokens + self.flop_seconds * run.flops


@dataclass(frozen=True)
class Budget:
    """A limit for all runs of a ladder together."""

    flops: float | None
    seconds: float | None
    """One of the two."""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a limit: 1e15 are operations; 90m, 2h and 1.5d are times.

        Raises:
            BigtrainError: it is neither.
        """
        found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([smhd]?)\w*\s*", text, re.IGNORECASE)
        try:
            amount = float(found[1]) if found else 0.0
        except ValueError:
            amount = 0.0
        if found is None or not 0 < amount < float("inf"):
            raise BigtrainError(
                "--budget is no limit",
                found=text,
                wanted="floating-point operations, such as 1e15, or a time, such as 90m, 2h or 1.5d; one of the two",
            )
        unit = found[2].lower()
        return cls(None, amount * _SECONDS[unit]) if unit else cls(amount, None)

    def cost(self, runs: Iterable[LadderRun], speed: MachineSpeed | None) -> float:
        """What runs take of the budget, in its unit."""
        return sum(speed.seconds(run) if speed is not None else run.flops for run in runs)

    @property
    def limit(self) -> float:
        """In its unit."""
        limit = self.flops if self.flops is not None else self.seconds
        assert limit is not None
        return limit

    def written(self, cost: float) -> str:
        """A cost for people."""
        return f"{cost:.3g} FLOPs" if self.flops is not None else duration(cost)


def require_new_text(data: Mapping[str, tuple[float, int]], tokens: float, what: str) -> None:
    """Refuse a run whose text would repeat so often that it is not new text any more.

    Args:
        data: for each source its share of the mixture, and the tokens that it has.
        tokens: of the run.
        what: the run, for people.

    Raises:
        BigtrainError: a source would be read more than `MOST_EPOCHS` times.
    """
    name, epochs = most_repeated(data, tokens)
    if epochs > MOST_EPOCHS:
        raise BigtrainError(
            f"the data are too few for {what}",
            found=f"{quantity(tokens)} tokens, for which {name!r} would be read {epochs:.1f} times",
            wanted=f"at most {MOST_EPOCHS} times: the law of loss is one of new text",
            fix="give a smaller --budget or fewer --tokens, or build more data",
        )


def most_repeated(data: Mapping[str, tuple[float, int]], tokens: float) -> tuple[str, float]:
    """The source that is read most often in a run of so many tokens, and how often."""
    epochs = {name: tokens * share / size for name, (share, size) in data.items() if share}
    name = max(epochs, key=lambda each: epochs[each])
    return name, epochs[name]
