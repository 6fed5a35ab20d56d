"""The tokenizer: byte-level BPE trained on the sources, or a finished `tokenizer.json`, kept in a canonical form.

Byte-level BPE (Radford et al., 2019, section 2.2) without a normaliser: decoding gives any text back byte for byte.
The file in the data folder is the canonical form (sorted keys, no spaces), so that its hash depends only on what the
tokenizer does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bigtrain.base import BigtrainError, parse_json, read_regular
from bigtrain.config import TokenizerSettings
from bigtrain.data.format.hashing import DIGEST_BYTES, canonical_json

TOKENIZER_FILE = "tokenizer.json"
LARGEST = 1 << 28
"""Bytes of a tokenizer file. One of a million tokens has some 50 million."""


def train_tokenizer(settings: TokenizerSettings, texts: Iterator[str]) -> bytes:
    """Train byte-level BPE on texts. Returns the canonical file. The same texts give the same bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's split of text into words
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=settings.min_frequency,
        special_tokens=[settings.end_of_text],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return canonical_form(tokenizer.to_str())


def read_tokenizer(path: Path) -> bytes:
    """The canonical form of a `tokenizer.json`, or of the one in a folder. Raises BigtrainError."""
    file = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        text = read_regular(file, LARGEST).decode()
        vocabulary_size(Tokenizer.from_str(text))
        return canonical_form(text)
    except Exception as error:  # the library raises plain Exception
        raise BigtrainError(
            f"data.tokenizer.path: no tokenizer can be read from {path}: {cause(error)}",
            wanted="a tokenizer.json of the tokenizers library, or a folder that holds one",
            fix="correct the path, or leave it out to train a tokenizer",
        ) from None


def cause(error: Exception) -> str:
    """What went wrong with a file, without the path that a message names already."""
    return str(error.found if isinstance(error, BigtrainError) and error.found else error)[:300]


def canonical_form(text: str) -> bytes:
    """The canonical form of a tokenizer file."""
    return canonical_json(parse_json(text, TOKENIZER_FILE))


def tokenizer_hash(file: bytes) -> str:
    """BLAKE2b-128 over the canonical file, as 32 hex digits."""
    return hashlib.blake2b(file, digest_size=DIGEST_BYTES).hexdigest()


def parse_tokenizer(file: bytes) -> Tokenizer:
    """A tokenizer ready to encode documents.

    Text that spells a special token is encoded as ordinary text. Nothing is truncated or padded, whatever the file
    says.
    """
    tokenizer = Tokenizer.from_str(file.decode())
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a data folder (or the file itself). Raises BigtrainError if there is none."""
    file = directory / TOKENIZER_FILE if directory.is_dir() else directory
    if not file.is_file():
        raise BigtrainError(f"there is no tokenizer at {file}", fix="build the data first: bigtrain data build CONFIG")
    try:
        tokenizer = parse_tokenizer(read_regular(file, LARGEST))
        vocabulary_size(tokenizer)
    except Exception as error:  # the library raises plain Exception
        raise BigtrainError(
            f"no tokenizer can be read from {file}",
            found=cause(error),
            wanted="a tokenizer.json of the tokenizers library",
            fix="restore the file, or remove the data folder and build it again",
        ) from error
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Largest token id plus one: the rows that an embedding needs."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def end_of_text_id(tokenizer: Tokenizer, end_of_text: str) -> int:
    """Id of the token that closes a document. Raises BigtrainError if the vocabulary lacks it."""
    token_id: int | None = tokenizer.token_to_id(end_of_text)
    if token_id is None:
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        raise BigtrainError(
            f"data.tokenizer.end_of_text: the tokenizer has no token {end_of_text!r}",
            found=", ".join(special[:8]) or "no special tokens",
            wanted=end_of_text,
            fix="set data.tokenizer.end_of_text to the special token that ends a text",
        )
    return token_id


def check_vocabulary(tokens: int, embedding_rows: int) -> None:
    """Refuse a vocabulary that is larger than the model's embedding."""
    if tokens > embedding_rows:
        raise BigtrainError(
            "the tokenizer's vocabulary is larger than the model's embedding",
            found=f"model.vocab_size {embedding_rows}",
            wanted=f"at least {tokens}, the size of the tokenizer's vocabulary",
            fix=f"set model.vocab_size to {-(-tokens // 64) * 64} (a multiple of 64), or use a smaller tokenizer",
        )
