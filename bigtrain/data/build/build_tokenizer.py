"""The first half of a build: the tokenizer that all sources of a data folder share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bigtrain.base import BigtrainError, read_regular, write_atomically
from bigtrain.config import DataSettings, TokenizerSettings
from bigtrain.data.build.corpus import Corpus
from bigtrain.data.build.execute import BuildExecutor
from bigtrain.data.build.filters import Filters
from bigtrain.data.build.selection import SelectDocuments
from bigtrain.data.format.chat_template import read_special_tokens
from bigtrain.data.format.file_record import changed_error
from bigtrain.data.format.layout import Record, part_of, read_record, require_same, tokenizer_request, write_record
from bigtrain.data.format.tokenizer import (
    CHAT_TOKENS,
    TOKENIZER_FILE,
    DataTokenizer,
    begin_in_record,
    begin_of_text,
    check_vocabulary,
    read_content,
    require_begin_of_text,
    tokenizer_hash,
    train_tokenizer,
    vocabulary_size,
)
from bigtrain.data.format.tokenizer_content import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_BYTES,
    TokenizerContent,
    read_chat_template,
)


def build_tokenizer(
    settings: DataSettings,
    vocab_size: int,
    corpora: Mapping[str, Corpus],
    filters: Mapping[str, Filters],
    executor: BuildExecutor,
    report: Callable[[str], None],
) -> None:
    """Train the tokenizer, or copy it into the data folder. An existing one is checked against the settings."""
    request = tokenizer_request(settings)
    record = read_record(settings.dir)
    if record is not None:
        _check(settings, record, request)
        check_vocabulary(DataTokenizer.open(settings.dir).vocabulary_size, vocab_size)
        report("tokenizer: already there")
        return
    started = time.perf_counter()
    if settings.tokenizer.path is not None:
        content = read_content(settings.tokenizer.path, settings.tokenizer.additional_special_tokens)
    else:
        check_vocabulary(settings.tokenizer.vocab_size, vocab_size)
        report("tokenizer: training")
        trained = train_tokenizer(settings.tokenizer, _training_texts(settings, corpora, filters, executor))
        content = TokenizerContent.parse(trained, TOKENIZER_FILE)
    begin = begin_of_text(settings.tokenizer, content)
    tokens = vocabulary_size(content.library)
    check_vocabulary(tokens, vocab_size)
    file = content.to_bytes()
    write_atomically(settings.dir / TOKENIZER_FILE, file)
    template = _chat_template(settings.tokenizer)
    if template is not None:
        write_atomically(settings.dir / CHAT_TEMPLATE, template.encode())
    about_begin = {"begin_of_text": begin.to_json()} if begin.ids else {}
    special = {} if settings.tokenizer.path is None else read_special_tokens(_folder_of(settings.tokenizer.path))
    about_chats = {CHAT_TOKENS: special} if template is not None and special else {}
    write_record(settings.dir, {"tokenizer": request, "hash": tokenizer_hash(file), **about_begin, **about_chats})
    first = ", ".join(content.texts(begin.ids)) or "their first token"
    report(f"tokenizer: {tokens:,} tokens, {time.perf_counter() - started:.1f} s; documents begin with {first}")


def _folder_of(path: Path) -> Path:
    """The folder of a tokenizer, which is named by its file or its folder."""
    return path if path.is_dir() else path.parent


def _chat_template(settings: TokenizerSettings) -> str | None:
    """The chat template of the settings, or the one that came with the tokenizer. Raises BigtrainError."""
    if settings.chat_template is None:
        return None if settings.path is None else read_chat_template(_folder_of(settings.path))
    try:
        return read_regular(settings.chat_template, CHAT_TEMPLATE_BYTES).decode()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise BigtrainError(
            f"data.tokenizer.chat_template: {settings.chat_template} is not a chat template",
            found="no file" if isinstance(error, FileNotFoundError) else str(error),
            wanted="a Jinja file in UTF-8",
            fix="correct the path, or remove it to use the template that came with the tokenizer",
        ) from None


def _check(settings: DataSettings, record: Record, request: Record) -> None:
    require_same(settings.dir, part_of(record, "tokenizer", dict, settings.dir), request)
    file, wanted = settings.dir / TOKENIZER_FILE, part_of(record, "hash", str, settings.dir)
    found = tokenizer_hash(file.read_bytes()) if file.is_file() else "no file"
    if found != wanted:
        raise changed_error(file, found, wanted)
    require_begin_of_text(settings.tokenizer, settings.dir, begin_in_record(record, settings.dir))
    if settings.tokenizer.chat_template is not None:
        given_template, built = _chat_template(settings.tokenizer), read_chat_template(settings.dir)
        require_same(settings.dir, {"chat_template": built}, {"chat_template": given_template})
    if settings.tokenizer.path is not None:
        content = read_content(settings.tokenizer.path, settings.tokenizer.additional_special_tokens)
        given = tokenizer_hash(content.to_bytes())
        require_same(settings.dir, {"tokenizer hash": wanted}, {"tokenizer hash": given})


def _training_texts(
    settings: DataSettings, corpora: Mapping[str, Corpus], filters: Mapping[str, Filters], executor: BuildExecutor
) -> Iterator[str]:
    """Cleaned documents of the training split, `train_bytes` in total, taken evenly from the sources.

    The next document comes from the source that has given the fewest bytes. The share of an exhausted source goes to
    the others.
    """
    fraction = settings.validation.fraction
    texts = {
        name: _texts_of(corpus, SelectDocuments(filters[name], fraction), executor) for name, corpus in corpora.items()
    }
    given = dict.fromkeys(texts, 0)
    while texts and sum(given.values()) < settings.tokenizer.train_bytes:
        source = min(texts, key=lambda name: given[name])
        text = next(texts[source], None)
        if text is None:
            del texts[source]
            continue
        given[source] += len(text.encode())
        yield text


def _texts_of(corpus: Corpus, select: SelectDocuments, executor: BuildExecutor) -> Iterator[str]:
    for selection in executor.map_in_order(select, corpus.pieces()):
        yield from (document.text for document in selection.train)
