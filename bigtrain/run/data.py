"""What a run trains on: its datasets and the order of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bigtrain.config import Settings
from bigtrain.data import Dataset, Loader, Plan, open_datasets

if TYPE_CHECKING:
    from bigtrain.engine.topology import Topology  # imports torch, which questions about data do without


@dataclass(frozen=True)
class RunData:
    """The datasets of a run and the order of its samples."""

    train: list[Dataset]
    held_out: list[Dataset]
    plan: Plan

    @classmethod
    def open(cls, settings: Settings) -> RunData:
        """Open what `bigtrain data build` has made.

        Raises:
            BigtrainError: it has not been built, or with other settings.
        """
        vocab_size = settings.model.vocab_size
        train = open_datasets(settings.data, model_vocab_size=vocab_size)
        held_out = open_datasets(settings.data, model_vocab_size=vocab_size, split="validation")
        return cls(train, held_out, Plan.from_datasets(train, settings.data, settings.train.seed))

    def loader(self, settings: Settings, topology: Topology, first_sample: int) -> Loader:
        """This rank's batches from a sample number on."""
        return Loader(
            self.plan,
            self.train,
            first_sample=first_sample,
            global_batch_size=settings.train.global_batch_size,
            micro_batch_size=settings.train.micro_batch_size,
            rank=topology.rank,
            world_size=topology.world_size,
        )
