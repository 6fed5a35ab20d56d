"""Promises of kept outputs: the same bytes whoever writes them, and for a row what the teacher says of that row."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigtrain.base import BigtrainError, LaunchedRank
from bigtrain.config import KEPT_CLASSES, KEPT_LOG_PROBS, Settings
from bigtrain.data import KeptManifest, RunData
from bigtrain.trained import keep_outputs, open_kept_outputs
from bigtrain.trained.stored_model import StoredModel
from bigtrain.trained.trained import loaded_model
from tests.convert.helpers import settings_of
from tests.data.helpers import data_settings, jsonl_source, make, sentences, write_jsonl
from tests.refusals import assert_refused
from tests.trained.helpers import random_run

SMALL = 15_000
"""Bytes of a file, so that there are several."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A run of a random model over two sources, packed in two ways."""
    directory = tmp_path_factory.mktemp("teacher")
    sources = [
        jsonl_source(write_jsonl(directory / f"{name}.jsonl", sentences(16, seed)), name)
        for seed, name in enumerate(("lines", "others"))
    ]
    data = data_settings(directory / "data", *sources)
    for packing in ("concat", "best_fit"):
        make(data.model_copy(update={"packing": packing}), 320)
    return random_run(directory, settings_of("llama", num_key_value_heads=2), data)


def student(teacher: Settings, folder: Path, classes: int = 7, **changes: Any) -> Settings:
    settings = teacher.model_dump(mode="json")
    settings["distillation"] = {"kept_outputs": str(folder), "kept_classes": classes, "temperature": 2.0}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        settings[section][name] = value
    return Settings.model_validate(settings)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_row_has_what_the_teacher_says_of_it_alone(teacher: Settings, tmp_path: Path, packing: str) -> None:
    """In any epoch, micro-batch and share of a global batch; both temperatures; other classes count as the rest."""
    settings = student(teacher, tmp_path, data__packing=packing)
    keep_outputs(teacher.run_dir, settings, temperatures=[1.0], file_bytes=SMALL)
    model = loaded_model(StoredModel.open(teacher.run_dir)).eval()
    seen = set()
    for temperature, micro_batch_size, world_size in ((2.0, 1, 1), (1.0, 2, 2), (2.0, 4, 1)):
        own = student(teacher, tmp_path, data__packing=packing, distillation__temperature=temperature)
        data = RunData.open(own)
        data = replace(data, kept=open_kept_outputs(own, data))
        with data.loader(micro_batch_size, 0, rank=world_size - 1, world_size=world_size) as loader:
            for _ in range(2 * sum(packed.rows for packed in data.train) // 4):
                batch = next(loader)
                for micro in batch.micro_batches:
                    for row in range(micro_batch_size):
                        found = micro.others[KEPT_CLASSES][row], micro.others[KEPT_LOG_PROBS][row]
                        _check_row(model, micro, row, found, temperature)
                        seen.add(tuple(micro.input_ids[row].tolist()))
    assert len(seen) == sum(packed.rows for packed in data.train)


def _check_row(model: Any, micro: Any, row: int, found: Any, temperature: float) -> None:
    ids, positions = micro.input_ids[row : row + 1].long(), micro.position_ids[row : row + 1].long()
    starts = (positions[0] == 0).nonzero().squeeze(1).tolist()
    bounds = torch.tensor([*starts, len(ids[0])], dtype=torch.int32)
    with torch.no_grad():
        every = model.logits(ids, positions, bounds, len(ids[0]))[0].double()
    wanted = (every / temperature).log_softmax(-1)
    classes, log_probs = found
    torch.testing.assert_close(log_probs.double(), wanted.gather(1, classes.long()), rtol=1e-4, atol=1e-4)
    assert (every.gather(1, classes.long()).amin(1) >= every.sort(1).values[:, -classes.shape[1]] - 1e-4).all()


def test_several_processes_and_a_killed_one_write_the_same(
    teacher: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id covers every byte: it is that of one process without a fault, whichever process finishes last."""
    whole = keep_outputs(teacher.run_dir, student(teacher, tmp_path / "whole"), file_bytes=SMALL)
    assert whole.complete and whole.files == whole.written > 4
    settings = student(teacher, tmp_path / "shared")

    class Killed(BaseException): ...

    def after_two(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise Killed

    lines: list[str] = []
    with pytest.raises(Killed):
        keep_outputs(teacher.run_dir, settings, rank=LaunchedRank(1, 2), file_bytes=SMALL, report=after_two)
    (tmp_path / "shared" / "lines" / "00005.kept.tmp").write_bytes(b"half of a file")
    first = keep_outputs(teacher.run_dir, settings, rank=LaunchedRank(0, 2), file_bytes=SMALL)
    assert (first.complete, first.kept_id, first.bytes) == (False, None, 0)
    with pytest.raises(BigtrainError) as unfinished:
        open_kept_outputs(settings, RunData.open(settings))
    assert_refused(unfinished, "holds no outputs of a teacher, or not all of them", fix="it goes on")
    last = keep_outputs(teacher.run_dir, settings, rank=LaunchedRank(1, 2), file_bytes=SMALL)
    assert last.complete and last.kept_id == whole.kept_id and last.bytes == whole.bytes
    assert first.written + last.written + 2 == whole.written
    assert KeptManifest.read(tmp_path / "shared") == KeptManifest.read(tmp_path / "whole")
    again = keep_outputs(teacher.run_dir, settings, file_bytes=10 * SMALL)
    assert again.complete and again.written == 0 and again.kept_id == whole.kept_id


def test_a_changed_byte_is_found_when_its_row_is_read(teacher: Settings, tmp_path: Path) -> None:
    settings = student(teacher, tmp_path)
    keep_outputs(teacher.run_dir, settings)
    data = RunData.open(settings)
    data = replace(data, kept=open_kept_outputs(settings, data))
    file = tmp_path / "lines" / "00000.kept"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    steps = sum(packed.rows for packed in data.train) // 4 + 1
    with data.loader(2, 0, rank=0, world_size=1) as loader, pytest.raises(BigtrainError) as changed:
        for _ in range(steps):
            next(loader)
    assert_refused(changed, "00000.kept was changed", found="another row", wanted="its manifest names")
    file.unlink()
    with pytest.raises(BigtrainError) as missing:
        open_kept_outputs(settings, RunData.open(settings))
    assert_refused(missing, "is not what its manifest says", found="no file", fix="bigtrain keep-outputs")


def test_rows_that_the_teacher_has_not_read_are_refused(teacher: Settings, tmp_path: Path) -> None:
    """Should a later version make other inputs of a row: what each row's digest covers is compared with the row."""
    settings = student(teacher, tmp_path)
    keep_outputs(teacher.run_dir, settings)
    data = RunData.open(settings)
    kept = open_kept_outputs(settings, data)
    addresses = data.plan.locate_many(np.arange(3))
    prepared = data.prepared(addresses)
    kept.beside(addresses, prepared)
    prepared.positions[1, 3] += 1
    with pytest.raises(BigtrainError) as other:
        kept.beside(addresses, prepared)
    assert_refused(other, "the teacher has read another row", found="inputs ", fix="bigtrain keep-outputs")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data__sequence_length": 16}, "another sequence_length, positions"),
        ({"data__packing": "best_fit"}, "another packing"),
        ({"classes": 9}, "another kept"),
        ({"distillation__temperature": 1.25}, "not kept for this temperature"),
        ({"model__vocab_size": 352}, "another classes"),
    ],
)
def test_what_was_kept_for_something_else_is_refused(
    teacher: Settings, tmp_path: Path, changes: dict[str, Any], parts: str
) -> None:
    keep_outputs(teacher.run_dir, student(teacher, tmp_path))
    settings = student(teacher, tmp_path, **changes)
    with pytest.raises(BigtrainError) as error:
        open_kept_outputs(settings, RunData.open(settings))
    assert_refused(error, parts, fix="bigtrain keep-outputs TEACHER CONFIG")


