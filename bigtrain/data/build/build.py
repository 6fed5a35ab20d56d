"""`bigtrain data build`: the tokenizer, then the shards of every source."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from bigtrain.base import BigtrainError, FileLock, LockHeldError, check_writable
from bigtrain.config import DataSettings
from bigtrain.data.build.build_source import build_source
from bigtrain.data.build.build_tokenizer import build_tokenizer
from bigtrain.data.build.clean import pinned
from bigtrain.data.build.corpus import open_corpus
from bigtrain.data.build.decontaminate import evaluation_ngrams
from bigtrain.data.build.dedup import without_duplicates
from bigtrain.data.build.execute import FailurePolicy, open_executor
from bigtrain.data.build.filters import Filters
from bigtrain.data.build.object_store import building_at, fetch_shared, is_published, publish
from bigtrain.data.build.pack.build_pack import build_packs
from bigtrain.data.build.progress import BuildProgress
from bigtrain.data.format.layout import WORK
from bigtrain.data.format.tokenizer import DataTokenizer, open_chat_template
from bigtrain.data.format.work_folder import LocalFolder, WorkFolder


def build_datasets(
    settings: DataSettings,
    *,
    vocab_size: int,
    report: Callable[[str], None],
    on: str = "processes",
    measured: Callable[[BuildProgress], None] = lambda progress: None,
) -> None:
    """Build the data folder for these settings. Finished parts are kept, and a killed build continues.

    Args:
        settings: the `data` section.
        vocab_size: rows of the model's embedding, `model.vocab_size`.
        report: called with lines of progress.
        on: who does the work, as `execute.open_executor` takes it. The bytes do not depend on it.
        measured: called with progress as numbers, every other second.

    Raises:
        BigtrainError: a corpus is missing or malformed, the vocabulary does not fit the embedding, or the folder
            holds data of other settings or of another state of the corpus, or its disk is full.
    """
    if settings.remote is None:
        _build(settings, WorkFolder.at(settings.dir), vocab_size, report, measured, on, done=set())
        return
    local, target = building_at(settings)
    done = {source.name for source in settings.sources if is_published(target, source.name)}
    for name in sorted(done):
        report(f"{name}: already there")
    if len(done) < len(settings.sources):
        fetch_shared(target, local.dir)
        _build(local, target, vocab_size, report, measured, on, done)


def _build(
    settings: DataSettings,
    target: WorkFolder,
    vocab_size: int,
    report: Callable[[str], None],
    measured: Callable[[BuildProgress], None],
    on: str,
    done: Collection[str],
) -> None:
    """Build into `settings.dir`, with the tokens in `target`. Sources that are done elsewhere are left out."""
    rules = {source.name: pinned(source.clean) for source in settings.sources}
    count = settings.workers or len(os.sched_getaffinity(0))
    check_writable(settings.dir, "data.dir")
    work = WorkFolder.at(settings.dir / WORK)
    policy = FailurePolicy(settings.document_seconds, skip_poison=settings.poison_documents == "skip")
    with (
        _clear_on_a_full_disk(settings.dir),
        _exclusive(settings.dir, report),
        open_executor(on, count, work, policy, report) as executor,
    ):
        corpora = {source.name: open_corpus(source) for source in settings.sources}
        looked_for = settings.decontaminate
        evaluation = evaluation_ngrams(looked_for, settings.dir, report) if looked_for else None
        filters = {source.name: Filters(rules[source.name], evaluation) for source in settings.sources}
        if settings.dedup.method != "none":
            corpora = without_duplicates(corpora, settings, filters, executor, report)
        build_tokenizer(settings, vocab_size, corpora, filters, executor, report)
        _require_tokens(settings)
        for source in settings.sources:
            if source.name in done:
                continue
            build_source(
                source, settings, corpora[source.name], filters[source.name], executor, report, target, measured
            )
            for split, packing, length in settings.packs:
                build_packs(settings.dir / source.name / split, packing, length, executor, report)
        work.clear()
        if not isinstance(target, LocalFolder):
            publish(settings, target, executor, report)


def _require_tokens(settings: DataSettings) -> None:
    """Raise BigtrainError where the tokenizer lacks the separator of a source, or the template of conversations."""
    tokenizer = DataTokenizer.open(settings.dir)
    for source in settings.sources:
        if source.separated and settings.tokenizer.separator is not None:
            tokenizer.special_id(settings.tokenizer.separator)
        if source.kind == "chat":
            open_chat_template(settings.dir)


@contextmanager
def _exclusive(directory: Path, report: Callable[[str], None]) -> Iterator[None]:
    """One build at a time in a folder. A second one waits, then finds the work done. The lock ends with its process."""
    lock = FileLock(directory / ".build.lock", names_holder=False)  # data that are built do not change
    try:
        lock.acquire()
    except LockHeldError as held:
        advice = f": {held.holder} ({held.fix})" if held.fix else ""
        report(f"waiting: another process is building data in {directory}{advice}")
        lock.acquire(math.inf)
    if lock.without_flock:
        report(f"the file system of {directory} has no flock: {lock.path.name}.owner keeps other builds out")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _clear_on_a_full_disk(directory: Path) -> Iterator[None]:
    """Turn a full disk, in this process or a worker, into an error that names the disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BigtrainError(
            f"there is no space left for the data in {directory}",
            found=str(error),
            fix="free space on the disk and start again: finished shards are kept; or set data.dir to another disk",
        ) from error
