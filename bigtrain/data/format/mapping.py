"""Maps files into memory without keeping them open.

Python's `mmap` keeps a descriptor for every mapped file (from 3.13 on, this can be turned off). A dataset of 10^12
tokens has some 20,000 files, and most systems let a process open 1,024. A mapping itself needs no descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from pathlib import Path

from bigtrain.base import BigtrainError

MADV_RANDOM = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


def map_file(path: Path, *, at_random: bool = False) -> memoryview:
    """The bytes of a file, which are read from disk on access, and unmapped after the last reference.

    Args:
        path: the file.
        at_random: the access is at random positions. The system then reads only the accessed pages, instead of 128 KiB
            or more around each.

    Raises:
        OSError: the file cannot be opened.
        BigtrainError: this process may not map more files.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if not size:
            return memoryview(b"")
        address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            raise _refused(path, ctypes.get_errno())
    finally:
        os.close(descriptor)
    if at_random:
        _LIBC.madvise(address, size, MADV_RANDOM)
    data = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(data, _LIBC.munmap, address, size).atexit = False
    return memoryview(data).cast("B").toreadonly()


def _refused(path: Path, error: int) -> Exception:
    if error != errno.ENOMEM:
        return OSError(error, os.strerror(error), str(path))
    return BigtrainError(
        f"{path} cannot be mapped: this process has as many mappings as the system allows",
        found="the limit of vm.max_map_count or of the address space",
        wanted="two mappings a shard",
        fix="raise it (sysctl vm.max_map_count=1000000), or build the data with a larger data.shard_tokens",
    )
