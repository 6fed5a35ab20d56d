"""How far an unfinished build of a source has come: for the user, and for the build that goes on after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bigtrain.data.files import TEMPORARY_SUFFIX, write_atomically
from bigtrain.data.funnel import Funnel
from bigtrain.data.layout import SPLITS, Split
from bigtrain.data.manifest import ShardRecord

REPORT_SECONDS = 2.0


@dataclass(frozen=True)
class ShardPair:
    """The training and the validation shard that were made from the same pieces of the corpus; both are durable."""

    index: int
    next_piece: int
    """The first piece of the corpus that is not in this or an earlier shard."""
    corpus: str
    """Hash chain over the document ids up to here."""
    funnel: Funnel
    """What became of the documents up to here."""
    train: ShardRecord | None
    validation: ShardRecord | None
    """None where no document fell on that side."""

    def of(self, split: Split) -> ShardRecord | None:
        """The shard of a split."""
        return self.train if split == "train" else self.validation

    def write(self, folder: Path) -> None:
        """Say that these shards are finished."""
        write_atomically(_progress_file(folder, self.index), lambda file: file.write(json.dumps(asdict(self)).encode()))

    @classmethod
    def read(cls, folder: Path, index: int) -> ShardPair:
        """Read what `write` wrote."""
        value = json.loads(_progress_file(folder, index).read_bytes())
        for split in SPLITS:
            value[split] = value[split] and ShardRecord.from_json(value[split])
        return cls(**{**value, "funnel": Funnel.from_json(value["funnel"])})


def _progress_file(folder: Path, index: int) -> Path:
    return folder / f"progress-{index:05d}.json"


def finished_pairs(folder: Path) -> list[ShardPair]:
    """The finished shards of an unfinished build, from the first on without a gap."""
    pairs: list[ShardPair] = []
    while _progress_file(folder, len(pairs)).exists():
        pair = ShardPair.read(folder, len(pairs))
        if not all(_is_complete(folder / split, pair.of(split)) for split in SPLITS):
            break
        pairs.append(pair)
    return pairs


def _is_complete(directory: Path, shard: ShardRecord | None) -> bool:
    files = shard.files if shard else []
    return all((directory / f.name).is_file() and (directory / f.name).stat().st_size == f.size for f in files)


def discard_unfinished(folder: Path, keep: Sequence[ShardPair] | None) -> None:
    """Remove what an interrupted build left, except the shards in `keep`; `None` keeps all shards: all are finished.

    Only files that a build writes are touched. Progress files go first, so that none outlives its shard.
    """
    kept = len(keep) if keep is not None else 0
    for path in folder.glob("progress-*.json*"):
        if path.suffix == TEMPORARY_SUFFIX or path not in {_progress_file(folder, index) for index in range(kept)}:
            path.unlink()
    for split in SPLITS:
        shards = [shard for pair in keep or () if (shard := pair.of(split)) is not None]
        names = {file.name for shard in shards for file in shard.files}
        for pattern in ("*.tok", "*.doc", f"*{TEMPORARY_SUFFIX}"):
            for path in (folder / split).glob(pattern):
                if path.suffix == TEMPORARY_SUFFIX or (keep is not None and path.name not in names):
                    path.unlink()


class ProgressMeter:
    """Reports text and tokens so far, and the speed, every couple of seconds."""

    def __init__(self, source: str, report: Callable[[str], None]) -> None:
        self._source, self._report = source, report
        self._started = self._last = time.perf_counter()
        self._bytes = self._tokens = 0

    def add(self, text_bytes: int, tokens: int) -> None:
        """Count more work done."""
        self._bytes += text_bytes
        self._tokens += tokens
        if time.perf_counter() - self._last >= REPORT_SECONDS:
            self._last = time.perf_counter()
            self.finish()

    def finish(self) -> None:
        """Report now."""
        seconds = time.perf_counter() - self._started
        self._report(
            f"{self._source}: {self._bytes / 1e6:,.1f} MB of text, {self._tokens / 1e6:,.2f} M tokens, {seconds:.1f} s "
            f"({self._bytes / 1e6 / seconds:.1f} MB/s, {self._tokens / 1e6 / seconds:.2f} M tokens/s)"
        )
