"""`bigtrain data verify`: checks that every byte of the data is as it was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from bigtrain.base import BigtrainError, read_regular
from bigtrain.data.format.file_record import FileRecord
from bigtrain.data.format.layout import BUILD_RECORD, part_of, read_record
from bigtrain.data.format.manifest import MANIFEST, DatasetManifest, ShardRecord
from bigtrain.data.format.pack_file import MANIFEST_PATTERNS, PackManifest, ShardPack, find_packs
from bigtrain.data.format.remote_files import Remote, TooLongError
from bigtrain.data.format.shard_table import FetchPart
from bigtrain.data.format.tokenizer import TOKENIZER_FILE, tokenizer_hash
from bigtrain.data.format.tokenizer_content import BeginOfText
from bigtrain.data.store.store import Tokens, TokenShard

Fetched = Callable[[list[FileRecord], Path], AbstractContextManager[None]]
"""Makes files of a folder available for as long as its context lasts, if they exist."""


@dataclass
class VerifyReport:
    """The amounts that were checked, and the problems."""

    datasets: int = 0
    shards: int = 0
    packs: int = 0
    """Pack files: see `pack_file.py`."""
    blocks: int = 0
    bytes: int = 0
    documents: int = 0
    tokens: int = 0
    problems: list[str] = field(default_factory=list)
    """One sentence each, with the file, and the block if it is known."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"ok": self.ok, **asdict(self)}


def verify(place: Path | str) -> VerifyReport:
    """Check all datasets at or below a folder: checksums of every block, counts, ids within the vocabulary, packs.

    Reads all data. Data at a URL are fetched into a temporary folder, one shard at a time. Raises BigtrainError if
    there is no dataset, or a URL cannot be read.
    """
    if not isinstance(place, str) or "://" not in place:
        return _verify(Path(place), str(place), lambda files, folder: nullcontext())
    remote = Remote(place)
    with TemporaryDirectory(prefix="bigtrain-verify-") as name:
        folder = Path(name)

        too_long: list[str] = []

        @contextmanager
        def fetched(files: list[FileRecord], place: Path) -> Iterator[None]:
            for file in files:
                try:
                    remote.copy((place / file.name).relative_to(folder).as_posix(), place / file.name, file.size)
                except TooLongError as error:
                    too_long.append(f"{error.what}: {error.found}, expected {file.size:,}")
            yield
            for file in files:
                (place / file.name).unlink(missing_ok=True)

        for name in remote.find({MANIFEST, BUILD_RECORD, TOKENIZER_FILE, *MANIFEST_PATTERNS}):
            remote.copy(name, folder / name)

        def fetch_part(path: Path, content_id: str) -> None:
            remote.copy(path.relative_to(folder).as_posix(), path)

        report = _verify(folder, remote.url, fetched, fetch_part)
    report.problems = [*too_long, *(problem.replace(str(folder), remote.url) for problem in report.problems)]
    return report


def _verify(directory: Path, place: str, fetched: Fetched, fetch_part: FetchPart | None = None) -> VerifyReport:
    manifests = sorted(directory.rglob(MANIFEST))
    if not manifests:
        raise BigtrainError(
            f"there is no dataset in {place}",
            wanted=f"a folder with a {MANIFEST} in it or below it",
            fix="check the path, or build the data first: bigtrain data build CONFIG",
        )
    report = VerifyReport()
    tokenizer = _verify_tokenizer(directory, report)
    for path in manifests:
        _verify_dataset(path.parent, tokenizer, fetched, fetch_part, report)
    for record in sorted(directory.rglob(BUILD_RECORD)):
        if not (record.parent / TOKENIZER_FILE).is_file() and not (record.parent / "train" / MANIFEST).is_file():
            report.problems.append(f"{record.parent}: the build of this source is not finished")
    return report


def _verify_tokenizer(directory: Path, report: VerifyReport) -> str | None:
    """Check the tokenizer of a data folder against its record. Returns its hash, or None without a tokenizer."""
    file = directory / TOKENIZER_FILE
    if not file.is_file():
        return None
    found = tokenizer_hash(read_regular(file))
    try:
        wanted = part_of(read_record(directory) or {}, "hash", str, directory)
    except BigtrainError as error:
        report.problems.append(str(error))
        return found
    if found != wanted:
        report.problems.append(f"{file}: hash {found}, expected {wanted}")
    return wanted


