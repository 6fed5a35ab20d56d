"""The data of a run: its datasets and the order of its samples.

alone       RunData.open(settings)                    everything is read and checked by this process

together    summaries_of(settings, some sources)      a source is opened by one rank, which sends what it found
            RunData.of(settings, all summaries)       every rank, without a look at the disk
            check_sizes(shares)                       each rank looks at its share of the files
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bigtrain.base import BigtrainError
from bigtrain.config import DataSettings, ModelSettings, ObjectiveSettings, Settings
from bigtrain.data.batch.assemble import assemble
from bigtrain.data.batch.batch import MicroBatch, micro_batches_of
from bigtrain.data.batch.kept import KeptOutputs
from bigtrain.data.batch.loader import Loader
from bigtrain.data.batch.packing import (
    ConcatPacking,
    IndexedPacking,
    Packing,
    fetch,
    held_out_packing,
    open_packings,
    read_packs,
)
from bigtrain.data.batch.planning import make_plan, require_samples
from bigtrain.data.batch.validation import validation_batches
from bigtrain.data.format.labels import LabelScheme
from bigtrain.data.format.summary import PackSummary, SourceSummary
from bigtrain.data.format.token_bytes import token_bytes
from bigtrain.data.format.tokenizer import DataTokenizer, check_vocabulary
from bigtrain.data.order.plan import Plan, SampleAddresses
from bigtrain.data.store.file_shares import FileShares
from bigtrain.data.store.mirror import open_mirror
from bigtrain.data.store.store import Dataset, open_datasets, opened_datasets
from bigtrain.objective import AddressKeys, Objective, PreparedRows, make_objective


@dataclass(frozen=True)
class RunData:
    """The datasets of a run, how they are packed, and the order of its samples."""

    train: list[Packing]
    """Of the sources in their order, once for each of `DataSettings.cuts`."""
    held_out: list[Packing]
    plan: Plan
    objective: Objective
    """What makes inputs and labels of their tokens."""
    kept: KeptOutputs | None = None
    """What a teacher said of the training samples, for a model that learns from that."""
    keyed: bool = False
    """Whether training batches have the keys of their rows: a model with dropout needs them."""

    @classmethod
    def open(cls, settings: Settings) -> RunData:
        """Open the data that `bigtrain data build` has made.

        Raises:
            BigtrainError: the data are missing, were built with other settings, or are used up before the run ends; or
                the tokenizer lacks a token that the objective needs.
        """
        vocab_size = settings.model.vocab_size
        train = open_packings(settings.data, open_datasets(settings.data, model_vocab_size=vocab_size))
        others = open_datasets(settings.data, model_vocab_size=vocab_size, split="validation")
        held_out = [held_out_packing(settings.data, dataset) for dataset in others]
        objective = open_objective(settings.objective, settings.data, settings.model)
        check_labels(settings.model, common_labels([packing.dataset for packing in train]))
        return cls(train, held_out, _plan_of(settings, train), objective, keyed=settings.drops)

    @classmethod
    def of(cls, settings: Settings, summaries: Sequence[SourceSummary], objective: Objective) -> RunData:
        """The data that were opened elsewhere: manifests are read, and files looked at, when a shard is needed.

        Args:
            settings: of the run.
            summaries: of `settings.data.sources`, in that order.
            objective: of `open_objective`.

        Raises:
            BigtrainError: the data are used up before the run ends.
        """
        data = settings.data
        mirror = open_mirror(data, ())
        pairs = list(zip(data.sources, summaries, strict=True))
        datasets = [Dataset(data.dir / source.name / "train", mirror, summary.train) for source, summary in pairs]
        train = [
            _packed(dataset, data.packing, cut.sequence_length, summary.packs.get(cut.sequence_length))
            for cut in data.cuts
            for dataset, (_, summary) in zip(datasets, pairs, strict=True)
        ]
        held_out = [
            _packed(
                Dataset(data.dir / source.name / "validation", mirror, summary.held_out),
                data.packing,
                data.sequence_length,
                summary.held_out_pack,
            )
            for source, summary in pairs
        ]
        check_labels(settings.model, common_labels([packing.dataset for packing in train]))
        return cls(train, held_out, _plan_of(settings, train), objective, keyed=settings.drops)

    def check_sizes(self, shares: FileShares | None = None) -> None:
        """Look at this rank's share of the files of each dataset. Default: at all.

        Raises:
            BigtrainError: a file is missing or has another size than in its manifest.
        """
        shares = shares or FileShares()
        of_folder = {each.directory: shares.of(each.directory) for each in (*self.datasets, *self.held_out_datasets)}
        for dataset in (*self.datasets, *self.held_out_datasets):
            dataset.check_sizes(*of_folder[dataset.directory])
        for packing in (*self.train, *self.held_out):
            packing.check_sizes(*of_folder[packing.dataset.directory])

    def replanned(self, settings: Settings) -> RunData:
        """The same data in the order of other settings.

        Raises:
            BigtrainError: the data are used up before the run ends.
        """
        return replace(self, plan=_plan_of(settings, self.train))

    @property
    def datasets(self) -> list[Dataset]:
        """The training datasets, in the order of the sources."""
        return list(dict.fromkeys(packing.dataset for packing in self.train))

    @property
    def label_scheme(self) -> LabelScheme | None:
        """Names and numbers of the labels, which all labelled sources share; None without any.

        Raises:
            BigtrainError: two sources have other labels.
        """
        return common_labels(self.datasets)

    @property
    def held_out_datasets(self) -> list[Dataset]:
        """The validation datasets."""
        return [packing.dataset for packing in self.held_out]

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
            objective=self.objective,
            kept=self.kept,
            keyed=self.keyed,
        )

    def batches_of(self, samples: npt.NDArray[np.int64], micro_batch_size: int) -> list[MicroBatch]:
        """The rows of samples by their numbers in the plan, as training has them, in this order.

        Raises:
            BigtrainError: the data of one cannot be read.
        """
        addresses = self.plan.locate_many(samples)
        lengths = np.array([packing.sequence_length for packing in self.train])[addresses.source]
        borders = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(samples)]
        return [
            batch
            for first, end in pairwise(borders)
            for batch in micro_batches_of(
                self.prepared(SampleAddresses(*(field[first:end] for field in addresses))), micro_batch_size
            )
        ]

    def prepared(self, addresses: SampleAddresses) -> PreparedRows:
        """Rows of one length by their addresses, as the objective makes inputs and labels of them.

        Raises:
            BigtrainError: the data of one cannot be read.
        """
        fetch(self.train, addresses.source, addresses.sequence)
        rows = assemble(self.train, addresses.source, addresses.sequence)
        keys = AddressKeys(self.plan.seed, [source.name for source in self.plan.sources]).of(*addresses)
        return self.objective.prepare(replace(rows, turns=addresses.sequence + addresses.epoch), keys)

    @property
    def labels(self) -> LabelScheme | None:
        """What the labels of the sources are; None where they have none."""
        return common_labels([packing.dataset for packing in self.train])

    def validation(
        self, settings: Settings, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[str, Iterator[MicroBatch]]]:
        """The held-out micro-batches of each source by its name, as `validation_batches` gives them to a rank."""
        for packing in self.held_out:
            yield (
                packing.dataset.name,
                evaluation_batches(packing, settings, self.objective, rank=rank, world_size=world_size),
            )


def check_labels(model: ModelSettings, labels: LabelScheme | None) -> None:
    """Compare the classes of a model's task head with those of the data. Raises BigtrainError."""
    names = () if labels is None else labels.names
    if model.num_labels and model.num_labels != len(names):
        raise BigtrainError(
            "the model has another number of classes than the data",
            found=f"model.num_labels {model.num_labels}",
            wanted=f"{len(names)}: {', '.join(names[:20])}",
            fix=f"set model.num_labels to {len(names)}",
        )


