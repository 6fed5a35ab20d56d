"""Import of a Hugging Face model, with a check that bigtrain computes the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from bigtrain.convert import MODEL, Found, Imported, common_dtype, import_hf
from bigtrain.data import TOKENIZER_FILE
from bigtrain.model import count_parameters
from bigtrain.trained.export import ComparedWithTransformers, checked


@dataclass(frozen=True)
class ImportedModel(ComparedWithTransformers):
    """A folder for `model.init_from` that was written, and the settings that go with it."""

    out: str
    family: str
    parameters: int
    model: str
    """The file with the settings of the section `model`."""
    tokenizer_path: Annotated[str, Field(alias="data.tokenizer.path")]
    end_of_text: Annotated[str, Field(alias="data.tokenizer.end_of_text")]
    largest_logit_difference: float | None
    """Between transformers and bigtrain; null where they were not compared, as the two below."""
    greedy_tokens: int | None
    """How many were drawn with each of the two."""
    greedy_tokens_alike: int | None
    """How many of these are the same."""
    ignored_keys: dict[str, Any]
    """Keys of config.json that were ignored, with their values."""


def import_model(
    folder: Path,
    out: Path,
    *,
    end_of_text: str | None,
    ignored: Sequence[str],
    check: bool,
    report: Callable[[str], None],
) -> ImportedModel:
    """Write a folder for `model.init_from` from a Hugging Face folder.

    Memory holds one tensor, or the experts of a layer, at a time while it is written, and one model in float32 while it
    is checked.

    Args:
        folder: config.json, *.safetensors, tokenizer.json.
        out: the folder to make.
        end_of_text: the token that ends a document. Default: the one that config.json names.
        ignored: keys of config.json to ignore.
        check: load `folder` with transformers and compare; without transformers it is skipped with a message.
        report: called with each line of progress.

    Raises:
        BigtrainError: the folder is not fully understood, `out` holds something else, or the check fails.
    """
    compared: dict[str, Any] = {}

    def compare(found: Found, made: Path) -> None:
        for note in found.notes:
            report(note)
        imported = Imported(made)
        lines = report if check else None
        compared.update(
            checked(folder, imported, found.settings, common_dtype(imported.dtypes), lines, list(found.ignored))
        )

    found = import_hf(folder, out, end_of_text=end_of_text, ignored=ignored, check=compare)
    return ImportedModel(
        out=str(out),
        family=found.settings.family,
        parameters=count_parameters(found.settings),
        model=str(out / MODEL),
        tokenizer_path=str(out / TOKENIZER_FILE),
        end_of_text=found.end_of_text,
        ignored_keys=found.ignored,
        **compared,
    )
