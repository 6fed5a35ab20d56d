"""Writes what `bigtrain compress` makes: the folder of an import, with quantised matrices and the run's settings.

the files of an import     see imported.py: what reads an import reads this, too
settings.yaml              the settings of the run, with the model as it is now: for evaluation and export
compress.json              what was done, to which weights
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from bigtrain.base import BigtrainError, __version__, read_json
from bigtrain.config import Settings, dump_settings, with_bare_urls
from bigtrain.convert.imported import FORMAT, MANIFEST, MODEL, QuantisedAs, file_digest, parts_of, write_model
from bigtrain.convert.out_folder import out_folder, refuse_foreign_folder
from bigtrain.convert.shards import SHARD_BYTES, StoredTensor, tensor_digest, write_safetensors
from bigtrain.data import TOKENIZER_FILE
from bigtrain.model import QuantisedMatrix

COMPRESSION_SETTINGS, COMPRESSION_RECORD = "settings.yaml", "compress.json"
_NAMES = re.compile(
    r"(model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|(model|settings)\.yaml"
    r"|(manifest|tokenizer|compress|evaluation)\.json)"
)
"""The files of such a folder. One with others is not replaced."""
_HASHED = (MODEL, TOKENIZER_FILE, COMPRESSION_SETTINGS, COMPRESSION_RECORD)


def refuse_foreign_out(out: Path) -> None:
    """Refuse a folder that holds anything but an earlier result. Raises BigtrainError."""
    refuse_foreign_folder(out, is_compressed, _NAMES, "compress")


def is_compressed(folder: Path) -> bool:
    """Whether `bigtrain compress` wrote a folder."""
    try:
        return (folder / COMPRESSION_RECORD).is_file() and bool(read_json(folder / MANIFEST)["format"] == FORMAT)
    except (OSError, BigtrainError, KeyError, TypeError):
        return False


def write_compressed(
    out: Path,
    settings: Settings,
    weights: Mapping[str, Tensor | QuantisedMatrix],
    tokenizer_file: Path,
    record: Mapping[str, Any],
    *,
    source: str,
    router_moves: Mapping[str, list[int]] = MappingProxyType({}),
    label_names: Sequence[str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write the folder under a temporary name, then move it to `out` in one step.

    Args:
        out: the folder to make. An earlier result there is replaced.
        settings: of the run, with the model that the weights are of.
        weights: all parameters by our names.
        tokenizer_file: a tokenizer.json.
        record: the content of compress.json.
        source: what others know the model by.
        router_moves: the biases of its routers as moves.
        label_names: of the classes of a model with a task_head, where they are known.
        shard_bytes: limit on one weights file.

    Returns:
        The bytes of the weights in the files.

    Raises:
        BigtrainError: `out` holds something else.
    """
    refuse_foreign_out(out)
    stored = _Stored(weights)
    with out_folder(out) as partial:
        write_safetensors(stored.entries, stored.tensors(), partial, shard_bytes)
        comment = (
            f"Compressed by bigtrain {__version__}; {COMPRESSION_RECORD} says how. To go on training it, take this",
            f"section with `init_from: {out}` in it, and the tokenizer it was trained with:",
            f"data.tokenizer.path: {out / TOKENIZER_FILE}, "
            f"data.tokenizer.end_of_text: {json.dumps(settings.data.tokenizer.end_of_text)}",
        )
        write_model(partial / MODEL, settings.model.model_copy(update={"init_from": None}), comment)
        (partial / COMPRESSION_SETTINGS).write_text(with_bare_urls(dump_settings(settings)), encoding="utf-8")
        shutil.copyfile(tokenizer_file, partial / TOKENIZER_FILE)
        (partial / COMPRESSION_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "bigtrain_version": __version__,
            "source": source,
            "end_of_text": settings.data.tokenizer.end_of_text,
            "router_moves": dict(router_moves),
            **({} if label_names is None else {"label_names": list(label_names)}),
            "files": {name: file_digest(partial / name) for name in _HASHED},
            "tensors": stored.digests,
            "quantised": {name: asdict(how) for name, how in stored.quantised.items()},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return stored.nbytes


class _Stored:
    """Weights as they are written."""

    def __init__(self, weights: Mapping[str, Tensor | QuantisedMatrix]) -> None:
        self._parts: list[tuple[str, Tensor]] = []
        self.digests: dict[str, str] = {}
        self.quantised: dict[str, QuantisedAs] = {}
        for name, weight in weights.items():
            if isinstance(weight, QuantisedMatrix):
                self._parts += zip(parts_of(name), weight.stored(), strict=True)
                self.digests[name] = tensor_digest(weight.dequantised())
                self.quantised[name] = QuantisedAs(weight.bits, weight.group_size, weight.codes.shape[1])
            else:
                self._parts.append((name, weight.contiguous()))
                self.digests[name] = tensor_digest(weight)

    @property
    def entries(self) -> Sequence[StoredTensor]:
        """What is going to be written."""
        return [StoredTensor(name, tensor.dtype, tensor.shape) for name, tensor in self._parts]

    @property
    def nbytes(self) -> int:
        """Of all of it."""
        return sum(entry.nbytes for entry in self.entries)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, in the same order."""
        yield from self._parts
