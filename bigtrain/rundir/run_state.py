"""What a checkpoint says beside its tensors and its cursor: `state` in its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict

from bigtrain.base import as_record
from bigtrain.rundir.bounds import Count, Move


@dataclass(frozen=True)
class RunState:
    """The state of a run at a step, as JSON.

    Checkpoints of earlier versions lack some of the fields; they have the defaults. Fields of later versions are
    ignored.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"strict": True, "extra": "ignore"}

    wandb_run_id: str | None = None
    """The W&B run that the run was tracked in."""
    run_dir: str | None = None
    """The run directory, absolute: by it a branch knows whose checkpoint it goes on from."""
    plan: dict[str, Any] = field(default_factory=dict)
    """The plan of samples, as `Plan.describe` gives it."""
    loss_scaler: dict[str, int | float] = field(default_factory=dict)
    """The state of float16's dynamic loss scaling; empty in other precisions."""
    router_moves: dict[str, list[Move]] = field(default_factory=dict)
    """How far the biases of each router of experts have moved; empty without experts."""
    guard: dict[str, Any] = field(default_factory=dict)
    """What the guard remembers of the last steps."""
    decisions: Count = 0
    """How many decisions the run had taken."""
    best: dict[str, Any] = field(default_factory=dict)
    """Which evaluation was the best so far; empty before the first one."""
    base: dict[str, str] = field(default_factory=dict)
    """The digests of the weights that an adapter was trained beside, which the checkpoint does not hold; by name."""

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> RunState:
        """The state in a manifest.

        Raises:
            BigtrainError: a field is not of its type, so another program or a later version wrote it.
        """
        return as_record(cls, dict(state), "the state of the run in a checkpoint's manifest.json")

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)
