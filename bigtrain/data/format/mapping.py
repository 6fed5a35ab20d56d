"""Maps files into memory without keeping them open.

Python's `mmap` keeps a descriptor for every mapped file (from 3.13 on, this can be turned off). A dataset of 10^12
tokens has some 20,000 files, and most systems let a process open 1,024. A mapping itself needs no descriptor.

The system also limits the mappings of a process (`vm.max_map_count`, usually 65,530). So what was not used for longest
is unmapped where there are many: see `keep_mapped`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Protocol

from bigtrain.base import BigtrainError

MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")
USUAL_LIMIT = 65_530
"""Mappings of a process, where the system does not say it."""
MAPPINGS_OF_A_HOLDER = 2
"""A shard's `.tok` and `.doc` file; a pack is one."""

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


class Holder(Protocol):
    """An object that maps up to `MAPPINGS_OF_A_HOLDER` files when it needs them."""

    def unmap(self) -> None:
        """Forget the mapped files. Views of them that others have stay valid."""


_HELD: OrderedDict[int, weakref.ref[Holder]] = OrderedDict()
_LOCK = threading.Lock()


def keep_mapped(holder: Holder) -> None:
    """Note that an object uses its mapped files now.

    The objects of a process that were used last may keep half of the mappings that the system allows. The other half
    is for libraries and threads. Where there are more, those that were not used for longest are unmapped.
    """
    key, over = id(holder), []
    with _LOCK:
        if key in _HELD:
            _HELD.move_to_end(key)
            return
        _HELD[key] = weakref.ref(holder, lambda _: _HELD.pop(key, None))
        while len(_HELD) > most_holders():
            over.append(_HELD.popitem(last=False)[1])
    for oldest in over:
        if (other := oldest()) is not None:
            other.unmap()


@cache
def most_holders() -> int:
    """How many objects may keep their files mapped at the same time."""
    try:
        limit = int(MAX_MAP_COUNT.read_text())
    except (OSError, ValueError):
        limit = USUAL_LIMIT
    return max(1, limit // 2 // MAPPINGS_OF_A_HOLDER)


def _refused(path: Path, error: int) -> Exception:
    if error != errno.ENOMEM:
        return OSError(error, os.strerror(error), str(path))
    return BigtrainError(
        f"{path} cannot be mapped: this process has as many mappings as the system allows",
        found="the limit of vm.max_map_count or of the address space",
        wanted="half of the limit of vm.max_map_count for the data of a run",
        fix="raise it (sysctl vm.max_map_count=1000000), or the limit of the address space (ulimit -v)",
    )
