"""The rules of FineWeb: Penedo et al., The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale, 2024
(arXiv:2406.17557), section 3.6, and the code that made it (datatrove).
"""

from __future__ import annotations

from bigtrain.config import FineWebSettings
from bigtrain.data.build.clean.text import TERMINAL_PUNCTUATION, Rejection, Text, ratio, repeated


def fineweb(text: Text, limits: FineWebSettings) -> Text | Rejection:
    """Remove lists and documents with repeated lines. Shares are of the lines that are not empty."""
    lines = [line for line in text.text.split("\n") if line.strip()]
    if ratio(sum(line.endswith(TERMINAL_PUNCTUATION) for line in lines), len(lines)) < limits.min_punctuated_lines:
        return Rejection("fineweb", "too few lines end in punctuation")
    if ratio(sum(len(line) <= limits.short_line_characters for line in lines), len(lines)) > limits.max_short_lines:
        return Rejection("fineweb", "too many short lines")
    newlines = text.text.count("\n")
    if ratio(repeated(lines)[1], len(text.text) - newlines) > limits.max_duplicate_line_characters:
        return Rejection("fineweb", "characters in repeated lines")
    if ratio(newlines, len(text.words)) > limits.max_newlines_per_word:
        return Rejection("fineweb", "too many line ends")
    return text
