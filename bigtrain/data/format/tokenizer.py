"""The tokenizer: byte-level BPE trained on the sources, or a finished `tokenizer.json`, kept in a canonical form.

Byte-level BPE (Radford et al., 2019, section 2.2) without a normaliser: decoding gives any text back byte for byte.
The file in the data folder is the canonical form (sorted keys, no spaces), so that its hash depends only on what the
tokenizer does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bigtrain.base import BigtrainError, read_regular
from bigtrain.config import TokenizerSettings
from bigtrain.data.format.chat_template import ChatTemplate
from bigtrain.data.format.file_record import changed_error
from bigtrain.data.format.hashing import DIGEST_BYTES, canonical_json
from bigtrain.data.format.layout import BUILD_RECORD, Record, part_of, read_record, require_same
from bigtrain.data.format.manifest import MANIFEST, DatasetManifest
from bigtrain.data.format.summary import DatasetSummary
from bigtrain.data.format.tokenizer_content import (
    TOKENIZER_BYTES,
    BeginOfText,
    TokenizerContent,
    ends_sentence_with,
    read_chat_template,
)
from bigtrain.objective import ObjectiveVocabulary

TOKENIZER_FILE = "tokenizer.json"
CHAT_TOKENS = "chat_tokens"
"""The key of a data folder's record with the special tokens of its chat template."""


def train_tokenizer(settings: TokenizerSettings, texts: Iterator[str]) -> bytes:
    """Train byte-level BPE on texts. Returns the canonical file. The same texts give the same bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's split of text into words
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=settings.min_frequency,
        special_tokens=_special_tokens_to_train(settings),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return canonical_form(tokenizer.to_str())


def _special_tokens_to_train(settings: TokenizerSettings) -> list[str]:
    begin = [] if settings.begin_of_text in ("auto", "none", settings.end_of_text) else [settings.begin_of_text]
    return list(dict.fromkeys([settings.end_of_text, *begin, *settings.additional_special_tokens]))


def read_content(path: Path, additional_special_tokens: Sequence[str] = ()) -> TokenizerContent:
    """The content of a `tokenizer.json`, or of the one in a folder, with further tokens. Raises BigtrainError."""
    file = path / TOKENIZER_FILE if path.is_dir() else path
    content = TokenizerContent.read(file, fix="correct data.tokenizer.path, or leave it out to train a tokenizer")
    return content.with_special_tokens(additional_special_tokens)


def canonical_form(text: str) -> bytes:
    """The canonical form of a tokenizer file."""
    return canonical_json(json.loads(text))


def tokenizer_hash(file: bytes) -> str:
    """BLAKE2b-128 over the canonical file, as 32 hex digits."""
    return hashlib.blake2b(file, digest_size=DIGEST_BYTES).hexdigest()


def parse_tokenizer(file: bytes) -> Tokenizer:
    """A tokenizer that decodes documents, and encodes texts other than those of special tokens as they were encoded.

    Text that spells a special token is encoded as ordinary text. Nothing is truncated or padded, whatever the file
    says.
    """
    return TokenizerContent.parse(file, TOKENIZER_FILE).for_reading()


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a data folder (or the file itself), to decode documents. Raises BigtrainError without one."""
    if directory.is_dir():
        return DataTokenizer.open(directory).for_reading()
    return _content_of(directory).for_reading()


@dataclass(frozen=True)
class DataTokenizer:
    """The tokenizer of a data folder, and what documents there begin and end with."""

    content: TokenizerContent
    end_of_text: str
    """The token that closes each document."""
    begin_of_text: BeginOfText
    """What each document begins with."""

    @classmethod
    def open(cls, directory: Path) -> DataTokenizer:
        """The tokenizer of a data folder. Raises BigtrainError if there is none."""
        content = _content_of(directory / TOKENIZER_FILE)
        record = read_record(directory) or {}
        settings = part_of(record, "tokenizer", dict, directory) if "tokenizer" in record else {}
        end_of_text = settings.get("end_of_text", TokenizerSettings().end_of_text)
        if not isinstance(end_of_text, str):
            raise changed_error(directory / BUILD_RECORD, f"end_of_text {end_of_text!r:.100}", "a token")
        return cls(content, end_of_text, begin_in_record(record, directory))

    @property
    def end_id(self) -> int:
        """Id of the token that closes a document. Raises BigtrainError if the vocabulary lacks it."""
        return end_of_text_id(self.content.library, self.end_of_text)

    def special_id(self, separator: str) -> int:
        """Id of the special token between two texts. Raises BigtrainError if the tokenizer has none of this name."""
        return self.vocabulary().id_of(separator, "data.tokenizer.separator")

    @property
    def vocabulary_size(self) -> int:
        """Largest token id plus one."""
        return vocabulary_size(self.content.library)

    @property
    def special(self) -> set[str]:
        """The tokens that end or begin a text."""
        return {self.end_of_text, *self.content.texts(self.begin_of_text.ids)}

    def vocabulary(self) -> ObjectiveVocabulary:
        """What objectives know of it."""
        tokens = self.content.library.get_vocab(with_added_tokens=True)
        names = {*self.content.special_tokens.values(), *self.special}
        ordinary, begins_word, ends_sentence = np.zeros((3, self.vocabulary_size), np.bool_)
        for token, number in tokens.items():
            ordinary[number], begins_word[number] = token not in names, self.content.begins_word(token)
            ends_sentence[number] = token not in names and ends_sentence_with(token)
        special = {token: tokens[token] for token in sorted(names & tokens.keys(), key=lambda name: tokens[name])}
        return ObjectiveVocabulary(special, ordinary, begins_word, self.end_id, self.begin_of_text.ids, ends_sentence)

    def for_reading(self) -> Tokenizer:
        """The tokenizer that decodes documents."""
        return self.content.for_reading(self.special)

    def for_documents(self) -> Tokenizer:
        """The tokenizer of documents, without what they begin and end with."""
        return self.content.for_documents(self.special)

    def for_prompts(self) -> Tokenizer:
        """The tokenizer of prompts, which gives the ids that every exported form gives."""
        return self.content.as_trained(self.end_of_text, self.begin_of_text).for_prompts()

    def for_reading_whole(self, start: int) -> Tokenizer:
        """The tokenizer of texts that an encoder reads as whole documents, and of those that a decoder writes, whose
        special tokens are shown: all but those that a text begins or ends with, and `start`."""
        whole = self.content.as_trained(self.end_of_text, self.begin_of_text, read_whole=True)
        return whole.for_prompts({start, self.end_id, *self.begin_of_text.ids})


