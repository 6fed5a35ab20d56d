"""The data of a run: its datasets and the order of its samples."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bigtrain.config import Settings
from bigtrain.data.batch.loader import Loader
from bigtrain.data.batch.packing import Packing, open_packings
from bigtrain.data.batch.planning import make_plan, require_samples
from bigtrain.data.order.plan import Plan
from bigtrain.data.store.store import Dataset, open_datasets


@dataclass(frozen=True)
class RunData:
    """The datasets of a run, how they are packed, and the order of its samples."""

    train: list[Packing]
    held_out: list[Dataset]
    plan: Plan

    @classmethod
    def open(cls, settings: Settings) -> RunData:
        """Open the data that `bigtrain data build` has made.

        Raises:
            BigtrainError: the data are missing, were built with other settings, or are used up before the run ends.
        """
        vocab_size = settings.model.vocab_size
        train = open_packings(settings.data, open_datasets(settings.data, model_vocab_size=vocab_size))
        held_out = open_datasets(settings.data, model_vocab_size=vocab_size, split="validation")
        return cls(train, held_out, _plan_of(settings, train))

    def replanned(self, settings: Settings) -> RunData:
        """The same data in the order of other settings.

        Raises:
            BigtrainError: the data are used up before the run ends.
        """
        return replace(self, plan=_plan_of(settings, self.train))

    @property
    def datasets(self) -> list[Dataset]:
        """The training datasets."""
        return [packing.dataset for packing in self.train]

    def loader(self, micro_batch_size: int, first_sample: int, *, rank: int, world_size: int) -> Loader:
        """The batches of one of `world_size` data-parallel ranks, from a sample number on.

        Raises:
            BigtrainError: a batch does not divide over the ranks, or an item of data.skip matches no document.
        """
        return Loader(
            self.plan,
            self.train,
            first_sample=first_sample,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
        )


def _plan_of(settings: Settings, train: list[Packing]) -> Plan:
    plan = make_plan(settings.data, settings.train, train)
    require_samples(plan, plan.batches.consumed_after(settings.total_steps))
    return plan
