"""Data that a stranger made, with hashes that are right, are read right or refused with one message."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigtrain.base import BigtrainError
from bigtrain.config.data_settings import DataSettings
from bigtrain.data import (
    build_datasets,
    index_datasets,
    load_tokenizer,
    open_datasets,
    open_packings,
    read_funnels,
    verify,
)
from bigtrain.data.build.decontaminate import ABOUT, evaluation_ngrams
from bigtrain.data.build.progress import finished_pairs
from bigtrain.data.format.hashing import identity
from bigtrain.data.format.manifest import DatasetManifest
from bigtrain.data.order.mixture import MixturePhase
from bigtrain.data.order.plan import Plan
from bigtrain.data.store.store import Dataset
from bigtrain.data.store.stored_document import documents_between, find_document
from tests.data.helpers import data_settings, jsonl_source, make, plan_over, random_dataset, sentences, write_jsonl
from tests.hostile import STRANGE, mutate
from tests.refusals import assert_refused

VOCABULARY = 512
TRAIN = Path("lines/train")
PACK = TRAIN / "best_fit-32.json"
RECORDS = ["build.json", "lines/build.json", "lines/funnel.json", "tokenizer.json"]
many = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=int(os.environ.get("EXAMPLES", "25"))
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    folder = tmp_path_factory.mktemp("original")
    lines = write_jsonl(folder / "x.jsonl", sentences(30, 1))
    data = data_settings(folder / "data", jsonl_source(lines), packing="best_fit", dedup="exact")
    build_datasets(data, vocab_size=VOCABULARY, report=lambda line: None)
    index_datasets(data.dir)
    return data


@pytest.fixture(scope="module")
def scratch(original: DataSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataSettings]:
    """The data in a folder that each example writes again."""
    folder = tmp_path_factory.mktemp("scratch") / "data"
    shutil.copytree(original.dir, folder)
    yield original.model_copy(update={"dir": folder})


def restored(original: DataSettings, scratch: DataSettings) -> Path:
    shutil.rmtree(scratch.dir)
    shutil.copytree(original.dir, scratch.dir)
    return scratch.dir


def sealed(path: Path, id_name: str, change: Callable[[dict[str, Any]], object]) -> str:
    """Write a manifest again with a change, its totals and the hash of its content, as its writer would."""
    fields = json.loads(path.read_text())
    totals = {name: fields.pop(name) for name in (id_name, "tokens", "rows" if id_name == "pack_id" else "documents")}
    change(fields)
    try:
        totals[id_name] = identity(fields)
        shards = fields["shards"]
        totals |= {name: sum(shard[name] for shard in shards) for name in totals if name != id_name}
    except (ValueError, TypeError, KeyError):  # no such hash or sum
        pass
    path.write_text(json.dumps({**fields, **totals}))
    return str(totals[id_name])


def read_everything(data: DataSettings) -> None:
    """Everything that training and questions about the data read of a dataset."""
    (dataset,) = open_datasets(data, model_vocab_size=VOCABULARY)
    for document in documents_between(dataset, 0, dataset.tokens):
        assert document.file and len(document.read(0, document.tokens)) == document.tokens
    find_document([dataset], document.id)
    find_document([dataset], f"lines:{document.file}:{document.position}")
    (packing,) = open_packings(data, [dataset])
    packing.spans(np.arange(packing.rows))
    packing.sequences_with(0, document.tokens)
    load_tokenizer(data.dir).decode(dataset.shards[0].slice(0, 50).tolist())


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def harmless_or_one_message(*actions: Callable[[], object]) -> None:
    before = peak_bytes()
    for action in actions:
        try:
            action()
        except BigtrainError as refusal:
            assert_refused(refusal)
    assert peak_bytes() - before < 128 << 20


@many
@given(choose=st.randoms(use_true_random=False), of_packs=st.booleans())
def test_any_change_of_a_manifest_with_right_hashes_is_refused_or_harmless(
    original: DataSettings, scratch: DataSettings, choose: random.Random, of_packs: bool
) -> None:
    folder = restored(original, scratch)
    if of_packs:
        sealed(folder / PACK, "pack_id", lambda fields: mutate(fields, choose))
    else:
        made = sealed(folder / TRAIN / "manifest.json", "dataset_id", lambda fields: mutate(fields, choose))
        sealed(folder / PACK, "pack_id", lambda fields: fields.update(parents={"dataset_id": made}))
    harmless_or_one_message(lambda: read_everything(scratch), lambda: verify(folder))


@many
@given(choose=st.randoms(use_true_random=False), suffix=st.sampled_from([".tok", ".doc", ".pack"]))
def test_any_change_of_a_shard_with_right_hashes_is_refused_or_harmless(
    original: DataSettings, scratch: DataSettings, choose: random.Random, suffix: str
) -> None:
    """Offsets, counts and indices of its columns lead nowhere else."""
    folder = restored(original, scratch)
    (file,) = (folder / TRAIN).glob(f"*{suffix}")
    content = bytearray(file.read_bytes())
    for _ in range(choose.randrange(1, 4)):
        place = choose.randrange(0, len(content), 4 if choose.random() < 0.8 else 1)
        number = choose.choice([0, 1, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1]).to_bytes(8, "little")
        width = choose.choice([1, 4, 8])
        content[place : place + width] = number[:width]
    if choose.random() < 0.2:
        content = content[: choose.randrange(len(content))]
    file.write_bytes(content)
    record = {"name": file.name, "size": len(content), "blocks": [xxhash.xxh3_128_hexdigest(content)][: len(content)]}

    def put(fields: dict[str, Any]) -> None:
        if suffix == ".pack":
            fields["shards"][0]["file"] = record
        else:
            fields["shards"][0]["files"][suffix == ".doc"] = record

    if suffix == ".pack":
        sealed(folder / PACK, "pack_id", put)
    else:
        made = sealed(folder / TRAIN / "manifest.json", "dataset_id", put)
        sealed(folder / PACK, "pack_id", lambda fields: fields.update(parents={"dataset_id": made}))
    harmless_or_one_message(lambda: read_everything(scratch), lambda: verify(folder))


@many
@given(choose=st.randoms(use_true_random=False), name=st.sampled_from(RECORDS))
def test_any_change_of_a_record_of_a_build_is_refused_or_harmless(
    original: DataSettings, scratch: DataSettings, choose: random.Random, name: str
) -> None:
    folder = restored(original, scratch)
    path = folder / name
    fields = json.loads(path.read_text())
    mutate(fields, choose)
    text = json.dumps(fields)
    path.write_text(choose.choice([text, text, text, text[: len(text) // 2], "[" * 20_000, ""]))
    harmless_or_one_message(
        lambda: read_everything(scratch),
        lambda: read_funnels(folder),
        lambda: verify(folder),
        lambda: load_tokenizer(folder),
    )


@pytest.mark.parametrize("name", [*RECORDS[:4], str(TRAIN / "manifest.json"), str(PACK)])
def test_a_pipe_in_the_place_of_a_record_is_refused_and_not_waited_for(
    original: DataSettings, scratch: DataSettings, name: str
) -> None:
    folder = restored(original, scratch)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    harmless_or_one_message(
        lambda: read_everything(scratch), lambda: read_funnels(folder), lambda: load_tokenizer(folder)
    )


def test_a_manifest_of_a_later_version_is_refused_with_its_version(
    original: DataSettings, scratch: DataSettings
) -> None:
    manifest = restored(original, scratch) / TRAIN / "manifest.json"
    sealed(manifest, "dataset_id", lambda fields: fields.update(format=4))
    with pytest.raises(BigtrainError) as refusal:
        DatasetManifest.read(manifest.parent)
    assert_refused(refusal, str(manifest), found="format 4", wanted="format 1 or 2 or 3")
    sealed(manifest, "dataset_id", lambda fields: fields.update(format=1, compression="zstd"))
    with pytest.raises(BigtrainError) as refusal:
        DatasetManifest.read(manifest.parent)
    assert_refused(refusal, str(manifest), found="compression", fix="the version of bigtrain that wrote it")


def test_an_index_of_documents_that_leads_out_of_the_dataset_is_ignored(tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path, 2000)
    index, _ = index_datasets(tmp_path)
    content = bytearray(index.read_bytes())
    content[-8 * dataset.manifest.documents :] = b"\xff" * (8 * dataset.manifest.documents)
    index.write_bytes(content)
    with pytest.raises(BigtrainError, match="there is no document"):
        find_document([Dataset(tmp_path)], dataset.shards[0].documents.id[0].tobytes().hex())


@many
@given(choose=st.randoms(use_true_random=False))
def test_any_change_of_a_progress_file_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, original: DataSettings, choose: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("unfinished")
    shard = DatasetManifest.read(original.dir / TRAIN).shards[0].to_json()
    funnel = read_funnels(original.dir)["lines"].to_json()
    progress = {"index": 0, "next_piece": 1, "corpus": "0" * 32, "funnel": funnel, "train": shard, "validation": None}
    mutate(progress, choose)
    (folder / "progress-00000.json").write_text(json.dumps(progress))
    harmless_or_one_message(lambda: finished_pairs(folder))


@pytest.mark.parametrize("kind", ["000000.keys", "source", "marks-000000", "result"])
def test_damaged_files_of_deduplication_are_made_again(
    original: DataSettings, scratch: DataSettings, kind: str
) -> None:
    folder = restored(original, scratch)
    shutil.rmtree(folder / "lines")
    (file,) = (folder / ".dedup").rglob(kind)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    make(scratch)
    for name in ("manifest.json", "00000.tok", "00000.doc"):
        assert (folder / TRAIN / name).read_bytes() == (original.dir / TRAIN / name).read_bytes()


@many
@given(choose=st.randoms(use_true_random=False))
def test_any_change_of_the_evaluation_ngrams_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, choose: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("evaluation")
    texts = write_jsonl(folder / "e.jsonl", sentences(3, 1))
    data = data_settings(folder, jsonl_source(texts), decontaminate={"paths": [str(texts)]})
    assert data.decontaminate is not None
    ngrams = evaluation_ngrams(data.decontaminate, folder, lambda line: None)
    path = ngrams.folder / choose.choice([ABOUT, "ngrams.npy", "hits.npy"])
    if path.name == ABOUT:
        about = json.loads(path.read_text())
        mutate(about, choose)
        path.write_text(json.dumps(about))
    else:
        np.save(path, np.zeros(choose.choice([0, 3, (2, 0), (2, 2, 2), (2, 5)]), choose.choice(["<u8", "<f8", "?"])))
    harmless_or_one_message(lambda: ngrams.rejection(" ".join(sentences(3, 2))))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    datasets = [random_dataset(tmp_path_factory.mktemp("p"), 500, source=name, seed=1) for name in ("a", "b")]
    phases = [MixturePhase(0, (3, 1)), MixturePhase(40, (1, 2))]
    return plan_over(datasets, (1, 1), length=16, phases=phases, skipped=[(3, 9)])[0]


@many
@given(choose=st.randoms(use_true_random=False))
def test_any_change_of_a_plan_in_a_checkpoint_is_refused(plan: Plan, choose: random.Random) -> None:
    """Also one with the right plan id is no hang and no traceback."""
    described = plan.describe()
    mutate(described, choose)
    before = described.get("plan_id")
    content = {name: value for name, value in described.items() if name != "plan_id"}
    with suppress(ValueError):  # nan
        described["plan_id"] = choose.choice([before, identity(content)])
    harmless_or_one_message(lambda: plan.first_difference(Plan.from_json(described)))


@pytest.mark.parametrize("strange", STRANGE)
def test_a_plan_may_be_any_json_value(strange: Any) -> None:
    with pytest.raises(BigtrainError) as refusal:
        Plan.from_json(strange)
    assert_refused(refusal)
