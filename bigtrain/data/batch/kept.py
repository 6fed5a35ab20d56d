"""What a teacher said of the rows of a batch, found by their addresses.

    source, sequence --> file, row in it --> classes and log probabilities, beside the inputs of the model

The epoch plays no part, and neither do rank, micro-batch and step. A row is compared with its hash, and what the
objective made of it now with what the teacher read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from bigtrain.base import BigtrainError
from bigtrain.config import KEPT_CLASSES, KEPT_LOG_PROBS
from bigtrain.data.batch.packing import Packing
from bigtrain.data.format.kept_outputs import KEEP_AGAIN, KeptFile, KeptManifest, KeptSource
from bigtrain.data.order.plan import SampleAddresses
from bigtrain.objective import PreparedRows

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class KeptOutputs:
    """The outputs in a finished folder, for the sources of a run."""

    folder: Path
    manifest: KeptManifest
    temperature: float
    """At which they are read."""
    sources: tuple[KeptSource, ...]
    """Those of the run, in its order."""
    _files: dict[tuple[int, int], KeptFile] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path, manifest: KeptManifest, temperature: float, packings: Sequence[Packing]) -> KeptOutputs:
        """Find the sources of a run in a folder, and look at its files.

        Args:
            folder: of the manifest.
            manifest: whose request the run agrees with.
            temperature: of the run.
            packings: the training datasets of the run.

        Raises:
            BigtrainError: a source is not among them, is of other data, or a file is missing.
        """
        named = {source.name: source for source in manifest.sources}
        sources = []
        for packing in packings:
            name = packing.dataset.name
            source = named.get(name)
            wanted = (packing.dataset.dataset_id, packing.pack_id)
            if source is None or (source.dataset_id, source.pack_id) != wanted:
                raise BigtrainError(
                    f"the outputs in {folder} were not kept for the data of source {name!r}",
                    found=f"sources {', '.join(named)}"
                    if source is None
                    else f"dataset {source.dataset_id}, pack {source.pack_id}",
                    wanted=f"dataset {wanted[0]}, pack {wanted[1]}",
                    fix=KEEP_AGAIN,
                )
            for file in source.files:
                file.check_size(folder / name, KEEP_AGAIN)
            sources.append(source)
        return cls(folder, manifest, temperature, tuple(sources))

    def beside(self, addresses: SampleAddresses, prepared: PreparedRows) -> PreparedRows:
        """The same rows with what was kept of them among the inputs: classes int32 [R, T, k], and their log
        probabilities float32 [R, T, k] at the temperature, in nats.

        Args:
            addresses: of R rows.
            prepared: what the objective has made of them.

        Raises:
            BigtrainError: a row was changed, or the teacher read something else.
        """
        request, rows = self.manifest.request, len(addresses.source)
        shape = (rows, request.positions, request.kept)
        classes, log_probs = np.empty(shape, np.int32), np.empty(shape, np.float32)
        column = request.temperatures.index(self.temperature)
        inputs = digest_of_inputs(prepared)
        for row, (source, sequence) in enumerate(
            zip(addresses.source.tolist(), addresses.sequence.tolist(), strict=True)
        ):
            number, within = divmod(sequence, self.manifest.rows_per_file)
            kept = self._file(source, number).read(within)
            if kept["inputs"] != inputs[row]:
                raise BigtrainError(
                    f"the teacher has read another row than that of sequence {sequence:,} of source "
                    f"{self.sources[source].name!r}",
                    found=f"inputs {int(inputs[row]):016x}",
                    wanted=f"inputs {int(kept['inputs']):016x}, as in {self.folder}",
                    fix=KEEP_AGAIN,
                )
            classes[row] = kept["classes"]
            np.divide(kept["log_probs"], np.float32(self.temperature), out=log_probs[row])
            log_probs[row] -= kept["scales"][:, column, None]
        others = {**prepared.others, KEPT_CLASSES: classes, KEPT_LOG_PROBS: log_probs}
        return replace(prepared, others=others)

    def _file(self, source: int, number: int) -> KeptFile:
        file = self._files.get((source, number))
        if file is None:
            own = self.sources[source]
            record = own.files[number]
            made = KeptFile(self.folder / own.name / record.name, record, self.manifest.request.row)
            file = self._files.setdefault((source, number), made)
        return file


def digest_of_inputs(prepared: PreparedRows) -> U64:
    """[R] the xxh3-64 of what a model reads of each row: tokens, positions and what else it takes, but no labels."""
    arrays = {"input_ids": prepared.input_ids, "positions": prepared.positions, **prepared.others}
    if prepared.encoder is not None:
        arrays |= {"encoder_input_ids": prepared.encoder.input_ids, "encoder_positions": prepared.encoder.positions}
    rows = [(name.encode(), np.ascontiguousarray(arrays[name])) for name in sorted(arrays)]
    found = np.empty(len(prepared.input_ids), np.uint64)
    for row in range(len(found)):
        state = xxhash.xxh3_64()
        for name, array in rows:
            state.update(name)
            state.update(array[row].data.cast("B"))
        found[row] = state.intdigest()
    return found
