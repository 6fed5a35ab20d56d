"""A folder written by `bigtrain import` or `bigtrain compress`, from which `model.init_from` starts a run.

    model.yaml         the section model
    model.safetensors  the weights by our names, or model-0000N-of-0000N.safetensors and their index
    tokenizer.json     with special_tokens_map.json and tokenizer_config.json where the model came with them
    manifest.json      written last: where it came from, the end-of-text token, keys of config.json that were ignored,
                       a hash of every tensor and file, and which matrices are quantised

A quantised matrix NAME is in the files as NAME.codes and NAME.scales; its hash is that of the numbers they stand for.
A hash is compared when what it is of is read, so a weight is read once and never used unless every byte of it is right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from pydantic import ConfigDict
from torch import Tensor

from bigtrain.base import BigtrainError, as_record, bare_name, read_json, read_regular
from bigtrain.config import FAMILIES, ModelSettings, read_document, to_yaml
from bigtrain.convert.shards import DTYPES, TensorFolder, tensor_digest
from bigtrain.convert.weight_source import TOKENIZER_BYTES, WeightSource
from bigtrain.data import TOKENIZER_FILE, TokenizerContent
from bigtrain.model import QuantisedMatrix

MODEL, MANIFEST = "model.yaml", "manifest.json"
FORMAT = "bigtrain import 1"


@dataclass(frozen=True)
class QuantisedAs:
    """How a matrix is stored that is quantised."""

    __pydantic_config__ = ConfigDict(strict=True)
    bits: int
    group_size: int
    columns: int


@dataclass(frozen=True)
class _Manifest:
    """What manifest.json says; keys of later versions are not read."""

    __pydantic_config__ = ConfigDict(strict=True)
    end_of_text: str
    files: dict[str, str]
    tensors: dict[str, str]
    source: str = ""
    ignored_keys: dict[str, Any] = field(default_factory=dict)
    decoder_start_id: int | None = None
    quantised: dict[str, QuantisedAs] = field(default_factory=dict)
    router_moves: dict[str, list[int]] = field(default_factory=dict)
    label_names: list[str] | None = None


class Imported(WeightSource):
    """Weights by our names, each read, and its hash compared, when it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Raises:
            BigtrainError: it is none that `bigtrain import` has written, or not whole.
        """
        self.folder, self.model_file, self.tokenizer_file = folder, folder / MODEL, folder / TOKENIZER_FILE
        try:
            content = read_json(folder / MANIFEST)
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise BigtrainError("", found="another format")
            self._manifest = as_record(_Manifest, content, folder / MANIFEST)
        except (FileNotFoundError, BigtrainError) as error:
            found = error.found if isinstance(error, BigtrainError) else "no such file"
            raise BigtrainError(
                f"{folder} was not written by `bigtrain import`",
                found=f"{MANIFEST}: {found}",
                wanted=FORMAT,
                fix=f"bigtrain import HF_DIR {folder}",
            ) from None
        self.end_of_text = self._manifest.end_of_text
        self.decoder_start_id = self._manifest.decoder_start_id
        """What an encoder-decoder's decoder starts a text with; None where the model that was imported named none."""
        for name, wanted in self._manifest.files.items():
            path = folder / bare_name(name, folder / MANIFEST)
            _compare(path, file_digest(path), wanted)
        self.settings = read_model(folder / MODEL)
        self._files = TensorFolder(folder)
        quantised = self._manifest.quantised
        stored = {part for name in self._manifest.tensors for part in (parts_of(name) if name in quantised else [name])}
        if wrong := sorted(set(self._files.names()) ^ stored):
            raise BigtrainError(
                f"{folder} is not whole", found=", ".join(wrong[:10]), wanted=f"the tensors that {MANIFEST} names"
            )

    def __getitem__(self, name: str) -> Tensor:
        if (how := self._manifest.quantised.get(name)) is not None:
            codes, scales = (self._files.read(part) for part in parts_of(name))
            matrix = QuantisedMatrix.of_stored(codes, scales, how.bits, how.group_size, how.columns)
            tensor = matrix.dequantised()
        else:
            tensor = self._files.read(name)
        _compare(f"{name} in {self.folder}", tensor_digest(tensor), self._manifest.tensors[name])
        return tensor

    def __contains__(self, name: object) -> bool:  # else it would be read to answer
        return name in self._manifest.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._manifest.tensors)

    def __len__(self) -> int:
        return len(self._manifest.tensors)

    @property
    def name(self) -> str:
        """The folder that was imported, where it was then; of an earlier version's import, the import."""
        return self._manifest.source or str(self.folder)

    def digest(self, name: str) -> str:
        """See `WeightSource.digest`; it was recorded by the import."""
        return self._manifest.tensors[name]

    @property
    def router_moves(self) -> dict[str, list[int]]:
        """See `WeightSource.router_moves`; of a model that was imported there are none."""
        return self._manifest.router_moves

    @property
    def notes(self) -> list[str]:
        """What the user chose when the folder was imported."""
        return [
            f"{self.folder} was imported with --ignore-key {key}: its config.json said {json.dumps(value)[:200]}"
            for key, value in self._manifest.ignored_keys.items()
        ]

    @property
    def begin(self) -> list[str]:
        """The tokens that the tokenizer puts before a text."""
        own = TokenizerContent.read(self.tokenizer_file)
        return own.texts(own.around.begin)

    @property
    def label_names(self) -> list[str] | None:
        """See `WeightSource.label_names`."""
        return self._manifest.label_names

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The types of the weights; one, unless the model was published in several."""
        quantised = self._manifest.quantised
        plain = {DTYPES[self._files.dtype_name(name)] for name in self if name not in quantised}
        return plain | ({torch.float32} if quantised else set())


def parts_of(name: str) -> tuple[str, str]:
    """The names in the files of the codes and the scales of a quantised matrix."""
    return f"{name}.codes", f"{name}.scales"


def write_model(path: Path, settings: ModelSettings, comment: Sequence[str]) -> None:
    """Write the section model: what is not the family's own choice. `read_model` gives it back."""
    of_llama = {name: info.default for name, info in ModelSettings.model_fields.items()}
    defaults = {**of_llama, **FAMILIES[settings.family]}
    values = settings.model_dump(mode="json")
    spoken = {
        name: value for name, value in values.items() if name == "family" or getattr(settings, name) != defaults[name]
    }
    path.write_text("".join(f"# {line}\n" for line in comment) + to_yaml({"model": spoken}), encoding="utf-8")


def read_model(path: Path) -> ModelSettings:
    """The section model in a file. Raises BigtrainError."""
    try:
        return ModelSettings.model_validate_json(json.dumps(read_document(path).tree["model"]), strict=True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # pydantic's is a ValueError
        raise BigtrainError(f"{path} is not a section model", found=str(error)) from None


def file_digest(path: Path) -> str:
    """xxh3-128 of a small file. Raises BigtrainError."""
    try:
        return xxhash.xxh3_128(read_regular(path, TOKENIZER_BYTES)).hexdigest()
    except FileNotFoundError as error:
        raise BigtrainError(f"{path} cannot be read", found=str(error)) from None


def _compare(what: object, found: str, wanted: str) -> None:
    if found != wanted:
        raise BigtrainError(
            f"{what} is not what was imported", found=f"xxh3 {found}", wanted=wanted, fix="import it again"
        )
