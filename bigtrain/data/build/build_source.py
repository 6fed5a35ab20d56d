"""The second half of a build: the shards of one source. It can be resumed after any kill.

Worker processes read and tokenize the corpus in pieces. Their results arrive in the order of the corpus, and only this
process appends them to shards, so the bytes do not depend on the number of workers. A shard ends with a piece. When a
shard is durable, a progress file records it, and a build that starts again continues after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

from bigtrain.base import BigtrainError
from bigtrain.config import DataSettings, SourceSettings
from bigtrain.data.build.corpus import Corpus, describe_skipped
from bigtrain.data.build.filters import Filters
from bigtrain.data.build.funnel import Funnel
from bigtrain.data.build.label_names import example_rules
from bigtrain.data.build.progress import ProgressMeter, ShardPair, discard_unfinished, finished_pairs
from bigtrain.data.build.tokenization import TokenizedPiece, TokenizePiece, token_dtype
from bigtrain.data.build.workers import Workers
from bigtrain.data.format.documents import Piece
from bigtrain.data.format.hashing import digest
from bigtrain.data.format.layout import (
    BUILD_RECORD,
    SPLITS,
    Record,
    part_of,
    read_record,
    require_same,
    source_request,
    with_defaults,
    write_record,
)
from bigtrain.data.format.manifest import FORMAT, LABELLED_FORMAT, MANIFEST, DatasetManifest, changed_error
from bigtrain.data.format.shards import ShardWriter
from bigtrain.data.format.tokenizer import TOKENIZER_FILE, DataTokenizer, require_same_begin, tokenizer_hash


def build_source(
    source: SourceSettings,
    settings: DataSettings,
    corpus: Corpus,
    filters: Filters,
    workers: Workers,
    report: Callable[[str], None],
) -> None:
    """Write both splits of a source. Finished ones are checked against the settings."""
    folder = settings.dir / source.name
    tokenizer_file = settings.dir / TOKENIZER_FILE
    tokenizer_id = tokenizer_hash(tokenizer_file.read_bytes())
    tokenizer = DataTokenizer.open(settings.dir)
    begin = tokenizer.begin_of_text
    about_begin = {"begin_of_text": begin.to_json()} if begin.ids else {}
    request = {**source_request(source, settings, tokenizer_id), **filters.identity, **about_begin}
    if (folder / "train" / MANIFEST).exists():
        _check_finished(folder, request, corpus, report)
        require_same_begin(folder / "train", DatasetManifest.read(folder / "train"), begin)
        discard_unfinished(folder, keep=None)
        report(f"{source.name}: already there")
        _report_skipped(source, corpus, report)
        return

    pairs = _resume_or_start(folder, {**request, "corpus": _describe(corpus)}, report)
    rules = example_rules(source, settings, corpus, workers, report)
    which = f"{tokenizer_id} {tokenizer.end_id} {begin}"
    tokenize = TokenizePiece(source.name, filters, settings.dir, which, settings.validation.fraction, rules)
    pieces = corpus.pieces()
    done = _skip_groups(pieces, pairs[-1].next_piece if pairs else 0)
    meter = ProgressMeter(source.name, report, extent=corpus.extent, done=done)
    tokenized = workers.map_in_order(tokenize, pieces)
    for pair in _write_pairs(folder, pairs[-1:], tokenized, settings.shard_tokens, meter, labelled=rules is not None):
        pairs.append(pair)
    meter.finish()
    funnel = pairs[-1].funnel if pairs else Funnel()
    if not any(pair.train for pair in pairs):
        raise BigtrainError(
            f"data.sources: {source.name!r} has no text to train on",
            found="; ".join(
                [corpus.summary, *(f"{r.documents:,} removed by {r.rule}: {r.reason}" for r in funnel.removed)]
            )
            + f"; {funnel.validation.documents:,} held out",
            wanted="documents that are not empty and that the source's rules keep",
            fix="check the source's path and clean; for a very small corpus lower data.validation.fraction",
        )

    funnel.skipped_files = dict(sorted(corpus.skipped.items()))
    funnel.write(folder, [step.rule for step in source.clean])
    vocabulary = tokenizer.vocabulary_size
    for split in reversed(SPLITS):  # train last: its manifest marks the source as finished
        manifest = DatasetManifest(
            source=source.name,
            split=split,
            dtype=token_dtype(vocabulary).str,
            vocab_size=vocabulary,
            special_ids={"end_of_text": tokenizer.end_id},
            tokenizer=tokenizer_id,
            parents={"corpus": pairs[-1].corpus, "tokenizer": tokenizer_id},
            shards=[shard for pair in pairs if (shard := pair.of(split)) is not None],
            begin_of_text=begin.to_json(),
            labels=source.labels,
            label_names=rules.scheme.recorded_names if rules else None,
            format=FORMAT if rules is None else LABELLED_FORMAT,
        )
        manifest.write(folder / split)
        report(f"{source.name}: {split} has {manifest.documents:,} documents, {manifest.tokens:,} tokens")
    discard_unfinished(folder, keep=None)
    _report_skipped(source, corpus, report)


def _report_skipped(source: SourceSettings, corpus: Corpus, report: Callable[[str], None]) -> None:
    if corpus.skipped:
        report(f"{source.name}: {describe_skipped(corpus.skipped)} (kind {source.kind} does not read them)")


def _skip_groups(pieces: Iterator[Piece], count: int) -> int:
    """Take so many groups of pieces, and return the sum of their extents."""
    extent = 0
    while count:
        piece = next(pieces, None)
        if piece is None:
            break
        extent += piece.extent
        count -= not piece.continued
    return extent


def _describe(corpus: Corpus) -> Record:
    return {"stamp": corpus.stamp, "summary": corpus.summary}


def _check_finished(folder: Path, request: Record, corpus: Corpus, report: Callable[[str], None]) -> None:
    record = read_record(folder)
    if record is None:
        raise changed_error(folder / BUILD_RECORD, "no file", "the settings that the shards were built with")
    require_same(folder, record, request)
    built = part_of(record, "corpus", dict, folder)
    if corpus.earlier_stamp is not None and built.get("stamp") == corpus.earlier_stamp:
        report(
            f"{folder.name}: an earlier version skipped some files of this corpus, which are not in the data; "
            f"remove {folder} to build with them"
        )
        return
    if built != _describe(corpus):
        raise BigtrainError(
            f"the corpus has changed since {folder} was built from it (names, sizes or times of its files)",
            found=f"{corpus.summary}, stamp {corpus.stamp[:8]}",
            wanted=f"{str(built.get('summary'))[:200]}, stamp {str(built.get('stamp'))[:8]}",
            fix=f"remove {folder} to build it again, set another data.dir, or train on the data that were built",
        )


def _resume_or_start(folder: Path, wanted: Record, report: Callable[[str], None]) -> list[ShardPair]:
    """The shards of an earlier, unfinished build that can be kept. All others are removed."""
    record = read_record(folder)
    if record is None or with_defaults(record) != wanted:
        if record is not None:
            report(f"{folder.name}: settings or corpus changed since the unfinished build; starting over")
        for split in SPLITS:
            (folder / split).mkdir(parents=True, exist_ok=True)
        discard_unfinished(folder, keep=[])
        write_record(folder, wanted)
    pairs = finished_pairs(folder)
    discard_unfinished(folder, keep=pairs)
    if pairs:
        report(f"{folder.name}: continuing after {len(pairs)} finished shard(s)")
    return pairs


def _write_pairs(
    folder: Path,
    last: list[ShardPair],
    pieces: Iterator[TokenizedPiece],
    shard_tokens: int,
    meter: ProgressMeter,
    *,
    labelled: bool,
) -> Iterator[ShardPair]:
    """Append pieces to shards. Yields each pair of shards when it is durable.

    `corpus` is a hash chain over the ids of all documents so far, group by group of pieces. It identifies the corpus.
    """
    index, next_piece, corpus, funnel = 0, 0, "", Funnel()
    if last:
        index, next_piece, corpus, funnel = last[0].index + 1, last[0].next_piece, last[0].corpus, last[0].funnel
    writers: dict[str, ShardWriter] = {}
    ids: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    """Of the documents of the group so far."""

    def commit() -> ShardPair:
        records = {split: writer.finish() for split, writer in writers.items()}
        pair = ShardPair(index, next_piece, corpus, deepcopy(funnel), records["train"], records["validation"])
        pair.write(folder)
        return pair

    for piece in pieces:
        if not writers:
            writers = {split: ShardWriter(folder / split, index, labelled=labelled) for split in SPLITS}
        writers["train"].append(piece.train)
        writers["validation"].append(piece.validation)
        ids["train"] += piece.train.ids
        ids["validation"] += piece.validation.ids
        funnel.add(piece.funnel)
        meter.add(piece.extent, piece.funnel.read.bytes, piece.funnel.tokens)
        if piece.continued:
            continue
        corpus = digest(bytes.fromhex(corpus) + b"".join(ids["train"] + ids["validation"]), person=b"corpus").hex()
        ids = {split: [] for split in SPLITS}
        next_piece += 1
        if sum(writer.tokens for writer in writers.values()) >= shard_tokens:
            yield commit()
            index, writers = index + 1, {}
    if writers:
        yield commit()
