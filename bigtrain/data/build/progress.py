"""The progress of an unfinished build of a source: for the user, and for a build that continues after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from bigtrain.base import STRICT, TEMPORARY_SUFFIX, as_record, duration, read_json, write_atomically
from bigtrain.data.build.funnel import Funnel
from bigtrain.data.format.document_metadata import SUFFIX as METADATA
from bigtrain.data.format.file_record import unlike
from bigtrain.data.format.layout import SPLITS, Split
from bigtrain.data.format.manifest import ShardRecord
from bigtrain.data.format.work_folder import LocalFolder, WorkFolder

REPORT_SECONDS = 2.0
OF_TOKENS = (".tok", ".lab")
OF_DOCUMENTS = (".doc", METADATA)


@dataclass(frozen=True)
class ShardPair:
    """The training and the validation shard of the same pieces of the corpus. Both are durable."""

    index: int
    next_piece: int
    """The first group of pieces of the corpus that is not in this or an earlier shard."""
    corpus: str
    """Hash chain over the document ids so far."""
    funnel: Funnel
    """The funnel of the documents so far."""
    train: ShardRecord | None
    validation: ShardRecord | None
    """None if no document is in that split."""

    def of(self, split: Split) -> ShardRecord | None:
        """The shard of a split."""
        return self.train if split == "train" else self.validation

    def write(self, folder: Path) -> None:
        """Record that these shards are finished."""
        shards = {split: shard and shard.to_json() for split in SPLITS for shard in [self.of(split)]}
        content = json.dumps({**vars(self), "funnel": self.funnel.to_json(), **shards}).encode()
        write_atomically(_progress_file(folder, self.index), content)

    @classmethod
    def read(cls, folder: Path, index: int) -> ShardPair:
        """The inverse of `write`. Raises BigtrainError as `FileRecord.from_json` does."""
        path = _progress_file(folder, index)
        value = as_record(_Progress, read_json(path), path)
        if value["index"] != index:
            raise unlike(path, f"shard {value['index']}", f"shard {index}")
        train, validation = (
            None if shard is None else ShardRecord.from_json(shard, path)
            for shard in (value["train"], value["validation"])
        )
        return cls(index, value["next_piece"], value["corpus"], value["funnel"], train, validation)


class _Progress(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    index: int
    next_piece: Annotated[int, Field(ge=0, lt=2**63)]
    corpus: Annotated[str, Field(pattern="^([0-9a-f]{32})?$")]
    funnel: Funnel
    train: dict[str, Any] | None
    validation: dict[str, Any] | None


def _progress_file(folder: Path, index: int) -> Path:
    return folder / f"progress-{index:05d}.json"


def finished_pairs(folder: Path, target: WorkFolder | None = None) -> list[ShardPair]:
    """The finished shards of an unfinished build, from the first to the first gap.

    Args:
        folder: of a source.
        target: the folder of its tokens. Default: the same.
    """
    pairs: list[ShardPair] = []
    while (pair := recorded_pair(folder, len(pairs), target or LocalFolder(folder))) is not None:
        pairs.append(pair)
    return pairs


def recorded_pair(folder: Path, index: int, target: WorkFolder) -> ShardPair | None:
    """A pair of finished shards; None if they are not."""
    if not _progress_file(folder, index).exists():
        return None
    pair = ShardPair.read(folder, index)
    return pair if all(_is_complete(folder / split, target.below(split), pair.of(split)) for split in SPLITS) else None


def _is_complete(directory: Path, target: WorkFolder, shard: ShardRecord | None) -> bool:
    files = shard.files if shard else []
    return all(
        (target.size(file.name) if file.name.endswith(OF_TOKENS) else file.size_in(directory)) == file.size
        for file in files
    )


def discard_unfinished(folder: Path, target: WorkFolder, keep: Sequence[ShardPair] | None) -> None:
    """Remove what an interrupted build left, except the shards in `keep`. None keeps all shards: all are finished.

    Only files that a build writes are removed. Progress files are removed first, so that none outlives its shard.
    """
    kept = len(keep) if keep is not None else 0
    for path in folder.glob("progress-*.json*"):
        if path.suffix == TEMPORARY_SUFFIX or path not in {_progress_file(folder, index) for index in range(kept)}:
            path.unlink()
    for split in SPLITS:
        for path in (folder / split).glob(f"*{TEMPORARY_SUFFIX}"):
            path.unlink()
        if keep is None:
            continue
        shards = [shard for pair in keep if (shard := pair.of(split)) is not None]
        names = {file.name for shard in shards for file in shard.files}
        names |= {Path(name).with_suffix(METADATA).name for name in names}
        for of_split, suffixes in ((LocalFolder(folder / split), OF_DOCUMENTS), (target.below(split), OF_TOKENS)):
            for name in of_split.names():
                if name.endswith(suffixes) and "/" not in name and name not in names:
                    of_split.remove(name)


@dataclass(frozen=True)
class BuildProgress:
    """How far the build of a source is."""

    source: str
    pieces: int
    """Pieces of the corpus that this process has had done, as the next two count."""
    text_bytes: int
    tokens: int
    seconds: float
    """Since this process began with the source."""
    bytes_per_second: float
    tokens_per_second: float
    share: float | None
    """Of the corpus that is done; null where its size is not known, as the next."""
    seconds_to_go: float | None
    failures: int
    """Tasks that were lost with a process, a machine or a disk, and tried again."""


class ProgressMeter:
    """Reports progress every REPORT_SECONDS: text and tokens so far, speed, share done, and time to go.

    Speed and time to go are those of this process: the work of an earlier build counts as done, but takes no time.

    Args:
        source: the name of the source.
        report: called with a line.
        extent: size of the whole corpus, in the unit of `Corpus.extent`; None if it is not known.
        done: the part of it that an earlier build has done.
        measured: called with the same as numbers.
        failures: returns how many tasks were tried again.
        clock: returns seconds.
    """

    def __init__(
        self,
        source: str,
        report: Callable[[str], None],
        *,
        extent: int | None,
        done: int,
        measured: Callable[[BuildProgress], None] = lambda progress: None,
        failures: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._measured, self._failures, self._pieces = measured, failures, 0
        self._source, self._report, self._clock = source, report, clock
        self._extent, self._done_before, self._done = extent, done, done
        self._started = self._last = clock()
        self._bytes = self._tokens = 0

    def add(self, extent: int, text_bytes: int, tokens: int) -> None:
        """Count more work done."""
        self._pieces += 1
        self._done += extent
        self._bytes += text_bytes
        self._tokens += tokens
        now = self._clock()
        if now - self._last >= REPORT_SECONDS:
            self._last = now
            progress = self._progress(now)
            self._report(f"{_so_far(progress)}{_to_go(progress)}")
            self._measured(progress)

    def finish(self) -> None:
        """Report that all is done."""
        progress = self._progress(self._clock())
        self._report(_so_far(progress))
        self._measured(progress)

    def _progress(self, now: float) -> BuildProgress:
        seconds = now - self._started
        per_second = 1 / max(seconds, 1e-9)
        share = to_go = None
        if self._extent:
            share = min(self._done / self._extent, 1.0)
        if self._extent and (fresh := self._done - self._done_before):
            to_go = seconds * max(self._extent - self._done, 0) / fresh
        return BuildProgress(
            source=self._source,
            pieces=self._pieces,
            text_bytes=self._bytes,
            tokens=self._tokens,
            seconds=seconds,
            bytes_per_second=self._bytes * per_second,
            tokens_per_second=self._tokens * per_second,
            share=share,
            seconds_to_go=to_go,
            failures=self._failures(),
        )


def _so_far(progress: BuildProgress) -> str:
    again = f", {progress.failures:,} tasks tried again" if progress.failures else ""
    return (
        f"{progress.source}: {progress.text_bytes / 1e6:,.1f} MB of text, {progress.tokens / 1e6:,.2f} M tokens, "
        f"{progress.seconds:.1f} s ({progress.bytes_per_second / 1e6:.1f} MB/s, "
        f"{progress.tokens_per_second / 1e6:.2f} M tokens/s){again}"
    )


def _to_go(progress: BuildProgress) -> str:
    if progress.share is None or progress.seconds_to_go is None:
        return ""
    return f", {progress.share:.0%} done, {duration(progress.seconds_to_go)} to go"