def evaluation_batches(
    packing: Packing,
    settings: Settings,
    objective: Objective,
    *,
    max_sequences: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[MicroBatch]:
    """The micro-batches of a dataset as evaluations of a run have them, see `validation_batches`.

    Args:
        packing: of `held_out_packing`.
        max_sequences: the most sequences. Default: `evaluate.max_sequences`.
    """
    return validation_batches(
        packing,
        max_sequences=settings.evaluate.max_sequences if max_sequences is None else max_sequences,
        micro_batch_size=settings.validation_batch_size,
        rank=rank,
        world_size=world_size,
        objective=objective,
    )


def common_labels(datasets: Sequence[Dataset]) -> LabelScheme | None:
    """Names and numbers of the labels, which all labelled datasets share; None without any.

    Raises:
        BigtrainError: two of them have other labels.
    """
    of_each = [(dataset.name, dataset.summary.label_scheme) for dataset in datasets]
    schemes = [(name, scheme) for name, scheme in of_each if scheme is not None]
    if not schemes:
        return None
    first, scheme = schemes[0]
    for name, other in schemes[1:]:
        if other != scheme:
            raise BigtrainError(
                f"data.sources: {first!r} and {name!r} have other labels, so their numbers would mean two things",
                found=f"{first}: {', '.join(scheme.names)}; {name}: {', '.join(other.names)}"[:500],
                wanted="the same labels in the same order",
                fix="give both the same label_names, and build them again",
            )
    return scheme


def open_objective(settings: ObjectiveSettings, data: DataSettings, model: ModelSettings) -> Objective:
    """The objective of the settings, over the tokenizer and the rows of the data, for a model of these settings.

    Raises:
        BigtrainError: the tokenizer lacks a token that it needs.
    """
    if settings.name == "causal":
        return make_objective(settings, None)
    vocabulary = DataTokenizer.open(data.dir).vocabulary()
    if (separator := data.tokenizer.separator) is not None:
        vocabulary = replace(vocabulary, separator=vocabulary.id_of(separator, "data.tokenizer.separator"))
    return make_objective(settings, vocabulary, data.sequence_length, model)


def open_token_bytes(settings: ModelSettings, data_dir: Path) -> npt.NDArray[np.int16]:
    """The bytes of each token of a data folder's tokenizer, as a model of these settings reads them: `token_bytes`.

    Raises:
        BigtrainError: there is no tokenizer, or it has more tokens than the model.
    """
    tokenizer = DataTokenizer.open(data_dir)
    check_vocabulary(tokenizer.vocabulary_size, settings.vocab_size)
    return token_bytes(tokenizer, settings.vocab_size, settings.max_token_bytes)


def summaries_of(settings: Settings, numbers: Sequence[int]) -> list[SourceSummary]:
    """Open some sources, check them against the settings, and keep what other ranks need of them.

    One manifest is in memory at a time. The sizes of files are not checked: see `RunData.check_sizes`.

    Args:
        settings: of the run.
        numbers: which of `settings.data.sources`.

    Raises:
        BigtrainError: the data are missing, or were built with other settings.
    """
    if not numbers:
        return []
    data, vocab_size = settings.data, settings.model.vocab_size
    sources = [data.sources[number] for number in numbers]
    mirror = open_mirror(data, sources)

    def packs(dataset: Dataset, split: str) -> dict[int, PackSummary]:
        wanted = [(packing, length) for of_split, packing, length in data.packs if of_split == split]
        return {length: PackSummary.of(read_packs(dataset, packing, length)) for packing, length in wanted}

    train = [
        (dataset.summary, packs(dataset, "train"))
        for dataset in opened_datasets(data, sources, mirror, model_vocab_size=vocab_size, split="train")
    ]
    held_out = [
        (dataset.summary, packs(dataset, "validation").get(data.sequence_length))
        for dataset in opened_datasets(data, sources, mirror, model_vocab_size=vocab_size, split="validation")
    ]
    return [SourceSummary(*trained, *held) for trained, held in zip(train, held_out, strict=True)]


def _packed(dataset: Dataset, packing: str, length: int, pack: PackSummary | None) -> Packing:
    return ConcatPacking(dataset, length) if pack is None else IndexedPacking(dataset, packing, length, pack)


def _plan_of(settings: Settings, train: list[Packing]) -> Plan:
    plan = make_plan(settings.data, settings.train, train)
    require_samples(plan, plan.batches.consumed_after(settings.total_steps))
    return plan
