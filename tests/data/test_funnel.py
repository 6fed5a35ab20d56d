"""Cleaning and deduplication inside a build: what is written, what is counted, and that nothing else decides."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bigtrain.base.errors import BigtrainError
from bigtrain.cli.data_commands import app
from bigtrain.config.cleaning import CleanStep
from bigtrain.config.data_settings import DataSettings
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data import Dataset, load_tokenizer, open_datasets, read_funnels
from bigtrain.data.build.clean import Rejection, clean
from bigtrain.data.build.corpus import read_documents
from bigtrain.data.format.documents import is_held_out
from bigtrain.data.format.work_folder import LocalFolder
from tests.data.helpers import VOCABULARY, contents, data_settings, jsonl_source, make, sentences, write_jsonl
from tests.matrix import thinned

RULES = [{"gopher_quality": {"min_words": 20, "min_stop_words": 1}}, {"c4": {"min_sentences": 1}}, "pii"]
pytestmark = pytest.mark.usefixtures("small_pieces")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two corpora with short, empty, code-like and equal documents, some equal only after cleaning."""
    folder = tmp_path_factory.mktemp("corpora")
    texts = sentences(250, 1)
    first = [*texts, "", "too short", texts[3], texts[3], "One {code} line that ends in a full stop. " + texts[5]]
    second = [texts[7], *sentences(150, 2), *texts[100:140], texts[9] + "\nno sentence", "Mail a@b.co. " + texts[11]]
    return write_jsonl(folder / "first.jsonl", first), write_jsonl(folder / "second.jsonl", second)


def settings_for(directory: Path, files: tuple[Path, Path], **changes: Any) -> DataSettings:
    sources = [jsonl_source(file, file.stem, clean=RULES) for file in files]
    return data_settings(directory, *sources, **{"shard_tokens": 9_000, "dedup": "exact", **changes})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, files: tuple[Path, Path]) -> DataSettings:
    settings = settings_for(tmp_path_factory.mktemp("built") / "data", files)
    make(settings)
    return settings


def built_in_rules(*names: str) -> tuple[CleanStep, ...]:
    return tuple(CleanStep.model_validate(name) for name in names)


def written(settings: DataSettings, source: SourceSettings, split: str) -> list[str]:
    """The texts in the shards."""
    tokenizer = load_tokenizer(settings.dir)
    dataset = Dataset(settings.dir / source.name / split)
    texts = []
    for shard in dataset.shards:
        offset = shard.documents.offset
        for start, end in pairwise(offset):
            texts.append(tokenizer.decode(shard.tokens[start + 1 : end - 1].tolist(), skip_special_tokens=False))
    return texts


def test_what_is_written_is_what_a_plain_loop_keeps(built: DataSettings) -> None:
    seen: set[str] = set()
    for source in built.sources:
        wanted: dict[str, list[str]] = {"train": [], "validation": []}
        for document in read_documents(source):
            text = clean(document.text, source.clean)
            if not isinstance(text, Rejection) and text not in seen:
                seen.add(text)
                held_out = is_held_out(document.file, document.position, built.validation.fraction)
                wanted["validation" if held_out else "train"].append(text)
        assert {split: written(built, source, split) for split in wanted} == wanted
        assert wanted["train"] and wanted["validation"]


def test_no_text_stands_twice_in_any_source_or_split(built: DataSettings) -> None:
    texts = [text for s in built.sources for split in ("train", "validation") for text in written(built, s, split)]
    assert len(texts) == len(set(texts))


def test_the_funnel_adds_up_and_agrees_with_the_shards(built: DataSettings) -> None:
    funnels = read_funnels(built.dir)
    assert list(funnels) == ["first", "second"]
    rules = set()
    for source in built.sources:
        funnel = funnels[source.name]
        documents = list(read_documents(source))
        assert funnel.read.documents == len(documents)
        assert funnel.read.bytes == sum(len(document.text.encode()) for document in documents)
        parts = [*funnel.removed, funnel.train, funnel.validation]
        assert sum(part.documents for part in parts) == funnel.read.documents
        assert sum(part.bytes for part in parts) == funnel.read.bytes
        datasets = {split: Dataset(built.dir / source.name / split) for split in ("train", "validation")}
        assert datasets["train"].manifest.documents == funnel.train.documents
        assert datasets["validation"].manifest.documents == funnel.validation.documents
        assert sum(dataset.tokens for dataset in datasets.values()) == funnel.tokens
        assert funnel.written_bytes == sum(len(t.encode()) for split in datasets for t in written(built, source, split))
        by_origin = {(document.file, document.position): document.text for document in documents}
        for removal in funnel.removed:
            assert 1 <= len(removal.examples) == min(3, removal.documents)
            for example in removal.examples:
                assert by_origin[example["file"], example["position"]].startswith(example["text"])
            rules.add(removal.rule)
    assert rules == {"empty", "gopher_quality", "c4", "dedup"}


