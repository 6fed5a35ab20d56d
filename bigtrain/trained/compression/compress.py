"""`bigtrain compress`: a run to a folder with a smaller model that evaluation, export and new runs read.

    whole heads and channels  -->  single weights  -->  integers

Each stage measures what the layers read in the model as the stages before it have left it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from bigtrain.base import BigtrainError, __version__
from bigtrain.convert import refuse_foreign_out, write_compressed
from bigtrain.engine import COMPUTE_DTYPES
from bigtrain.model import (
    BITS,
    LanguageModel,
    QuantisedMatrix,
    count_parameters,
    gptq,
    keep_of_all,
    keep_of_groups,
    keep_of_rows,
    keep_of_tensor,
    quantised,
    wanda_scores,
)
from bigtrain.trained.checkpoint_settings import tokenizer_file_of
from bigtrain.trained.compression.calibration import Calibration, InputReader, LayerInputs
from bigtrain.trained.compression.layers import change_layers, layers_of
from bigtrain.trained.compression.narrowing import Narrowing, NarrowShape
from bigtrain.trained.label_names import label_names
from bigtrain.trained.stored_model import StoredModel
from bigtrain.trained.trained import loaded_model


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What is to be done."""

    heads: int | None = None
    """Attention heads of each layer that stay."""
    channels: int | None = None
    """Channels of each feed-forward layer that stay."""
    importance: Literal["magnitude", "wanda"] = "wanda"
    """Which heads and channels stay: by the weights alone, or with the inputs of calibration rows."""
    prune: Literal["magnitude", "wanda"] | None = None
    """Which single weights go."""
    sparsity: float | None = None
    """Share of the weights of the blocks' matrices that go, from 0 to 1."""
    pattern: tuple[int, int] | None = None
    """(2, 4): of 4 neighbours in a row 2 stay."""
    scope: Literal["tensor", "model"] = "tensor"
    """magnitude: each matrix is as sparse as every other, or all are compared with each other."""
    quantise: Literal["int8", "int4"] | None = None
    """Type of the codes of the blocks' matrices."""
    rounding: Literal["nearest", "gptq"] = "gptq"
    """How codes are chosen."""
    group_size: int = 64
    """Columns that share a scale."""
    calibration_rows: int = 128
    """Rows of the run's training data."""
    seed: int = 0
    """Of the choice of these rows."""

    @property
    def narrows(self) -> bool:
        """Whether heads or channels go."""
        return self.heads is not None or self.channels is not None

    @property
    def calibrates(self) -> bool:
        """Whether it needs rows of the training data."""
        return (
            (self.narrows and self.importance == "wanda")
            or self.prune == "wanda"
            or (self.quantise is not None and self.rounding == "gptq")
        )

    def check(self) -> None:
        """Refuse what contradicts itself. Raises BigtrainError."""
        for what, found, wanted in self._problems():
            raise BigtrainError(what, found=found, wanted=wanted, fix="bigtrain compress --help")

    def _problems(self) -> Iterator[tuple[str, object, str]]:
        amounts = [each for each in (self.sparsity, self.pattern) if each is not None]
        if not (self.narrows or self.prune or self.quantise):
            yield "there is nothing to compress", "no way of compressing", "--heads, --channels, --prune or --quantise"
        if self.prune and len(amounts) != 1:
            yield "pruning needs one amount", f"{len(amounts)} of them", "--sparsity 0.5 or --pattern 2:4"
        if amounts and not self.prune:
            yield "an amount without a method of pruning", "no --prune", "--prune magnitude or --prune wanda"
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            yield "a sparsity is a share of the weights", self.sparsity, "at least 0, and below 1"
        if self.pattern is not None and not 0 < self.pattern[0] < self.pattern[1]:
            yield "a pattern keeps some of its weights", f"{self.pattern[0]}:{self.pattern[1]}", "such as 2:4"
        if self.scope == "model" and (self.prune != "magnitude" or self.pattern):
            yield "--scope model compares magnitudes", f"--prune {self.prune}", "--prune magnitude with --sparsity"
        for name, value in (("--group-size", self.group_size), ("--calibration-rows", self.calibration_rows)):
            if value < 1:
                yield f"{name} is a number of at least 1", value, "1 or more"


@dataclass(frozen=True)
class CompressedModel:
    """A folder with a smaller model."""

    out: str
    step: int
    """Of the checkpoint that it was made from."""
    parameters_before: int
    parameters: int
    """Those that are 0 count, too."""
    sparsity: float
    """Share of the weights of the blocks' matrices that are 0."""
    bytes_before: int
    """Of the weights in the precision of the training."""
    bytes: int
    """Of the weights in the files."""
    calibration_rows: int


