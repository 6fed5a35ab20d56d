"""Export of a run's model for llama.cpp, with a check that it computes the same."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bigtrain.config import Settings
from bigtrain.convert import (
    DTYPES,
    architecture_of,
    compare_with_llama_cpp,
    context_length,
    export_gguf,
    quantise_gguf,
    read_vocabulary,
    refuse_foreign_file,
    require_llama_cpp,
)
from bigtrain.data import BeginOfText, DataTokenizer, open_mirror
from bigtrain.engine import COMPUTE_DTYPES
from bigtrain.model import count_parameters
from bigtrain.trained.base_model import plain_weights
from bigtrain.trained.checkpoint_settings import tokenizer_file_of
from bigtrain.trained.export import require_known_attention
from bigtrain.trained.stored_model import StoredModel

FILE = "model.gguf"
"""Name of the file in a folder."""


@dataclass(frozen=True)
class GgufExport:
    """A checkpoint that was written as a GGUF file."""

    out: str
    step: int
    parameters: int
    dtype: str
    """Of the matrices, such as `bfloat16`, or llama.cpp's name of a quantised type, such as `Q4_K_M`."""
    architecture: str
    """llama.cpp's name of the network."""
    logit_difference: float | None
    """Between llama.cpp and bigtrain, over the standard deviation; null where they were not compared, as the next."""
    greedy_tokens: int | None
    """How many were drawn."""
    bytes: int
    """Of the file."""


def export_run_to_gguf(
    run: Path,
    out: Path,
    *,
    step: int | None,
    dtype: str | None,
    check: bool,
    report: Callable[[str], None],
    merge: bool = False,
    quantised: str | None = None,
) -> GgufExport:
    """Write a checkpoint as a GGUF file. Memory holds one tensor at a time, and for the check the model in float32.

    Args:
        run: a run directory, or a folder that `bigtrain compress` wrote.
        out: the file to make, if its name ends with `.gguf`; else the folder to make it in, as `model.gguf`.
        step: of the checkpoint. Default: the newest verified one.
        dtype: of the matrices, a key of `DTYPES`. Default: the precision the model was trained in.
        check: load the file with llama.cpp and compare; without llama-cpp-python it is skipped with a message.
        report: called with each line of progress.
        merge: of a run with an adapter: merge it into the weights.
        quantised: one of `QUANTISED_TYPES`: llama.cpp makes such a file of one in float32, which is checked as ever. Of
            the quantised one the difference is said, and it is no error.

    Raises:
        BigtrainError: nothing to export, the run has an adapter that is not merged, `out` is something else, llama.cpp
            has no such model, or the check fails.
    """
    stored = StoredModel.open(run, step)
    settings = stored.settings
    require_known_attention(settings, "llama.cpp")
    open_mirror(settings.data)  # the tokenizer may be at a URL
    weights, tokenizer_file = plain_weights(settings, stored.weights, merge), tokenizer_file_of(settings)
    tokenizer = DataTokenizer.open(tokenizer_file.parent)
    torch_dtype = DTYPES[dtype] if dtype else COMPUTE_DTYPES[settings.engine.precision]
    made = file = out if out.suffix == ".gguf" else out / FILE
    if quantised is not None:
        require_llama_cpp()
        refuse_foreign_file(made)
        torch_dtype, file = torch.float32, made.with_name(f".{made.name}.float32")
    architecture = architecture_of(settings.model)
    _say_what_differs(settings, tokenizer_file, tokenizer.begin_of_text, report)
    try:
        export_gguf(
            weights,
            settings.model,
            tokenizer_file,
            file,
            end_of_text=settings.data.tokenizer.end_of_text,
            begin_of_text=tokenizer.begin_of_text,
            dtype=torch_dtype,
            name=f"{run.resolve().name} step {stored.step}",
        )
        comparison = None
        if check and importlib.util.find_spec("llama_cpp") is None:
            report("not checked: llama-cpp-python is not installed (pip install llama-cpp-python)")
        elif check:
            comparison = compare_with_llama_cpp(file, weights, settings.model, tokenizer.for_prompts(), torch_dtype)
            comparison.check(file, torch_dtype)
        if quantised is not None:
            quantise_gguf(file, made, quantised)
            if check:
                comparison = compare_with_llama_cpp(made, weights, settings.model, tokenizer.for_prompts(), torch_dtype)
    finally:
        if file != made:
            file.unlink(missing_ok=True)
    return GgufExport(
        out=str(made),
        step=stored.step,
        parameters=count_parameters(settings.model),
        dtype=quantised or str(torch_dtype).removeprefix("torch."),
        architecture=architecture.name,
        logit_difference=None if comparison is None else comparison.difference,
        greedy_tokens=None if comparison is None else len(comparison.tokens),
        bytes=made.stat().st_size,
    )


def _say_what_differs(
    settings: Settings, tokenizer_file: Path, begin_of_text: BeginOfText, report: Callable[[str], None]
) -> None:
    model = settings.model
    if context_length(model) < model.max_position_embeddings:
        report(
            f"the file's context ends at {context_length(model)} tokens, with the sliding window that llama.cpp "
            f"does not have, and not at {model.max_position_embeddings}"
        )
    end_of_text = settings.data.tokenizer.end_of_text
    if read_vocabulary(tokenizer_file, end_of_text, model.vocab_size, begin_of_text).normalizes:
        report(
            "the tokenizer makes text canonical (NFC) first, which llama.cpp does not: other text gives other tokens"
        )
