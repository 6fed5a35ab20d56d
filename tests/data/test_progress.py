"""A build says how far it is and how long it will take, also right after it was resumed."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from bigtrain.config.data_settings import DataSettings
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data import build_datasets
from bigtrain.data.build.corpus import open_corpus
from bigtrain.data.build.progress import ProgressMeter
from tests.data.helpers import data_settings, jsonl_source, sentences, write_jsonl

pytestmark = pytest.mark.usefixtures("small_pieces")
TEXTS = sentences(400, 11)
MANY = sentences(1500, 12)


def metered(extent: int | None, done: int = 0) -> tuple[list[str], list[float], ProgressMeter]:
    lines: list[str] = []
    now = [100.0]
    return lines, now, ProgressMeter("web", lines.append, extent=extent, done=done, clock=lambda: now[0])


def test_the_share_done_and_the_time_to_go_are_those_of_the_work() -> None:
    lines, now, meter = metered(1_000)
    for seconds in (1, 10, 20):
        now[0] = 100.0 + seconds
        meter.add(100, 3_000_000, 600_000)
    assert lines == [
        "web: 6.0 MB of text, 1.20 M tokens, 10.0 s (0.6 MB/s, 0.12 M tokens/s), 20% done, 40s to go",
        "web: 9.0 MB of text, 1.80 M tokens, 20.0 s (0.5 MB/s, 0.09 M tokens/s), 30% done, 47s to go",
    ]
    meter.finish()
    assert lines[-1].endswith("(0.5 MB/s, 0.09 M tokens/s)")


def test_work_of_an_earlier_build_counts_but_took_no_time_of_this_one() -> None:
    lines, now, meter = metered(1_000, done=800)
    now[0] += 10
    meter.add(100, 1_000_000, 0)
    assert lines[0].endswith("90% done, 10s to go")


def test_without_a_total_there_is_no_time_to_go() -> None:
    for extent in (None, 0):
        lines, now, meter = metered(extent)
        now[0] += 10
        meter.add(100, 1_000_000, 0)
        assert "to go" not in lines[0] and "0.1 MB/s" in lines[0]


def plain(folder: Path) -> dict[str, Any]:
    return {"kind": "jsonl", "path": str(write_jsonl(folder / "x.jsonl", MANY))}


def gz(folder: Path) -> dict[str, Any]:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in MANY).encode()
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(lines))
    return {"kind": "jsonl", "path": str(folder)}


def zst(folder: Path) -> dict[str, Any]:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in MANY).encode()
    (folder / "x.jsonl.zst").write_bytes(zstandard.compress(lines))
    return {"kind": "jsonl", "path": str(folder)}


def parquet(folder: Path) -> dict[str, Any]:
    pq.write_table(pa.table({"text": MANY}), folder / "x.parquet", row_group_size=100)
    return {"kind": "parquet", "path": str(folder)}


def texts(folder: Path) -> dict[str, Any]:
    for number, text in enumerate(MANY):
        (folder / f"{number}.txt").write_text(text)
    return {"kind": "text", "path": str(folder)}


def huggingface(folder: Path) -> dict[str, Any]:
    import datasets

    datasets.Dataset.from_dict({"text": MANY}).save_to_disk(str(folder / "saved"))
    return {"kind": "huggingface", "path": str(folder / "saved")}


def python_stdlib(folder: Path) -> dict[str, Any]:
    return {"kind": "python_stdlib"}


@pytest.mark.parametrize("write", [plain, gz, zst, parquet, texts, huggingface, python_stdlib])
def test_the_pieces_of_a_corpus_add_up_to_what_it_said_at_first(tmp_path: Path, write: Any) -> None:
    corpus = open_corpus(SourceSettings.model_validate({"name": "s", **write(tmp_path)}))
    extents = [piece.extent for piece in corpus.pieces()]
    assert len(extents) > 2 and min(extents) >= 0
    assert corpus.extent is not None
    assert sum(extents) == pytest.approx(corpus.extent, rel=0.01)
    if write not in (gz, zst):  # small compressed files are read in one go
        assert max(extents) < 0.6 * corpus.extent


def test_a_build_that_goes_on_says_at_once_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigtrain.data.build import build_source, progress

    source = jsonl_source(write_jsonl(tmp_path / "x.jsonl", TEXTS))
    settings: DataSettings = data_settings(tmp_path / "data", source, shard_tokens=10_000, dedup="exact")
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0.0)
    real, calls = build_source.ShardPair.write, iter(range(100))

    def stop(pair: build_source.ShardPair, folder: Path) -> None:
        if next(calls) >= 3:
            raise KeyboardInterrupt
        real(pair, folder)

    def shares(lines: list[str]) -> list[int]:
        return [int(found[1]) for line in lines if (found := re.search(r"(\d+)% done, \d+s to go$", line))]

    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(build_source.ShardPair, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            build_datasets(settings, vocab_size=300, report=lines.append, on="inline")
    first = shares(lines)
    lines.clear()
    build_datasets(settings, vocab_size=300, report=lines.append, on="inline")
    second = shares(lines)
    assert first == sorted(first) and second == sorted(second)
    assert first[0] < 30 < second[0] and second[-1] == 100
