"""`bigtrain keep-outputs`: what a teacher says of each training sample, written once for all runs that learn from it.

    teacher, rows of a source by their sequences  -->  the likeliest classes at each position  -->  a file, its record
    all files are there                           -->  the manifest

A file depends on nothing but its rows. So any number of processes can write them, and one that was killed goes on with
the first file that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bigtrain.base import BigtrainError, LaunchedRank
from bigtrain.config import Settings
from bigtrain.convert import StartingWeights
from bigtrain.data import (
    FILE_BYTES,
    KEEP_AGAIN,
    KeptFolder,
    KeptManifest,
    KeptOutputs,
    KeptPiece,
    KeptRequest,
    KeptSource,
    RunData,
    SampleAddresses,
    digest_of_inputs,
    identity,
    micro_batches_of,
)
from bigtrain.engine import COMPUTE_DTYPES
from bigtrain.model import LanguageModel, build_model, likeliest
from bigtrain.objective import row_lengths
from bigtrain.trained.teacher import complete_teacher, open_teacher


@dataclass(frozen=True)
class KeptTeacher:
    """What `keep_outputs` has done."""

    out: str
    teacher: str
    files: int
    """Those of the folder."""
    written: int
    """Those that this process has written."""
    complete: bool
    """Whether all files are there. Else other processes still write, or were killed."""
    kept_id: str | None
    """Hash of all outputs, the data and the teacher's weights; null until all files are there."""
    bytes: int
    """Of all files; 0 until all are there."""


def keep_outputs(
    teacher: Path,
    settings: Settings,
    *,
    step: int | None = None,
    temperatures: Sequence[float] = (),
    rank: LaunchedRank | None = None,
    file_bytes: int = FILE_BYTES,
    report: Callable[[str], None] = lambda line: None,
) -> KeptTeacher:
    """Write what a teacher says of all training samples into `distillation.kept_outputs`. Finished files stay.

    Args:
        teacher: a run directory, or an import.
        settings: of the run that will learn from it.
        step: of the teacher's checkpoint. Default: the newest verified one.
        temperatures: at which runs may read the outputs, beside `distillation.temperature`.
        rank: this process among those that write; each writes every n-th file. Default: it is alone.
        file_bytes: of a file, roughly.
        report: called with a line for each file.

    Raises:
        BigtrainError: the teacher does not fit the model, the data are not there, the folder holds other outputs, or
            what the teacher says is not finite.
    """
    folder = settings.distillation.kept_outputs
    if folder is None:
        raise BigtrainError(
            "the configuration does not say where the outputs of the teacher are kept",
            found="no distillation.kept_outputs",
            wanted="a folder",
            fix="set distillation.kept_outputs, and remove distillation.teacher if it is there",
        )
    rank = rank or LaunchedRank()
    data = RunData.open(settings)
    shape, weights = open_teacher(teacher, settings, step)
    request = _request(
        settings,
        data,
        teacher=identity(weights.digests),
        precision=settings.engine.precision,
        temperatures=tuple(sorted({settings.distillation.temperature, *temperatures})),
    )
    sources = tuple(
        KeptSource(packing.dataset.name, packing.dataset.dataset_id, packing.pack_id, packing.rows)
        for packing in data.train
    )
    kept = KeptFolder(folder, KeptManifest(request, sources, request.rows_of_a_file(file_bytes)))
    pieces = kept.pieces()
    missing = [piece for piece in pieces[rank.rank :: rank.world_size] if not kept.is_finished(piece)]
    if missing:
        with torch.device("meta"):
            model = build_model(shape, attn_implementation=settings.engine.attn_implementation)
        writer = _Writer(_filled(model, weights, settings, rank), data, request, settings.validation_batch_size)
        for number, piece in enumerate(missing, start=1):
            kept.write(piece, writer.rows(piece))
            report(f"{sources[piece.source].name}: {piece.rows.stop:,} of {sources[piece.source].rows:,} rows; "
                   f"file {number:,} of {len(missing):,} of this process")  # fmt: skip
    manifest = kept.commit()
    return KeptTeacher(
        out=str(folder),
        teacher=str(teacher),
        files=len(pieces),
        written=len(missing),
        complete=manifest is not None,
        kept_id=None if manifest is None else manifest.kept_id,
        bytes=0 if manifest is None else manifest.bytes,
    )