def test_other_data_and_another_teacher_are_refused(teacher: Settings, tmp_path: Path) -> None:
    """By the dataset's id, which covers the tokenizer, and by the digests of the teacher's weights."""
    settings = student(teacher, tmp_path / "kept")
    keep_outputs(teacher.run_dir, settings)
    lines = write_jsonl(tmp_path / "lines.jsonl", sentences(50, 5))
    data = data_settings(tmp_path / "data", jsonl_source(lines, "lines"), jsonl_source(lines, "others"))
    make(data, 320)
    other = settings.model_copy(update={"data": data})
    with pytest.raises(BigtrainError) as error:
        open_kept_outputs(other, RunData.open(other))
    assert_refused(error, "another tokenizer")
    with pytest.raises(BigtrainError) as error:
        keep_outputs(random_run(tmp_path, settings_of("llama", num_key_value_heads=4), teacher.data).run_dir, settings)
    assert_refused(error, "were kept for something else: another teacher", fix="empty folder")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("not ours")
    with pytest.raises(BigtrainError) as error:
        keep_outputs(teacher.run_dir, student(teacher, tmp_path / "foreign"))
    assert_refused(error, "did not write; nothing was overwritten", found="thesis.tex")
    with pytest.raises(BigtrainError) as error:
        keep_outputs(teacher.run_dir, teacher)
    assert_refused(error, "does not say where", fix="set distillation.kept_outputs")


def test_a_manifest_that_was_changed_is_refused(teacher: Settings, tmp_path: Path) -> None:
    keep_outputs(teacher.run_dir, student(teacher, tmp_path))
    manifest = tmp_path / "manifest.json"
    content = json.loads(manifest.read_text())
    content["request"]["classes"] += 1
    manifest.write_text(json.dumps(content))
    with pytest.raises(BigtrainError) as error:
        KeptManifest.read(tmp_path)
    assert_refused(error, "was changed after it was written")
    shutil.rmtree(tmp_path / "lines")
