"""The kernels of `cpu_kernels.cpp` for CPUs with bfloat16 instructions: compiled at first use, kept for the next run.

It takes a C++ compiler and five seconds, once for each version of PyTorch; the result lies in the user's cache folder.
Where something is missing, `obstacle` says what, and everything is computed by PyTorch, two to five times slower. Which
instructions are used follows from our flags and not from the machine, so machines may share the folder.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from bigtrain.base import flock_if_supported

_SOURCE = Path(__file__).with_suffix(".cpp")
_TORCH = Path(torch.__file__).parent
_FLAGS = [
    "-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-DCPU_CAPABILITY_AVX512", "-mfma",
    "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-Wl,-z,now",
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", f"-I{_TORCH / 'include'}",
    f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-lc10",
]  # fmt: skip
COMPILE_SECONDS = 300


class Call(ctypes.Structure):
    """`Attention` in the source: what a call of attention is about."""

    _fields_ = (
        ("documents", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("key_heads", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("boundaries", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("window", ctypes.c_int64),
        ("ahead", ctypes.c_int64),
        ("drop_keys", ctypes.c_void_p),
        ("threshold", ctypes.c_uint32),
        ("drop_scale", ctypes.c_float),
    )


def is_for_this_cpu() -> bool:
    """Whether the processor has the instructions, under an operating system that we have tried."""
    return platform.system() == "Linux" and platform.machine() == "x86_64" and torch.cpu._is_avx512_bf16_supported()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # found out when compiling, not compiled
def obstacle() -> str | None:
    """What is wanted here for the kernels to run; None where they do. The first call compiles them."""
    found = _load()
    return found if isinstance(found, str) else None


def lacking_for_cpu_kernels() -> str | None:
    """What this machine lacks for the kernels; None where they run, or where the CPU could not run them."""
    return obstacle() if is_for_this_cpu() else None


def kernels() -> ctypes.CDLL:
    """The compiled library, where there is no obstacle."""
    found = _load()
    assert isinstance(found, ctypes.CDLL)
    return found


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Of a contiguous tensor's first number, for a call of a kernel."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return ctypes.c_void_p(tensor.data_ptr())


@cache
def _load() -> ctypes.CDLL | str:
    if not is_for_this_cpu():
        return "an x86 CPU with bfloat16 instructions (AVX512-BF16), under Linux"
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return "a C++ compiler (`c++`, or what CXX names) to compile its kernel with"
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
        library.attention_forward.restype = library.attention_backward.restype = ctypes.c_bool
        library.softmax_of_rows.argtypes = (
            *(ctypes.c_void_p,) * 3, *(ctypes.c_int64,) * 2, *(ctypes.c_float,) * 3, ctypes.c_int64, ctypes.c_bool,
        )  # fmt: skip
        library.softmax_of_rows.restype = ctypes.c_int64
        library.drop_channels.argtypes = (
            *(ctypes.c_void_p,) * 2, *(ctypes.c_int64,) * 2, ctypes.c_uint32, ctypes.c_float, ctypes.c_bool,
            ctypes.c_void_p,
        )  # fmt: skip
        return library
    except subprocess.CalledProcessError as error:
        problem = next((line for line in error.stderr.splitlines() if "error" in line), f"{compiler} failed")
    except (OSError, subprocess.TimeoutExpired) as error:  # no folder to write to, or a library that does not load
        problem = str(error)
    logging.getLogger(__name__).warning("the kernels for this CPU do not compile, and PyTorch's stay: %s", problem)
    return f"kernels that compile here ({problem})"


def _compiled(compiler: str) -> Path:
    """The library, compiled by one of the processes that want it at the same time."""
    made_from = "\n".join((_SOURCE.read_text(), compiler, *_FLAGS, torch.__version__))
    name = f"cpu-kernels-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.so"
    if (library := _cache_folder() / name).exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        lock = (library.parent / "cpu-kernels.lock").open("w")
    except OSError:  # a home that is missing or read-only: compiled for this process alone
        library = Path(tempfile.mkdtemp(prefix="bigtrain-")) / name
        lock = library.with_suffix(".lock").open("w")
    folder = library.parent
    with lock:
        flock_if_supported(lock, fcntl.LOCK_EX)  # without it, each process compiles a library of its own
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as made:
                whole = Path(made) / library.name
                command = [compiler, str(_SOURCE), *_FLAGS, "-o", str(whole)]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
                whole.rename(library)
    return library


def _cache_folder() -> Path:
    """The user's folder for what can be made again; a new temporary one for a user without a home."""
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache, "bigtrain")
    try:
        return Path.home() / ".cache" / "bigtrain"
    except RuntimeError:
        return Path(tempfile.mkdtemp(prefix="bigtrain-"))