def test_cleaned_and_distinct_bytes_do_not_depend_on_the_number_of_workers(
    built: DataSettings, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    make(settings_for(tmp_path / "data", files, workers=3))
    assert contents(tmp_path / "data") == contents(built.dir)


def test_a_second_build_with_rules_changes_nothing(built: DataSettings) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.dir.rglob("*.*")}
    assert [line.split(": ")[1] for line in make(built)] == ["already there"] * 3
    assert {path: path.stat().st_mtime_ns for path in built.dir.rglob("*.*")} == before
    assert len(open_datasets(built, model_vocab_size=VOCABULARY)) == 2


@pytest.mark.parametrize("after", thinned([0, 1, 3, 4, 6], keep=[0, 4]))
def test_a_build_that_stopped_goes_on_to_the_same_bytes_and_funnel(
    built: DataSettings, tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    from bigtrain.data.build import build_source

    settings = settings_for(tmp_path / "data", files)
    real = build_source.ShardPair.write
    calls = iter(range(100))

    def stop(pair: build_source.ShardPair, folder: Path) -> None:
        if next(calls) >= after:
            raise KeyboardInterrupt
        real(pair, folder)

    monkeypatch.setattr(build_source.ShardPair, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        make(settings)
    monkeypatch.undo()
    make(settings)
    assert contents(settings.dir) == contents(built.dir)


def test_a_build_stopped_while_deduplicating_starts_that_source_again(
    built: DataSettings, tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path / "data", files)
    real = LocalFolder.write

    def stop(self: LocalFolder, name: str, content: bytes, **options: bool) -> None:
        if name.startswith("second/") and name.endswith("/source"):
            raise KeyboardInterrupt
        real(self, name, content, **options)

    monkeypatch.setattr(LocalFolder, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        make(settings)
    monkeypatch.undo()
    looked = [line for line in make(settings) if "looking for duplicates" in line]
    assert looked == ["second: looking for duplicates"]
    assert contents(settings.dir) == contents(built.dir)


@pytest.mark.parametrize(
    ("changes", "source_changes", "message"),
    [
        ({}, {"clean": ["c4"]}, "another clean"),
        ({}, {"clean": []}, "another clean"),
        ({"dedup": "none"}, {}, "another dedup"),
    ],
)
def test_other_rules_over_finished_data_are_refused(
    built: DataSettings, files: tuple[Path, Path], changes: Any, source_changes: Any, message: str
) -> None:
    sources = [jsonl_source(file, file.stem, **{"clean": RULES, **source_changes}) for file in files]
    other = data_settings(built.dir, *sources, **{"shard_tokens": 9_000, "dedup": "exact", **changes})
    before = contents(built.dir / "first")
    with pytest.raises(BigtrainError, match=message):
        open_datasets(other, model_vocab_size=VOCABULARY)
    with pytest.raises(BigtrainError, match=message):
        make(other)
    assert contents(built.dir / "first") == before


def test_another_order_of_sources_is_refused(
    built: DataSettings,
) -> None:
    """With another order, other documents are the first of their duplicates."""
    swapped = built.model_copy(update={"sources": built.sources[::-1]})
    with pytest.raises(BigtrainError, match=r"(?s)another dedup.*first \(.*second \("):
        open_datasets(swapped, model_vocab_size=VOCABULARY)


def test_data_from_before_there_were_rules_stay_valid(tmp_path: Path) -> None:
    settings = data_settings(tmp_path / "data", jsonl_source(write_jsonl(tmp_path / "x.jsonl", sentences(60, 3))))
    make(settings)
    record_file = settings.dir / "lines" / "build.json"
    record = json.loads(record_file.read_text())
    del record["source"]["clean"], record["dedup"]
    record_file.write_text(json.dumps(record))
    assert make(settings) == ["tokenizer: already there", "lines: already there"]
    assert open_datasets(settings, model_vocab_size=VOCABULARY)
    with pytest.raises(BigtrainError, match="another clean"):
        make(
            settings.model_copy(
                update={"sources": [settings.sources[0].model_copy(update={"clean": built_in_rules("c4")})]}
            )
        )


def test_rules_that_leave_nothing_are_reported(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", sentences(60, 3))
    good = data_settings(tmp_path / "data", jsonl_source(path))
    make(good)
    none = jsonl_source(path, "other", clean=[{"gopher_quality": {"min_words": 10_000}}])
    with pytest.raises(BigtrainError, match="60 removed by gopher_quality"):
        make(good.model_copy(update={"sources": [*good.sources, none]}))


def test_the_command_prints_every_rule_and_one_json_document(built: DataSettings) -> None:
    table = CliRunner().invoke(app, ["funnel", str(built.dir), "--examples"], env={"COLUMNS": "160"})
    assert table.exit_code == 0, table.output
    for part in (
        "gopher_quality: too few words",
        "c4: curly bracket",
        "dedup: the same text",
        "first.jsonl:",
        "tokens",
    ):
        assert part in table.output
    printed = json.loads(CliRunner().invoke(app, ["funnel", str(built.dir), "--json"]).stdout)
    assert printed == {name: funnel.to_json() for name, funnel in read_funnels(built.dir).items()}


def test_a_folder_without_a_funnel_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BigtrainError, match="there is no funnel"):
        read_funnels(tmp_path)
