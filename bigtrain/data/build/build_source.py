"""The second half of a build: the shards of one source. It can be resumed after any kill.

    pieces of the corpus --any worker--> tokens in the work folder, and their counts     piece_results.py
                                           |
    this process         adds the counts up: where each shard ends, and with which hash of the corpus
                                           |
    shards <--any worker-- the pieces of a shard, copied in order, then its progress file
                                           |
    this process         the manifests, when all shards are durable

Only counts decide where a shard ends, and they are added in the order of the corpus. So the bytes do not depend on the
workers, on their number, or on which of them died. A build that starts again keeps finished shards and pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from bigtrain.base import BigtrainError
from bigtrain.config import DataSettings, SourceSettings
from bigtrain.data.build.corpus import Corpus, describe_skipped
from bigtrain.data.build.execute import BuildExecutor
from bigtrain.data.build.filters import Filters
from bigtrain.data.build.funnel import Funnel
from bigtrain.data.build.label_names import example_rules
from bigtrain.data.build.piece_results import KeepTokenized, PieceCounts, piece_name, read_piece
from bigtrain.data.build.progress import (
    BuildProgress,
    ProgressMeter,
    ShardPair,
    discard_unfinished,
    finished_pairs,
    recorded_pair,
)
from bigtrain.data.build.tokenization import TokenizePiece, token_dtype
from bigtrain.data.format.documents import Piece
from bigtrain.data.format.file_record import changed_error
from bigtrain.data.format.hashing import digest, identity
from bigtrain.data.format.layout import (
    BUILD_RECORD,
    SPLITS,
    WORK,
    Record,
    Split,
    part_of,
    read_record,
    require_same,
    source_request,
    with_defaults,
    write_record,
)
from bigtrain.data.format.manifest import MANIFEST, DatasetManifest, ShardRecord
from bigtrain.data.format.shards import ShardWriter
from bigtrain.data.format.tokenizer import TOKENIZER_FILE, DataTokenizer, require_same_begin, tokenizer_hash
from bigtrain.data.format.work_folder import WorkFolder


def build_source(
    source: SourceSettings,
    settings: DataSettings,
    corpus: Corpus,
    filters: Filters,
    executor: BuildExecutor,
    report: Callable[[str], None],
    target: WorkFolder,
    measured: Callable[[BuildProgress], None] = lambda progress: None,
) -> None:
    """Write both splits of a source. Finished ones are checked against the settings.

    Args:
        source: the source.
        settings: the section `data`.
        corpus: the documents of the source.
        filters: its rules.
        executor: does the work.
        report: called with lines of progress.
        target: the data folder for tokens and labels. All else goes to `settings.dir`.
        measured: called with progress as numbers.

    Raises:
        BigtrainError: the source has no text, or the folder has data of other settings.
    """
    target = target.below(source.name)
    folder = settings.dir / source.name
    results = WorkFolder.at(settings.dir / WORK / source.name)
    tokenizer_file = settings.dir / TOKENIZER_FILE
    tokenizer_id = tokenizer_hash(tokenizer_file.read_bytes())
    tokenizer = DataTokenizer.open(settings.dir)
    begin = tokenizer.begin_of_text
    about_begin = {"begin_of_text": begin.to_json()} if begin.ids else {}
    request = {**source_request(source, settings, tokenizer_id), **filters.identity, **about_begin}
    if (folder / "train" / MANIFEST).exists():
        _check_finished(folder, request, corpus, report)
        require_same_begin(folder / "train", DatasetManifest.read(folder / "train"), begin)
        _tidy(folder, target, results)
        report(f"{source.name}: already there")
        _report_skipped(source, corpus, report)
        return

    wanted = {**request, "corpus": _describe(corpus)}
    pairs = _resume_or_start(folder, target, wanted, results, report)
    rules = example_rules(source, settings, corpus, executor, report)
    which = f"{tokenizer_id} {tokenizer.end_id} {begin}"
    directory = settings.dir.absolute()
    tokenize = TokenizePiece(source.name, filters, directory, which, settings.validation.fraction, rules)
    pieces = enumerate(corpus.pieces())
    done = _skip_groups(pieces, pairs[-1].next_piece if pairs else 0)
    meter = ProgressMeter(
        source.name,
        report,
        extent=corpus.extent,
        done=done,
        measured=measured,
        failures=lambda: executor.failures,
    )
    of_pieces = results.below(identity(wanted)[:8])
    kept = executor.map_in_order(KeepTokenized(tokenize, of_pieces), pieces)
    jobs = _shard_jobs(kept, pairs[-1] if pairs else None, settings.shard_tokens, meter)
    write = WriteShards(folder.absolute(), target, of_pieces, labelled=rules is not None)
    pairs += executor.map_in_order(write, jobs)
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
        )
        manifest.write(folder / split)
        report(f"{source.name}: {split} has {manifest.documents:,} documents, {manifest.tokens:,} tokens")
    _tidy(folder, target, results)
    _report_skipped(source, corpus, report)


def _tidy(folder: Path, target: WorkFolder, results: WorkFolder) -> None:
    """Remove what only an unfinished build needs."""
    discard_unfinished(folder, target, keep=None)
    results.clear()


def _report_skipped(source: SourceSettings, corpus: Corpus, report: Callable[[str], None]) -> None:
    if corpus.skipped:
        report(f"{source.name}: {describe_skipped(corpus.skipped)} (kind {source.kind} does not read them)")


def _skip_groups(pieces: Iterator[tuple[int, Piece]], count: int) -> int:
    """Take so many groups of pieces, and return the sum of their extents."""
    extent = 0
    while count:
        numbered = next(pieces, None)
        if numbered is None:
            break
        extent += numbered[1].extent
        count -= not numbered[1].continued
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


def _resume_or_start(
    folder: Path, target: WorkFolder, wanted: Record, results: WorkFolder, report: Callable[[str], None]
) -> list[ShardPair]:
    """The shards of an earlier, unfinished build that can be kept. All others are removed."""
    record = read_record(folder)
    if record is None or with_defaults(record) != wanted:
        if record is not None:
            report(f"{folder.name}: settings or corpus changed since the unfinished build; starting over")
        for split in SPLITS:
            (folder / split).mkdir(parents=True, exist_ok=True)
        discard_unfinished(folder, target, keep=[])
        results.clear()
        write_record(folder, wanted)
    pairs = finished_pairs(folder, target)
    discard_unfinished(folder, target, keep=pairs)
    if pairs:
        report(f"{folder.name}: continuing after {len(pairs)} finished shard(s)")
    return pairs


@dataclass(frozen=True)
class ShardJob:
    """A pair of shards to write."""

    index: int
    pieces: range
    """Numbers of the pieces whose documents are in it."""
    next_piece: int
    """As in `ShardPair`."""
    corpus: str
    funnel: Funnel


@dataclass(frozen=True)
class WriteShards:
    """Copies the documents of pieces into a pair of shards; it is pickled for the workers."""

    folder: Path
    """Of the source, for documents and the progress file."""
    target: WorkFolder
    """Of the source, for tokens and labels."""
    pieces: WorkFolder
    labelled: bool

    def __call__(self, job: ShardJob) -> ShardPair:
        """Write both shards and the progress file, unless that was done; then remove the pieces."""
        pair = recorded_pair(self.folder, job.index, self.target)
        if pair is None:
            records = self._shards(job)
            pair = ShardPair(job.index, job.next_piece, job.corpus, job.funnel, records["train"], records["validation"])
            pair.write(self.folder)
        for number in job.pieces:
            self.pieces.remove(piece_name(number))
        return pair

    def _shards(self, job: ShardJob) -> dict[Split, ShardRecord | None]:
        writers = {
            split: ShardWriter(self.folder / split, job.index, labelled=self.labelled, target=self.target.below(split))
            for split in SPLITS
        }
        try:
            for number in job.pieces:
                for split, documents in read_piece(self.pieces, number).items():
                    writers[split].append(documents)
        except BaseException:
            for writer in writers.values():
                writer.discard()
            raise
        return {split: writer.finish() for split, writer in writers.items()}


def _shard_jobs(
    pieces: Iterator[PieceCounts], last: ShardPair | None, shard_tokens: int, meter: ProgressMeter
) -> Iterator[ShardJob]:
    """The shards that pieces make: a shard ends with the group of pieces that reaches `shard_tokens`.

    `corpus` is a hash chain over the ids of all documents so far, group by group of pieces. It identifies the corpus.
    """
    index, next_piece, corpus, funnel = 0, 0, "", Funnel()
    if last is not None:
        index, next_piece, corpus, funnel = last.index + 1, last.next_piece, last.corpus, deepcopy(last.funnel)
    numbers = range(0)
    tokens = 0
    ids: dict[Split, bytes] = dict.fromkeys(SPLITS, b"")
    """Of the documents of the group so far."""
    for piece in pieces:
        numbers = range(numbers.start if numbers else piece.number, piece.number + 1)
        ids = {split: ids[split] + piece.ids[split] for split in SPLITS}
        tokens += piece.funnel.tokens
        funnel.add(piece.funnel)
        meter.add(piece.extent, piece.funnel.read.bytes, piece.funnel.tokens)
        if piece.continued:
            continue
        corpus = digest(bytes.fromhex(corpus) + ids["train"] + ids["validation"], person=b"corpus").hex()
        ids = dict.fromkeys(SPLITS, b"")
        next_piece += 1
        if tokens >= shard_tokens:
            yield ShardJob(index, numbers, next_piece, corpus, deepcopy(funnel))
            index, numbers, tokens = index + 1, range(0), 0
    if numbers:
        yield ShardJob(index, numbers, next_piece, corpus, deepcopy(funnel))