def compress_run(
    run: Path, out: Path, compression: Compression, *, step: int | None = None, merge: bool = False
) -> CompressedModel:
    """Write a smaller model than that of a run. Memory holds the model in float32, twice where matrices become smaller,
    and for GPTQ a square matrix for each layer of a block.

    Args:
        run: a run directory, or a folder of an earlier `compress`.
        out: the folder to make.
        compression: what is to be done.
        step: of the checkpoint. Default: the newest verified one.
        merge: of a run with an adapter: merge it into the weights first.

    Raises:
        BigtrainError: see `Compression.check` and `StoredModel.open`; the model cannot be compressed so, the training
            data are not there, or `out` holds something else.
    """
    compression.check()
    refuse_foreign_out(out)
    stored = StoredModel.open(run, step).plain(merge)
    before = stored.settings.model
    shape = NarrowShape(compression.heads, compression.channels)
    shape.check(before)
    rows = None
    if compression.calibrates:
        rows = Calibration.of(stored.settings, stored.step, compression.calibration_rows, compression.seed)
    kept: dict[str, list[int]] = {}
    if compression.narrows:
        narrowing = Narrowing(shape, before)
        model = _ready(stored)
        change_layers(layers_of(model), narrowing, _reader(model, rows, compression.importance == "wanda"))
        weights = narrowing.cut({name: parameter.detach() for name, parameter in model.named_parameters()})
        settings = stored.settings.model_copy(update={"model": shape.of(before)})
        stored, kept = replace(stored, settings=settings, weights=weights), narrowing.kept()
    model = _ready(stored)
    layers = layers_of(model)
    if compression.prune:
        change_layers(layers, _Pruning(compression, layers), _reader(model, rows, compression.prune == "wanda"))
    quantising = _Quantising(compression)
    if compression.quantise:
        gptq_used = compression.rounding == "gptq"
        change_layers(layers, quantising, _reader(model, rows, gptq_used), hessians=gptq_used)
    dtype = COMPUTE_DTYPES[stored.settings.engine.precision]
    result: dict[str, Tensor | QuantisedMatrix] = {
        name: quantising.matrices.get(
            name, parameter.detach().cpu().to(dtype if compression.quantise else torch.float32)
        )
        for name, parameter in model.named_parameters()
    }
    zeros = {name: int((layer.weight == 0).sum()) for name, layer in layers.items()}
    sparsities = {name: zeros[name] / layer.weight.numel() for name, layer in layers.items()}
    nbytes = write_compressed(
        out,
        stored.settings.model_copy(
            update={"data": stored.settings.data.model_copy(update={"dir": stored.settings.data.dir.resolve()})}
        ),
        result,
        tokenizer_file_of(stored.settings),
        {
            "bigtrain_version": __version__,
            "run": str(run.resolve()),
            "step": stored.step,
            "compression": asdict(compression),
            "kept": kept,
            "sparsity": sparsities,
            "quantised": sorted(quantising.matrices),
            "calibration_rows": [] if rows is None else rows.addresses,
        },
        source=str(run.resolve()),
        router_moves=stored.router_moves,
        label_names=label_names(stored.settings),
    )
    return CompressedModel(
        out=str(out),
        step=stored.step,
        parameters_before=count_parameters(before),
        parameters=count_parameters(stored.settings.model),
        sparsity=sum(zeros.values()) / sum(layer.weight.numel() for layer in layers.values()),
        bytes_before=count_parameters(before) * dtype.itemsize,
        bytes=nbytes,
        calibration_rows=0 if rows is None else len(rows.addresses),
    )


class _Pruning:
    """A `Change` that zeroes weights."""

    def __init__(self, compression: Compression, layers: Mapping[str, nn.Linear]) -> None:
        self._compression = compression
        self._masks: dict[str, Tensor] = {}
        if compression.scope == "model":
            assert compression.sparsity is not None  # it was checked
            masks = keep_of_all([layer.weight.detach().abs() for layer in layers.values()], compression.sparsity)
            self._masks = dict(zip(layers, masks, strict=True))

    def __call__(self, name: str, weight: Tensor, inputs: LayerInputs | None) -> Tensor:
        """See `Change`."""
        if name in self._masks:
            return weight * self._masks[name]
        scores = weight.abs() if inputs is None else wanda_scores(weight, inputs.squares)
        if self._compression.pattern is not None:
            return weight * keep_of_groups(scores, *self._compression.pattern)
        assert self._compression.sparsity is not None  # it was checked
        keep = keep_of_tensor if inputs is None else keep_of_rows
        return weight * keep(scores, self._compression.sparsity)


class _Quantising:
    """A `Change` to numbers that integers stand for."""

    def __init__(self, compression: Compression) -> None:
        self._bits, self._group_size = BITS.get(compression.quantise or ""), compression.group_size
        self.matrices: dict[str, QuantisedMatrix] = {}

    def __call__(self, name: str, weight: Tensor, inputs: LayerInputs | None) -> Tensor:
        """See `Change`."""
        assert self._bits is not None  # else it is not called
        if inputs is None or inputs.hessian is None:
            matrix = quantised(weight, self._bits, self._group_size)
        else:
            matrix = gptq(weight, inputs.hessian, self._bits, self._group_size)
        self.matrices[name] = replace(matrix, codes=matrix.codes.cpu(), scales=matrix.scales.cpu())
        return matrix.dequantised().to(weight.dtype)


def _ready(stored: StoredModel) -> LanguageModel:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return loaded_model(stored).to(device).eval()


def _reader(model: LanguageModel, rows: Calibration | None, wanted: bool) -> InputReader | None:
    return InputReader(model, rows.batches, model.device) if wanted and rows is not None else None
