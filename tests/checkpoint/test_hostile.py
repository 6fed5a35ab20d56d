"""A checkpoint that a stranger made, with hashes that are right, is loaded right or refused with one message."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigtrain.base import ALONE, BigtrainError, RankTree
from bigtrain.checkpoint import Checkpoint, Fragment, StorageTiers, Tensors, load, load_weights, newest_verified, verify
from tests.checkpoint.helpers import cut, even, same_bits, save_step, tensors
from tests.hostile import mutate
from tests.ranks import on_ranks
from tests.refusals import assert_refused

Header = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("good")
    for step in (10, 20):
        save_step(run, step, seed=step)
    return run


@pytest.fixture(scope="module")
def scratch(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the run whose newest checkpoint is made again for each example."""
    root = tmp_path_factory.mktemp("scratch") / "run"
    shutil.copytree(good, root)
    yield root


def restored(good: Path, scratch: Path) -> Path:
    folder = scratch / "checkpoints/step-00000020"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good / "checkpoints/step-00000020", folder)
    return folder


def sealed(folder: Path, change: Callable[[dict[str, Any]], None] = lambda fields: None) -> None:
    """Write the manifest again with the files' true hashes and a change, and its own digest, as its writer would."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["digest"]
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        fields["files"][file.name] = {"size": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    change(fields)
    digest = xxhash.xxh3_128_hexdigest(json.dumps(fields, sort_keys=True).encode())
    path.write_text(json.dumps({**fields, "digest": digest}))


def with_header(file: Path, change: Callable[[Header], object]) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def read_all(folder: Path) -> None:
    stored = Tensors(Checkpoint.at(folder))
    for name, kind in stored.stored:
        stored.read(name, kind)


def changed(
    good: Path, scratch: Path, choose: random.Random, in_header: bool, part: Callable[[dict[str, Any]], Any]
) -> Path:
    """The checkpoint with one mutation, of a header or of a part of the manifest, and right hashes again."""
    folder = restored(good, scratch)
    if in_header:
        with_header(sorted(folder.glob("*.safetensors"))[0], lambda header: mutate(header, choose))
        sealed(folder)
    else:
        sealed(folder, lambda fields: mutate(part(fields), choose))
    return folder


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(choose=st.randoms(use_true_random=False), in_header=st.booleans())
def test_any_change_with_right_hashes_is_harmless_or_one_message(
    good: Path, scratch: Path, choose: random.Random, in_header: bool
) -> None:
    """Resuming falls back to the checkpoint before, where the manifest is not one of this version."""
    folder = changed(good, scratch, choose, in_header, lambda fields: fields)
    found = newest_verified(StorageTiers.of(scratch)).newest
    assert found is not None
    try:
        read_all(folder)
    except BigtrainError as refusal:
        assert_refused(refusal)
    else:
        assert found.step == 20


def pieces_of(fields: dict[str, Any]) -> list[dict[str, Any]]:
    pieces: list[dict[str, Any]] = fields["pieces"]
    return pieces


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(choose=st.randoms(use_true_random=False), in_header=st.booleans())
def test_any_change_to_the_pieces_loads_the_right_bits_or_is_one_message(
    good: Path, scratch: Path, choose: random.Random, in_header: bool
) -> None:
    """What the manifest says of the files is proven by their headers, before the fragments count."""
    folder = changed(good, scratch, choose, in_header, pieces_of)

    def read(ranks: RankTree) -> list[Fragment]:
        own = cut({key: torch.zeros_like(value) for key, value in tensors().items()}, even(3), ranks.rank)
        load(Checkpoint.at(folder), own, ranks=ranks)
        return own

    for rank, found in enumerate(on_ranks(3, read)):
        if isinstance(found, Exception):
            assert_refused(found)
            continue
        wanted = cut(tensors(20), even(3), rank)
        # A header may lie about where its bytes are, and hash right; it may not leave an element out.
        assert in_header or all(same_bits(a.data, b.data) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (lambda runs: runs.replace("0,1,", "1,1,", 1), "does not hold all of"),
        (lambda runs: "", "does not hold all of"),
        (lambda runs: runs + " 0,1,0,1", "does not hold all of"),
        (lambda runs: "7,1,0,1", "manifest.json is damaged"),
    ],
)
def test_a_manifest_that_names_the_wrong_files_is_refused(
    tmp_path: Path, runs: Callable[[str], str], message: str
) -> None:
    save_step(tmp_path, 10, seed=1)
    folder = tmp_path / "checkpoints/step-00000010"

    def change(fields: dict[str, Any]) -> None:
        for each in pieces_of(fields):
            each["runs"] = runs(each["runs"])

    sealed(folder, change)
    with pytest.raises(BigtrainError) as refusal:
        load(Checkpoint.at(folder), cut(tensors(), even(1), 0), ranks=ALONE)
    assert_refused(refusal, message)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda fields: fields.update(later_field=1), "later_field"),
        (lambda fields: fields.update(format=2), "another format"),
        (lambda fields: fields.update(format=True), "another format"),
        (lambda fields: fields.update(world_size=1.0), "world_size"),
        (lambda fields: fields["cursor"].update(step="20"), "cursor.step"),
        (lambda fields: fields["files"].update({"../x": {"size": 1, "xxh3_128": "0" * 32}}), "path"),
    ],
)
def test_another_version_s_manifest_is_named_and_fallen_back_from(
    good: Path, scratch: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    folder = restored(good, scratch)
    sealed(folder, lambda fields: fields["versions"].update(bigtrain="9.9") or change(fields))
    search = newest_verified(StorageTiers.of(scratch))
    assert search.newest is not None and search.newest.step == 10
    (problem,) = search.rejected[0].problems
    assert named in problem
    assert named == "path" or "bigtrain 9.9" in problem


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"7", b"[]", b"\xff", b""])
def test_a_manifest_that_is_none_is_fallen_back_from(good: Path, scratch: Path, text: bytes) -> None:
    folder = restored(good, scratch)
    (folder / "manifest.json").write_bytes(text)
    found = newest_verified(StorageTiers.of(scratch)).newest
    assert found is not None and found.step == 10


@pytest.mark.parametrize("name", ["manifest.json", "tensors"])
def test_a_pipe_in_a_checkpoint_is_fallen_back_from(good: Path, scratch: Path, name: str) -> None:
    folder = restored(good, scratch)
    path = sorted(folder.glob("*.safetensors"))[0] if name == "tensors" else folder / name
    path.unlink()
    os.mkfifo(path)
    assert verify(Checkpoint.at(folder))
    found = newest_verified(StorageTiers.of(scratch)).newest
    assert found is not None and found.step == 10


def one_piece_for_another(header: Header) -> Header:
    """The first half of a parameter twice: as many elements as it has, and half of them nowhere."""
    key = next(key for key in header if key.startswith("master/embed.weight/"))
    begin, end = header[key]["data_offsets"]
    half = (end - begin) // 8
    first = {"dtype": "F32", "shape": [half], "data_offsets": [begin, begin + 4 * half]}
    rest = (end - begin) // 4 - half
    second = {"dtype": "F32", "shape": [rest], "data_offsets": [begin + 4 * half, end]}
    return {**{k: v for k, v in header.items() if k != key}, key: first, key[:-1] + "00": second}


def test_pieces_that_overlap_never_load_uninitialised_memory(tmp_path: Path) -> None:
    save_step(tmp_path, 10, seed=1, world_size=1)
    folder = tmp_path / "checkpoints/step-00000010"
    weights = load_weights(Checkpoint.at(folder))
    assert torch.equal(
        weights["embed.weight"].flatten().view(torch.int32), tensors(1)["embed.weight", "master"].view(torch.int32)
    )
    with_header(next(folder.glob("*.safetensors")), one_piece_for_another)
    sealed(folder)
    with pytest.raises(BigtrainError) as refusal:
        read_all(folder)
    assert_refused(refusal, "master of embed.weight", found="overlap", fix="bigtrain checkpoint verify")


def test_a_parameter_of_any_size_is_not_allocated_before_it_is_found(tmp_path: Path) -> None:
    save_step(tmp_path, 10, seed=1, world_size=1)
    folder = tmp_path / "checkpoints/step-00000010"
    sealed(folder, lambda fields: fields["tensors"].update({"norm.weight": [2**40, 2**20]}))
    with pytest.raises(BigtrainError) as refusal:
        read_all(folder)
    assert_refused(refusal, "norm.weight")
