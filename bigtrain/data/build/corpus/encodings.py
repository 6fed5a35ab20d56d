"""The encoding of text files: UTF-8, with or without a byte order mark."""

from __future__ import annotations

import codecs

from bigtrain.base import BigtrainError

UTF8_MARK = codecs.BOM_UTF8
OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def without_mark(start: bytes, place: str) -> bytes:
    """The first bytes of a file without the byte order mark of UTF-8.

    Args:
        start: at least four bytes from the start of the file, if it has as many.
        place: the file's path for messages.

    Raises:
        BigtrainError: it is UTF-16 or UTF-32, also without a mark: every second byte of UTF-16 is zero in most text.
    """
    if start.startswith(UTF8_MARK):
        return start[len(UTF8_MARK) :]
    encoding = next((name for mark, name in OTHER_MARKS if start.startswith(mark)), None)
    if encoding is None and len(start) >= 4 and 0 in start[:4] and any(start[:4]):
        pairs = start[:4]
        if not any(pairs[0::2]) or not any(pairs[1::2]):
            encoding = "UTF-16"
    if encoding is not None:
        raise BigtrainError(
            f"{place} is {encoding} text, which is not read",
            found=f"{encoding}, bytes {start[:4].hex(' ')} at the start",
            wanted="UTF-8",
            fix=f"convert it: iconv -f {encoding} -t UTF-8 FILE > FILE.utf8",
        )
    return start