def open_kept_outputs(settings: Settings, data: RunData) -> KeptOutputs:
    """The outputs of `distillation.kept_outputs`, checked against the data and the settings of a run.

    Raises:
        BigtrainError: they are not all there, or of other data, another tokenizer, objective, packing or vocabulary, or
            cannot be read at the temperature of the run.
    """
    wanted, folder = settings.distillation, settings.distillation.kept_outputs
    assert folder is not None
    manifest = KeptManifest.read(folder)
    found = manifest.request
    found.require(
        _request(settings, data, teacher=found.teacher, precision=found.precision, temperatures=found.temperatures),
        folder,
    )
    if wanted.temperature not in found.temperatures:
        raise BigtrainError(
            f"the outputs in {folder} were not kept for this temperature",
            found=f"distillation.temperature {wanted.temperature}",
            wanted=" or ".join(map(str, found.temperatures)),
            fix=f"set distillation.temperature to one of these; or {KEEP_AGAIN} --temperature {wanted.temperature}",
        )
    return KeptOutputs.open(folder, manifest, wanted.temperature, data.train)


def _request(
    settings: Settings, data: RunData, *, teacher: str, precision: str, temperatures: tuple[float, ...]
) -> KeptRequest:
    length, _ = row_lengths(settings.objective, settings.data.sequence_length, reads_pairs=settings.model.reads_pairs)
    classes = settings.model.classes
    return KeptRequest(
        teacher=teacher,
        precision=precision,
        tokenizer=data.datasets[0].summary.tokenizer,
        sequence_length=settings.data.sequence_length,
        packing=settings.data.packing,
        objective=settings.objective.model_dump(mode="json", exclude={"class_weights"}),
        positions=length,
        classes=classes,
        kept=settings.distillation.classes_kept(classes),
        temperatures=temperatures,
    )


@torch.no_grad()
def _filled(model: LanguageModel, weights: StartingWeights, settings: Settings, rank: LaunchedRank) -> LanguageModel:
    """The teacher with its weights, in the precision of the run, on this process's device."""
    model = model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
    complete_teacher(model, weights, settings)
    device = torch.device("cuda", rank.local_rank or 0) if torch.cuda.is_available() else torch.device("cpu")
    return model.to(device=device, dtype=COMPUTE_DTYPES[settings.engine.precision]).eval()


@dataclass(frozen=True)
class _Writer:
    """Asks the teacher."""

    model: LanguageModel
    data: RunData
    request: KeptRequest
    micro_batch_size: int

    @torch.no_grad()
    def rows(self, piece: KeptPiece) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        """The rows of a file. Raises BigtrainError: what the teacher says is not finite."""
        rows = np.zeros(len(piece.rows), self.request.row)
        for start in range(0, len(rows), self.micro_batch_size):
            own = rows[start : start + self.micro_batch_size]
            sequences = np.array(piece.rows[start : start + len(own)], np.int64)
            source = np.full_like(sequences, piece.source)
            prepared = self.data.prepared(SampleAddresses(source, np.zeros_like(sequences), sequences))
            (batch,) = micro_batches_of(prepared, len(own))
            inputs = batch.to(self.model.device).model_inputs()
            every = torch.zeros_like(inputs.pop("labels"))  # a label at each position
            found = likeliest(
                self.model.head,
                self.model.label_states(every, **inputs),
                self.request.kept,
                self.request.temperatures,
                self.request.classes,
            )
            own["inputs"] = digest_of_inputs(prepared)
            for name, values in zip(found._fields, found, strict=True):
                own[name] = values.cpu().numpy().reshape(own[name].shape)
            if not np.isfinite(own["log_probs"]).all():
                raise BigtrainError(
                    "the teacher gives probabilities that are not finite",
                    found=f"sequences {sequences[0]:,} to {sequences[-1]:,} of source number {piece.source}",
                    wanted="a number for each class",
                    fix="take another checkpoint of the teacher with --step, or set engine.precision to fp32",
                )
        return rows
