"""Compressed files: gzip, zstandard, bzip2 and xz, of any number of members.

A file that ends inside a member raises EOFError, and one with other bytes raises the library's error: what is missing
never looks like the end. Memory is a window of the format, however much a file expands.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from typing import BinaryIO, Protocol, cast

import zstandard

MAGIC = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0"}
"""The first bytes of a file of each format, by its suffix."""
SUFFIXES = tuple(MAGIC)
READ_BYTES = 1 << 20
INPUT_BYTES = 1 << 16
LONGEST_WINDOW = 1 << 31
"""Bytes: what `zstd --long=31` uses, the most there is. The memory is taken only as far as the text reaches."""


def opened(raw: BinaryIO, name: str) -> BinaryIO:
    """Decompress a stream, or return it as it is if it is not compressed.

    Args:
        raw: the bytes of the file, which can be peeked at.
        name: the name of the file. Its suffix decides; without one of these suffixes, the first bytes do.
    """
    start = raw.peek(8)[:8] if isinstance(raw, io.BufferedReader) else b""
    suffix = next((each for each in SUFFIXES if name.lower().endswith(each)), None)
    suffix = suffix or next((each for each, magic in MAGIC.items() if start.startswith(magic)), None)
    if suffix is not None and isinstance(raw, io.BufferedReader) and not start:
        raise EOFError("it is empty")
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(raw, "rb"))
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_zstandard(raw), buffer_size=READ_BYTES))
    if suffix in (".bz2", ".xz"):
        return cast(BinaryIO, io.BufferedReader(_Members(raw, xz=suffix == ".xz"), buffer_size=READ_BYTES))
    return raw


def _zstandard(raw: BinaryIO) -> io.RawIOBase:
    decompressor = zstandard.ZstdDecompressor(max_window_size=LONGEST_WINDOW)
    # The library takes the end of the input for the end of a frame.
    stream = decompressor.stream_reader(cast(BinaryIO, _WholeFrames(raw)), read_across_frames=True, closefd=False)
    return cast(io.RawIOBase, stream)


class _WholeFrames:
    """Passes on the bytes of a zstandard file, and raises EOFError if they end inside a frame.

    It follows the frames from header to header (RFC 8878, section 3.1), which is cheap. All else is the decompressor's.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._head = b""
        """The bytes so far of the header that is being read."""
        self._wanted = 4
        """The length of that header."""
        self._skip = 0
        """Bytes until the next header."""
        self._part = "magic"
        self._checksum = False

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`."""
        data = self._raw.read(min(size, INPUT_BYTES))
        if not data and not (self._part == "magic" and not self._head and not self._skip):
            raise EOFError("it ends inside a zstandard frame")
        self._follow(data)
        return data

    def _follow(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            step = min(self._wanted - len(self._head), len(data) - at)
            self._head += data[at : at + step]
            at += step
            if len(self._head) == self._wanted:
                self._header()

    def _header(self) -> None:
        head, self._head = self._head, b""
        number = int.from_bytes(head, "little")
        if self._part == "magic":
            if number & 0xFFFFFFF0 == 0x184D2A50:
                self._part, self._wanted = "skippable", 4
            elif head == MAGIC[".zst"]:
                self._part, self._wanted = "descriptor", 1
            # other bytes: the decompressor refuses them
        elif self._part == "skippable":
            self._skip, self._part, self._wanted = number, "magic", 4
        elif self._part == "descriptor":
            single = bool(number & 0x20)
            content = (1 if single else 0, 2, 4, 8)[number >> 6]
            self._skip = (not single) + (0, 1, 2, 4)[number & 3] + content
            self._checksum, self._part, self._wanted = bool(number & 4), "block", 3
        else:
            repeated = number >> 1 & 3 == 1
            self._skip = 1 if repeated else number >> 3
            if number & 1:
                self._skip += 4 * self._checksum
                self._part, self._wanted = "magic", 4


class _Decompressor(Protocol):
    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Members(io.RawIOBase):
    """The content of a bzip2 or xz file. Unlike the standard library's files, it ignores no damaged later member."""

    def __init__(self, raw: BinaryIO, *, xz: bool) -> None:
        self._raw, self._xz = raw, xz
        self._current: _Decompressor | None = None
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if (self._current is None or self._current.eof) and not self._next():
                return 0
            assert self._current is not None
            if self._current.needs_input and not self._input:
                self._input = self._raw.read(INPUT_BYTES)
                if not self._input:
                    raise EOFError(f"it ends inside {'an xz' if self._xz else 'a bzip2'} stream")
            data = self._current.decompress(self._input, len(buffer))
            self._input = self._current.unused_data
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _next(self) -> bool:
        """Start the next member. False at the end of the file."""
        while True:
            if self._xz:  # zeros may stand between streams
                self._input = self._input.lstrip(b"\0")
            if self._input:
                break
            self._input = self._raw.read(INPUT_BYTES)
            if not self._input:
                return False
        self._current = cast(_Decompressor, lzma.LZMADecompressor() if self._xz else bz2.BZ2Decompressor())
        return True