def _verify_dataset(
    directory: Path, tokenizer: str | None, fetched: Fetched, fetch_part: FetchPart | None, report: VerifyReport
) -> None:
    report.datasets += 1
    try:
        manifest = DatasetManifest.read(directory, fetch_part)
    except BigtrainError as error:
        report.problems.append(str(error))
        return
    if tokenizer is not None and manifest.tokenizer != tokenizer:
        report.problems.append(f"{directory / MANIFEST}: tokenizer {manifest.tokenizer}, expected {tokenizer}")
    packs = list(_read_packs(directory, manifest, fetch_part, report))
    for index, record in enumerate(manifest.shards):
        report.shards += 1
        files = [*record.files, *(pack.shards[index].file for pack in packs)]
        sizes = [manifest.block_bytes] * len(record.files) + [pack.block_bytes for pack in packs]
        with fetched(files, directory):
            broken = [
                _verify_file(directory / file.name, file, size, report) for file, size in zip(files, sizes, strict=True)
            ]
            if any(broken[: len(record.files)]):
                continue
            shard = TokenShard(directory, record, manifest.dtype, manifest.label_scheme)
            _verify_content(shard, directory, record, manifest, report)
            for pack, is_broken in zip(packs, broken[len(record.files) :], strict=True):
                if not is_broken:
                    _verify_pack(directory, pack, index, shard, report)


def _read_packs(
    directory: Path, manifest: DatasetManifest, fetch_part: FetchPart | None, report: VerifyReport
) -> Iterator[PackManifest]:
    """The manifests of all packs of a dataset that can be checked against it."""
    for packing, sequence_length in find_packs(directory):
        try:
            pack = PackManifest.read(directory, packing, sequence_length, manifest.dataset_id, fetch_part)
        except BigtrainError as error:
            report.problems.append(str(error))
            continue
        if pack.table.counts["tokens"] == manifest.table.counts["tokens"]:
            yield pack
        else:
            report.problems.append(f"{pack.path(directory)}: its shards are not those of the dataset beside it")


def _verify_pack(directory: Path, pack: PackManifest, index: int, shard: TokenShard, report: VerifyReport) -> None:
    """Check that the rows of a shard hold each of its tokens once, in spans of one document, and fit."""
    report.packs += 1
    path = directory / pack.shards[index].file.name
    try:
        columns = ShardPack.open(path)
    except BigtrainError as error:
        report.problems.append(str(error))
        return
    fault = columns.fault(shard.documents.offset, pack.sequence_length)
    if fault is None and (columns.rows, len(columns.row)) != (pack.shards[index].rows, pack.shards[index].spans):
        fault = f"{columns.rows:,} rows of {len(columns.row):,} spans, not those of the manifest"
    if fault is not None:
        report.problems.append(f"{path}: {fault}")


def _verify_file(path: Path, record: FileRecord, block_bytes: int, report: VerifyReport) -> bool:
    """Check size and blocks of a file. Returns whether it is damaged."""
    before = len(report.problems)
    if not path.is_file():
        report.problems.append(f"{path}: the file is missing")
    elif path.stat().st_size != record.size:
        report.problems.append(f"{path}: {path.stat().st_size:,} bytes, expected {record.size:,}")
    else:
        try:
            blocks = list(record.blocks)
        except BigtrainError as error:  # of a part of the manifest
            report.problems.append(str(error))
            return True
        with path.open("rb") as file:
            for index, wanted in enumerate(blocks):
                block = file.read(block_bytes)
                if xxhash.xxh3_128_hexdigest(block) != wanted:
                    start = index * block_bytes
                    report.problems.append(
                        f"{path}: block {index} (bytes {start:,} to {start + len(block) - 1:,}) has another checksum"
                    )
                report.blocks += 1
                report.bytes += len(block)
    return len(report.problems) > before


def _begins_with(tokens: Tokens, starts: npt.NDArray[np.int64], ids: tuple[int, ...]) -> bool:
    """Whether these ids stand at every start."""
    last = len(tokens) - 1
    return all(bool(np.all(tokens[np.minimum(starts + place, last)] == id)) for place, id in enumerate(ids))


def _verify_content(
    shard: TokenShard, directory: Path, record: ShardRecord, manifest: DatasetManifest, report: VerifyReport
) -> None:
    """Check that the content of a shard, whose bytes are right, agrees with the manifest."""
    tok, doc = (directory / file.name for file in record.files[:2])
    tokens, offset = shard.tokens, shard.documents.offset
    if len(tokens) != record.tokens or len(offset) - 1 != record.documents:
        report.problems.append(
            f"{tok}: {len(tokens):,} tokens in {len(offset) - 1:,} documents, "
            f"expected {record.tokens:,} in {record.documents:,}"
        )
    elif offset[0] != 0 or offset[-1] != len(tokens) or np.any(np.diff(offset) <= 0):
        report.problems.append(f"{doc}: the offsets do not rise from 0 to the number of tokens")
    elif np.any(tokens[offset[1:] - 1] != manifest.end_of_text):
        report.problems.append(f"{tok}: a document does not end with the end-of-text token {manifest.end_of_text}")
    elif not _begins_with(tokens, offset[:-1], BeginOfText.from_json(manifest.begin_of_text, directory).ids):
        report.problems.append(f"{tok}: a document does not begin with {manifest.begin_of_text}")
    if len(tokens) and tokens.max() >= manifest.vocab_size:
        where = int(np.argmax(tokens >= manifest.vocab_size))
        report.problems.append(f"{tok}: id {tokens[where]} at token {where:,}, vocabulary {manifest.vocab_size:,}")
    report.tokens += len(tokens)
    report.documents += record.documents
