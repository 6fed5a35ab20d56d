"""The lines of text files: decompressed, in UTF-8, and none too long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bigtrain.base import BigtrainError
from bigtrain.data.build.corpus.compressed import opened
from bigtrain.data.build.corpus.encodings import without_mark
from bigtrain.data.build.corpus.files import CorpusFile, reading, too_long


class DecodedLine(NamedTuple):
    """A line of a text file."""

    number: int
    """From 0."""
    text: str
    """With its line break."""
    size: int
    """In bytes."""


def decoded_lines(file: CorpusFile, limit: int) -> Iterator[DecodedLine]:
    r"""The lines of a file, without a byte order mark. Only `\n` ends a line.

    Args:
        file: the file, which may be compressed.
        limit: the most bytes of a line.

    Raises:
        BigtrainError: it cannot be read, is not UTF-8, or has a longer line.
    """
    with reading(file.place), file.open() as raw, opened(raw, file.name) as stream:
        index = 0
        while line := stream.readline(limit + 2):
            if len(line) > limit + line.endswith(b"\n"):
                raise too_long(f"{file.place}:{index + 1}", limit)
            try:
                text = (line if index else without_mark(line, file.place)).decode()
            except UnicodeDecodeError as error:
                raise BigtrainError(
                    f"{file.place}:{index + 1} is not UTF-8 text",
                    found=f"byte 0x{error.object[error.start]:02x}",
                    wanted="UTF-8",
                    fix="convert the file: iconv -f ENCODING -t UTF-8 FILE > FILE.utf8",
                ) from None
            yield DecodedLine(index, text, len(line))
            index += 1
        file.require_whole(raw.tell())
