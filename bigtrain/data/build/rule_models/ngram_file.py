"""Reads an n-gram model from a file of either form."""

from __future__ import annotations

from pathlib import Path

from bigtrain.base import BigtrainError
from bigtrain.data.build.corpus.compressed import SUFFIXES as COMPRESSED
from bigtrain.data.build.rule_models.arpa import read_arpa, write_arpa
from bigtrain.data.build.rule_models.backoff_model import BackoffModel, read_ngram_file

ARPA = tuple(f".arpa{compressed}" for compressed in ("", *COMPRESSED))


def read_ngrams(path: Path, where: str) -> BackoffModel:
    """The model in a file: ARPA by its suffix, else what `bigtrain data ngram train` writes.

    Args:
        path: the file.
        where: the setting or command that names it, for messages.

    Raises:
        BigtrainError: it cannot be read, or is no such model.
    """
    try:
        return read_arpa(path) if path.name.lower().endswith(ARPA) else read_ngram_file(path)
    except FileNotFoundError:
        raise BigtrainError(
            f"{where}: {path} is not there", wanted="an n-gram model", fix="correct the path of the model"
        ) from None
    except Exception as error:  # each format's library raises its own
        raise BigtrainError(
            f"{where}: {path} is not a whole n-gram model",
            found=f"{type(error).__name__}: {error}"[:300],
            wanted=f"what `bigtrain data ngram train` writes, or an ARPA file ({', '.join(ARPA)})",
            fix="copy the file again, or name another model",
        ) from error


def write_ngrams(model: BackoffModel, path: Path) -> None:
    """Write a model: as ARPA where the name ends so, else as a `.ngram` file. Raises BigtrainError if it cannot."""
    if path.name.lower().endswith(".arpa"):
        write_arpa(model, path)
    else:
        model.write(path)
