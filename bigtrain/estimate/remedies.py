"""Settings that save memory, cheapest first: what an error of a full device names, and what a plan tries.

recompute what is cheap -> smaller micro-batches -> recompute all -> divide more -> the host's memory -> share sequences
"""

from __future__ import annotations

from dataclasses import dataclass

from bigtrain.config import Settings


@dataclass(frozen=True)
class Remedy:
    """One change of the settings, and what it costs."""

    key: str
    value: str | int
    now: str
    """The value that it has, and what else has to change."""
    why: str = ""

    @property
    def override(self) -> str:
        """As `bigtrain train` takes it."""
        return f"{self.key}={self.value}"

    def __str__(self) -> str:
        return f"{self.key} {self.value} (now {self.now})" + (f": {self.why}" if self.why else "")


def remedies(settings: Settings, *, data_size: int, devices: int, on_gpu: bool) -> list[Remedy]:
    """List the settings that would save memory, cheapest first, without those that are set already.

    Args:
        settings: of the run.
        data_size: groups of ranks with samples of their own.
        devices: ranks.
        on_gpu: whether there is a host's memory beside that of the device.
    """
    engine, rows = settings.engine, settings.train.micro_batch_size
    recomputes, alone = engine.activation_checkpointing, engine.tensor_parallel_size == 1
    advice: list[Remedy] = []

    def add(key: str, value: str | int, now: object, why: str = "") -> None:
        advice.append(Remedy(key, value, str(now), why))

    if recomputes == "none" and alone:
        add("engine.activation_checkpointing", "selective", recomputes, "recomputes what is cheap")
    if rows > 1:
        add("train.micro_batch_size", rows // 2, rows, "more are accumulated, the mathematics stays")
    if recomputes not in ("full", "offloaded"):
        add("engine.activation_checkpointing", "full", recomputes)
    elif recomputes == "full" and on_gpu:
        add("engine.activation_checkpointing", "offloaded", recomputes, "blocks' inputs in the host's memory")
    if data_size > 1 and engine.zero_stage < (3 if alone else 2):
        add("engine.zero_stage", engine.zero_stage + 1, engine.zero_stage, "more is spread over ranks")
    if on_gpu and engine.offload_optimizer == "none" and alone:
        now = "none" if engine.zero_stage else "none, with engine.zero_stage 1"
        add("engine.offload_optimizer", "cpu", now, "masters and moments in the host's memory")
    if on_gpu and engine.zero_stage == 3 and engine.offload_param == "none":
        add("engine.offload_param", "cpu", "none", "resting weights in the host's memory")
    if engine.sequence_parallel_size == 1 and alone and devices > 1:
        add("engine.sequence_parallel_size", 2, 1, "each sequence is shared by two ranks")
    return advice
