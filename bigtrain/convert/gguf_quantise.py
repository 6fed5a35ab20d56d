"""A GGUF file with smaller numbers, made by llama.cpp's own quantiser from one with floats. Needs llama-cpp-python.

The package gguf writes the older types alone, without the K types (`NotImplementedError` in gguf 0.19): llama.cpp has
all of them, and chooses the types of single tensors as its users know it. A matrix whose rows do not divide into the
blocks of a type gets another one.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

import torch

from bigtrain.base import BigtrainError, commit_file
from bigtrain.convert.gguf import refuse_foreign_file
from bigtrain.convert.llama_cpp import captured_log

QUANTISED_TYPES = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q3_K_L", "Q3_K_M",
    "Q3_K_S", "Q2_K",
)  # fmt: skip
"""Those that it makes without a matrix of importances."""


def require_llama_cpp() -> None:
    """Raise BigtrainError where llama-cpp-python is not installed."""
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        raise BigtrainError(
            "llama-cpp-python is not installed; its llama.cpp makes quantised GGUF files",
            fix="pip install llama-cpp-python, or take one of the types F32, F16, BF16",
        ) from None


def quantise_gguf(floats: Path, out: Path, kind: str) -> None:
    """Write a quantised file under a temporary name, then move it to `out` in one step.

    Args:
        floats: a file of `export_gguf`.
        out: the file to make. An earlier export there is replaced.
        kind: one of `QUANTISED_TYPES`.

    Raises:
        BigtrainError: llama.cpp cannot, or `out` is something else.
    """
    require_llama_cpp()
    import llama_cpp

    refuse_foreign_file(out)
    partial = out.with_name(f".{out.name}.quantised.partial")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.nthread = torch.get_num_threads()
    with captured_log() as lines:
        failed = llama_cpp.llama_model_quantize(str(floats).encode(), str(partial).encode(), ctypes.byref(parameters))
    if failed:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        errors = [line for line in lines if "fail" in line.lower() or "error" in line.lower()]
        raise BigtrainError(
            f"llama.cpp cannot make a file of type {kind} of this model",
            found=errors[-1] if errors else "no reason given",
            fix="take another --gguf-type, such as Q8_0",
        )
    with partial.open("rb") as file:
        commit_file(file, out)