def open_chat_template(directory: Path) -> ChatTemplate:
    """The chat template of a data folder, with its special tokens. Raises BigtrainError if there is none."""
    program = read_chat_template(directory)
    if program is None:
        raise BigtrainError(
            f"the tokenizer in {directory} has no chat template, so conversations cannot become text",
            found="no template in a chat_template.jinja or tokenizer_config.json beside data.tokenizer.path",
            wanted="the template of the model that is trained, or one of your own",
            fix="name a Jinja file at data.tokenizer.chat_template, and build in another data.dir",
        )
    tokenizer, record = DataTokenizer.open(directory), read_record(directory) or {}
    own = part_of(record, CHAT_TOKENS, dict, directory) if CHAT_TOKENS in record else {}
    begin = "".join(tokenizer.content.texts(tokenizer.begin_of_text.ids))
    return ChatTemplate(program, {"bos_token": begin, "eos_token": tokenizer.end_of_text, **own})


def begin_of_text(settings: TokenizerSettings, content: TokenizerContent) -> BeginOfText:
    """What documents are to begin with, by `data.tokenizer.begin_of_text`.

    Raises:
        BigtrainError: the vocabulary lacks a token that documents are to begin or end with.
    """
    end = end_of_text_id(content.library, settings.end_of_text)
    if settings.begin_of_text == "none":
        return BeginOfText()
    if settings.begin_of_text == "auto":
        own = content.around.begin
        content.texts(own)
        return BeginOfText(own, before_prompts=True) if own else BeginOfText((end,), before_prompts=False)
    begin: int | None = content.library.token_to_id(settings.begin_of_text)
    if begin is None:
        raise BigtrainError(
            f"data.tokenizer.begin_of_text: the tokenizer has no token {settings.begin_of_text!r}",
            found=_special_tokens(content.library),
            wanted="auto, none, or a token of the tokenizer",
            fix="set data.tokenizer.begin_of_text to the token that begins a text, or remove it",
        )
    return BeginOfText((begin,), before_prompts=True)


def begin_in_record(record: Record, folder: Path) -> BeginOfText:
    """What documents begin with by the `build.json` of a data folder. Raises BigtrainError."""
    return BeginOfText.from_json(record.get("begin_of_text"), folder / BUILD_RECORD)


def require_begin_of_text(settings: TokenizerSettings, folder: Path, built: BeginOfText) -> None:
    """Refuse data whose documents begin otherwise than the settings say; `auto` takes them as they are."""
    content = _content_of(folder / TOKENIZER_FILE)
    if settings.begin_of_text != "auto" and begin_of_text(settings, content) != built:
        raise BigtrainError(
            f"{folder} was built with another data.tokenizer.begin_of_text",
            found=f"documents that begin with {', '.join(content.texts(built.ids)) or 'their first token'}",
            wanted=f"data.tokenizer.begin_of_text {settings.begin_of_text}",
            fix=f"remove data.tokenizer.begin_of_text, or set another data.dir, or remove {folder} to build it again",
        )


def require_same_begin(folder: Path, dataset: DatasetManifest | DatasetSummary, begin: BeginOfText) -> None:
    """Refuse a dataset whose documents begin with something else than its data folder says. Raises BigtrainError."""
    found = BeginOfText.from_json(dataset.begin_of_text, folder / MANIFEST)
    require_same(folder, {"begin_of_text": found}, {"begin_of_text": begin})


def _content_of(file: Path) -> TokenizerContent:
    if not file.is_file():
        raise BigtrainError(f"there is no tokenizer at {file}", fix="build the data first: bigtrain data build CONFIG")
    return TokenizerContent.parse(read_regular(file, TOKENIZER_BYTES), file)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Largest token id plus one: the rows that an embedding needs."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def end_of_text_id(tokenizer: Tokenizer, end_of_text: str) -> int:
    """Id of the token that closes a document. Raises BigtrainError if the vocabulary lacks it."""
    token_id: int | None = tokenizer.token_to_id(end_of_text)
    if token_id is None:
        raise BigtrainError(
            f"data.tokenizer.end_of_text: the tokenizer has no token {end_of_text!r}",
            found=_special_tokens(tokenizer),
            wanted=end_of_text,
            fix="set data.tokenizer.end_of_text to the special token that ends a text",
        )
    return token_id


def _special_tokens(tokenizer: Tokenizer) -> str:
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return ", ".join(special[:8]) or "no special tokens"


def check_vocabulary(tokens: int, embedding_rows: int) -> None:
    """Refuse a vocabulary that is larger than the model's embedding."""
    if tokens > embedding_rows:
        raise BigtrainError(
            "the tokenizer's vocabulary is larger than the model's embedding",
            found=f"model.vocab_size {embedding_rows}",
            wanted=f"at least {tokens}, the size of the tokenizer's vocabulary",
            fix=f"set model.vocab_size to {-(-tokens // 64) * 64} (a multiple of 64), or use a smaller tokenizer",
        )
