"""Promises of provenance: which documents are in a batch, and in which samples a document is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config.batch_schedule import BatchSchedule
from bigtrain.data import (
    Dataset,
    Loader,
    Packing,
    Plan,
    build_datasets,
    format_digest,
    load_tokenizer,
    open_datasets,
    verify,
)
from bigtrain.data.order.mixture import MixturePhase
from bigtrain.data.order.plan import DocumentSkip
from bigtrain.data.provenance.provenance import SampleContents, appearances_of, contents_of, digest_of
from bigtrain.data.store.document_index import DOCUMENTS, index_datasets, look_up, write_index
from bigtrain.data.store.stored_document import StoredDocument, documents_between, find_document
from tests.data.helpers import (
    END,
    build_packs_of,
    data_settings,
    jsonl_source,
    plan_over,
    random_dataset,
    sentences,
    write_dataset,
    write_jsonl,
)

LENGTH = 16


Planned = tuple[Plan, list[Packing]]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("data")
    datasets = [random_dataset(folder / name, 900, seed=i, source=name) for i, name in enumerate("ab")]
    for dataset in datasets:
        for packing in ("best_fit", "buckets"):
            build_packs_of(dataset.directory, packing, LENGTH)
    return datasets


def plan_in_phases(datasets: list[Dataset], packing: str, batch: int = 16) -> Planned:
    """Two phases, a batch-size warm-up, a skip of batches and one of documents."""
    return plan_over(
        datasets,
        [2, 1],
        length=LENGTH,
        seed=5,
        packing=packing,
        phases=[MixturePhase(0, (2, 1)), MixturePhase(100, (1, 3))],
        batches=BatchSchedule([(3, 2 * batch)], batch),
        skipped=[(40, 47), (120, 121)],
        unlabelled=[DocumentSkip("b", 64, "file-1"), DocumentSkip("a", 0, "file-[02]")],
    )


@pytest.fixture(scope="module", params=["concat", "best_fit", "buckets"])
def planned(datasets: list[Dataset], request: pytest.FixtureRequest) -> Planned:
    return plan_in_phases(datasets, request.param)


def all_documents(dataset: Dataset) -> list[StoredDocument]:
    return list(documents_between(dataset, 0, dataset.tokens))


@pytest.mark.parametrize("packing", ["concat", "best_fit", "buckets"])
@pytest.mark.parametrize("batch", [1, 6, 16])
def test_digest_rows_and_labels_of_every_batch_follow_from_its_documents(
    datasets: list[Dataset], packing: str, batch: int
) -> None:
    plan, packings = plan_in_phases(datasets, packing, batch)
    with Loader(plan, packings, micro_batch_size=batch) as loader:
        for step in range(1, 320 // batch):  # several epochs of either source, and two phases
            loaded = next(loader)
            contents = contents_of(plan, packings, plan.batches.samples_of(step))
            assert digest_of(contents) == format_digest(loaded.digest)
            rows = np.concatenate([micro.input_ids for micro in loaded.micro_batches])
            labels = np.concatenate([micro.labels for micro in loaded.micro_batches])
            assert np.array_equal(np.stack([sample.token_ids for sample in contents]), rows)
            assert sum(LENGTH - sample.padding for sample in contents) == loaded.input_tokens
            assert np.array_equal(labels != IGNORE_INDEX, [is_labelled(sample) for sample in contents])
            assert loaded.label_tokens == (labels != IGNORE_INDEX).sum()


def is_labelled(sample: SampleContents) -> list[bool]:
    """Which tokens of a row have a label."""
    row = [
        part.labelled and token + 1 < part.document.tokens
        for part in sample.parts
        for token in range(part.start, part.end)
    ]
    return row + [False] * sample.padding


def test_where_and_when_agree_over_a_whole_run(planned: Planned, datasets: list[Dataset]) -> None:
    samples = 330
    where = Counter(
        (
            part.document.dataset.name,
            part.document.id,
            sample.sample,
            sample.epoch,
            sample.sequence,
            part.start,
            part.end,
            part.labelled,
        )
        for sample in contents_of(*planned, range(samples))
        for part in sample.parts
    )
    when = Counter(
        (dataset.name, document.id, *vars(found).values())
        for dataset in datasets
        for document in all_documents(dataset)
        for found in appearances_of(*planned, document, before=samples)
    )
    assert where == when
    assert set(where.values()) == {1}
    assert {labelled for *_, labelled in where} == {True, False}


@pytest.mark.parametrize("packing", ["concat", "best_fit", "buckets"])
def test_a_document_is_seen_whole_once_an_epoch(datasets: list[Dataset], packing: str) -> None:
    plan, packings = plan_over(datasets, [2, 1], length=LENGTH, packing=packing, phases=[MixturePhase(0, (1, 1))])
    before = 4 * max(source.sequences for source in plan.sources)  # half of them from either
    for dataset in datasets:
        for document in all_documents(dataset):
            found = appearances_of(plan, packings, document, before=before)
            for epoch in range(2):
                ranges = sorted((f.start, f.end) for f in found if f.epoch == epoch)
                assert [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
                assert ranges[-1][1] == document.tokens


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.lists(st.integers(1, 999), max_size=40), min_size=1, max_size=8), min_size=1, max_size=4),
    st.integers(1, 50),
)
def test_any_range_of_the_stream_is_the_documents_in_it(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[list[int]]], length: int
) -> None:
    dataset = write_dataset(tmp_path_factory.mktemp("any"), shards)
    stream = [token for shard in shards for document in shard for token in [*document, END]]
    for start in range(0, dataset.tokens, length):
        end = min(start + length, dataset.tokens)
        documents = list(documents_between(dataset, start, end))
        tokens = [t for d in documents for t in d.read(max(start - d.start, 0), min(end, d.end) - d.start).tolist()]
        assert tokens == stream[start:end]
        assert all(d.start < end and d.end > start for d in documents)


def test_every_document_is_found_by_its_id_and_by_its_origin(datasets: list[Dataset]) -> None:
    for dataset in datasets:
        documents = all_documents(dataset)
        assert len(documents) == dataset.manifest.documents
        for document in documents:
            origin = f"{dataset.name}:{document.file}:{document.position}"
            assert find_document([dataset], document.id) == document
            assert find_document(datasets, origin) == document


def test_an_index_finds_the_same_documents_and_no_others(tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path / "a", 2000, seed=3)
    documents = all_documents(dataset)
    assert look_up(dataset, bytes.fromhex(documents[0].id)) is None
    write_index(dataset)
    for document in documents:
        assert look_up(dataset, bytes.fromhex(document.id)) == [(document.shard, document.number)]
        assert find_document([dataset], document.id) == document
    assert look_up(dataset, b"\xff" * 16) == look_up(dataset, b"\0" * 8 + b"\xff" * 8) == []
    with pytest.raises(BigtrainError, match="there is no document"):
        find_document([dataset], "f" * 32)


def test_an_index_of_other_data_or_a_torn_one_is_passed_over(tmp_path: Path) -> None:
    old, new = (random_dataset(tmp_path / name, 2000, seed=seed) for seed, name in enumerate(("old", "new")))
    index = write_index(old).read_bytes()
    for wrong in (index, index[:-1], b"", index[:20]):
        (new.directory / DOCUMENTS.name).write_bytes(wrong)
        for document in all_documents(new)[:5]:
            assert look_up(new, bytes.fromhex(document.id)) is None
            assert find_document([new], document.id) == document


def test_ids_that_begin_alike_and_empty_datasets_can_be_indexed(tmp_path: Path) -> None:
    alike = write_dataset(tmp_path / "alike", [[[1], [2]], [[3], [4]]])  # their ids differ in the last bytes alone
    write_index(alike)
    assert [find_document([alike], document.id) for document in all_documents(alike)] == all_documents(alike)
    nothing = write_dataset(tmp_path / "nothing", [[]])
    write_index(nothing)
    assert look_up(nothing, b"\1" * 16) == []


def test_verify_and_a_second_build_let_an_index_be(tmp_path: Path) -> None:
    source = jsonl_source(write_jsonl(tmp_path / "lines.jsonl", sentences(60, seed=1)))
    made = data_settings(tmp_path / "data", source)
    build_datasets(made, vocab_size=512, report=lambda line: None)
    paths = index_datasets(made.dir)
    assert [path.parent.name for path in paths] == ["train", "train", "validation", "validation"]
    build_datasets(made, vocab_size=512, report=lambda line: None)
    assert verify(made.dir).ok and all(path.is_file() for path in paths)


def test_an_unknown_document_is_refused_with_a_way_out(datasets: list[Dataset]) -> None:
    for reference in ("f" * 32, "12", "a:nowhere", "a:file-0:999999", "c:file-0:0", "a:", ""):
        with pytest.raises(BigtrainError, match="data where RUN"):
            find_document(datasets, reference)


def test_a_file_of_several_documents_asks_for_a_position(datasets: list[Dataset]) -> None:
    with pytest.raises(BigtrainError, match="a file of several documents") as error:
        find_document(datasets, "a:file-1")
    assert "a:file-1:1" in str(error.value)


def test_names_of_files_that_overlap_or_hold_colons_are_distinct(tmp_path: Path) -> None:
    from bigtrain.data.format.shards import ShardWriter, TokenizedDocuments

    template = write_dataset(tmp_path / "template", [[[1]]])
    names = ["xa", "aa", "a", "aaa", "C:7", "7", "日本"]
    writer = ShardWriter(tmp_path, 0)
    for i, name in enumerate(names):
        writer.append(TokenizedDocuments(np.array([5, END], "<u2"), [2], [bytes([i] * 16)], [name], [i % 2]))
    from dataclasses import replace

    replace(template.manifest, shards=[writer.finish()]).write(tmp_path)
    dataset = Dataset(tmp_path)
    for i, name in enumerate(names):
        assert find_document([dataset], f"made:{name}").number == i
        assert find_document([dataset], f"made:{name}:{i % 2}").number == i


def test_a_corrupted_shard_is_named_instead_of_shown(tmp_path: Path) -> None:
    broken = [random_dataset(tmp_path / name, 900, seed=i, source=name) for i, name in enumerate("ab")]
    file = tmp_path / "a" / "00000.tok"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(BigtrainError, match=r"00000\.tok is corrupt"):
        digest_of(contents_of(*plan_over(broken, [2, 1], length=LENGTH), range(100)))


def test_the_text_of_a_whole_document_is_the_text_it_was_built_from(tmp_path: Path) -> None:
    texts = [f"{text} naïve 日本 {chr(0x1F600)}" for text in sentences(60, seed=1)]
    source = jsonl_source(write_jsonl(tmp_path / "lines.jsonl", texts))
    made = data_settings(tmp_path / "data", source)
    build_datasets(made, vocab_size=512, report=lambda line: None)
    tokenizer = load_tokenizer(made.dir)
    seen = set()
    for split in ("train", "validation"):
        (dataset,) = open_datasets(made, model_vocab_size=512, split=split)
        for document in all_documents(dataset):
            text = tokenizer.decode(document.read(0, document.tokens).tolist(), skip_special_tokens=True)
            assert text == texts[document.position]
            assert document.held_out == (split == "validation")
            seen.add(document.position)
    assert seen == set(range(60))
