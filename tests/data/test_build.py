"""Promises of the build: the same bytes whatever happens, and never a mixture."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import DataSettings, TokenizerSettings, ValidationSettings
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data import Dataset, build_datasets, load_tokenizer, open_datasets
from bigtrain.data.build.corpus import open_corpus, read_documents
from bigtrain.data.build.filters import Filters
from bigtrain.data.format.documents import document_id, is_held_out
from tests.data.helpers import VOCABULARY, contents, data_settings, jsonl_source, make, sentences, write_jsonl
from tests.matrix import thinned

pytestmark = pytest.mark.usefixtures("small_pieces")


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for index, text in enumerate(sentences(600, 1)):
        (folder / f"{index % 7}").mkdir(exist_ok=True)
        (folder / f"{index % 7}" / f"{index:04d}.txt").write_text(text)
    (folder / "empty.txt").write_text(" \n")
    return folder


def settings_for(directory: Path, text_folder: Path, **changes: object) -> DataSettings:
    prose = SourceSettings(name="prose", kind="text", path=str(text_folder))
    lines = jsonl_source(write_jsonl(text_folder.parent / "lines.jsonl", sentences(300, 2)))
    os.utime(text_folder.parent / "lines.jsonl", ns=(10**18, 10**18))
    return data_settings(directory, prose, lines, **{"shard_tokens": 20_000, **changes})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> DataSettings:
    settings = settings_for(tmp_path_factory.mktemp("built") / "data", text_folder)
    make(settings)
    return settings


def test_every_document_is_written_once_whole_and_on_its_side(built: DataSettings) -> None:
    tokenizer = load_tokenizer(built.dir)
    for source in built.sources:
        expected = {False: [], True: []}
        for document in read_documents(source):
            if document.text.strip():
                expected[is_held_out(document.file, document.position, 0.1)].append(document)
        for split, documents in (("train", expected[False]), ("validation", expected[True])):
            dataset = Dataset(built.dir / source.name / split)
            assert dataset.manifest.documents == len(documents) > 0
            remaining = iter(documents)
            for shard in dataset.shards:
                columns = shard.documents
                for index in range(shard.record.documents):
                    document = next(remaining)
                    ids = shard.tokens[columns.offset[index] : columns.offset[index + 1]].tolist()
                    assert ids[0] == ids[-1] == dataset.end_of_text  # the first one predicts the first token
                    assert tokenizer.decode(ids[1:-1], skip_special_tokens=False) == document.text
                    assert columns.id[index].tobytes() == document_id(source.name, document)
                    assert columns.file_name(index) == document.file
                    assert columns.position[index] == document.position
    assert len(Dataset(built.dir / "prose" / "train").shards) >= 3


@pytest.mark.parametrize("workers", thinned([2, 8], keep=[2]))
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    built: DataSettings, tmp_path: Path, text_folder: Path, workers: int
) -> None:
    """A build by this process and one by any number of others write the same files."""
    make(settings_for(tmp_path / "data", text_folder, workers=workers), on="processes")
    assert contents(tmp_path / "data") == contents(built.dir)


def test_a_second_build_changes_nothing(built: DataSettings) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.dir.rglob("*.*")}
    report = make(built)
    assert [line.split(": ")[1] for line in report] == ["already there"] * 3
    assert {path: path.stat().st_mtime_ns for path in built.dir.rglob("*.*")} == before


@pytest.mark.parametrize("rounds", thinned([1, 3], keep=[1]))
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    built: DataSettings, tmp_path: Path, text_folder: Path, rounds: int
) -> None:
    settings = settings_for(tmp_path / "data", text_folder, workers=2)
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from bigtrain.config.data_settings import DataSettings\n"
        "from bigtrain.data import build_datasets\n"
        "import importlib\n"
        "if __name__ == '__main__':\n"
        "    for name in ('corpus', 'jsonl'):\n"
        "        importlib.import_module(f'bigtrain.data.build.corpus.{name}').PIECE_BYTES = 20_000\n"
        "    settings = DataSettings.model_validate_json(Path(sys.argv[1]).read_text())\n"
        f"    build_datasets(settings, vocab_size={VOCABULARY}, report=lambda line: None)\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "settings.json")]
    moments = random.Random(0)
    killed = 0
    for _ in range(rounds):
        for path in contents(tmp_path / "data") if (tmp_path / "data").exists() else ():
            (tmp_path / "data" / path).unlink()
        for _ in range(2):
            process = subprocess.Popen(command)
            wanted = count_files(tmp_path) + moments.randint(1, 12)
            while process.poll() is None and count_files(tmp_path) < wanted:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        subprocess.run(command, check=True)
        assert contents(tmp_path / "data") == contents(built.dir)
    assert killed >= 2 * rounds - 1


def count_files(folder: Path) -> int:
    """Files below a folder in which another process writes."""
    return sum(len(files) for _, _, files in os.walk(folder))


def test_a_build_continues_after_the_last_finished_shard(
    built: DataSettings, tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigtrain.data.build import build_source

    settings = settings_for(tmp_path / "data", text_folder)
    real = build_source.ShardWriter.finish
    calls = iter(range(100))

    def finish_four_times(writer: build_source.ShardWriter) -> object:
        if next(calls) >= 4:
            raise KeyboardInterrupt
        return real(writer)

    monkeypatch.setattr(build_source.ShardWriter, "finish", finish_four_times)
    with pytest.raises(KeyboardInterrupt):
        make(settings)
    monkeypatch.undo()
    kept = {path: path.stat().st_mtime_ns for path in (settings.dir / "prose").rglob("0000[01].tok")}
    assert len(kept) == 4
    assert "prose: continuing after 2 finished shard(s)" in make(settings)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert contents(settings.dir) == contents(built.dir)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"tokenizer": TokenizerSettings(vocab_size=301)}, ("vocab_size 300", "vocab_size 301")),
        ({"shard_tokens": 20_001}, ("shard_tokens 20000", "shard_tokens 20001")),
        ({"validation": ValidationSettings(fraction=0.2)}, ("fraction 0.1", "fraction 0.2")),
    ],
)
def test_other_settings_over_finished_data_are_refused_with_both_values(
    built: DataSettings, changes: dict[str, object], parts: tuple[str, ...]
) -> None:
    before = contents(built.dir)
    other = built.model_copy(update=changes)
    for use in (make, lambda settings: open_datasets(settings, model_vocab_size=VOCABULARY)):
        with pytest.raises(BigtrainError) as error:
            use(other)
        for part in (*parts, "fix:"):
            assert part in str(error.value)
    assert contents(built.dir) == before


def test_another_source_under_a_name_that_is_taken_is_refused(built: DataSettings, tmp_path: Path) -> None:
    other = jsonl_source(write_jsonl(tmp_path / "other.jsonl", ["text"]), name="lines")
    with pytest.raises(BigtrainError, match=r"(?s)path .*lines\.jsonl.*path .*other\.jsonl"):
        make(built.model_copy(update={"sources": [other]}))


def test_a_corpus_that_changed_after_the_build_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", sentences(60, 3))
    settings = data_settings(tmp_path / "data", jsonl_source(path))
    make(settings)
    before = contents(settings.dir)
    write_jsonl(path, sentences(61, 4))
    with pytest.raises(BigtrainError, match="the corpus has changed"):
        make(settings)
    assert contents(settings.dir) == before


def test_a_corpus_that_changed_during_the_build_starts_its_source_over(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_jsonl(path, sentences(200, 5))
    with path.open("a") as file:
        file.write("{broken\n")
    settings = data_settings(tmp_path / "data", jsonl_source(path), shard_tokens=5_000)
    tokenizer = data_settings(settings.dir, jsonl_source(write_jsonl(tmp_path / "y.jsonl", sentences(99, 6)), "y"))
    make(tokenizer)
    with pytest.raises(BigtrainError, match=r"x\.jsonl:201 is not JSON"):
        make(settings)
    assert list((settings.dir / "lines").glob("progress-*"))
    write_jsonl(path, sentences(150, 7))
    assert any("starting over" in line for line in make(settings))
    fresh = settings.model_copy(update={"dir": tmp_path / "fresh"})
    make(tokenizer.model_copy(update={"dir": fresh.dir}))
    make(fresh)
    assert contents(settings.dir) == contents(fresh.dir)


def test_a_foreign_file_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    settings = data_settings(tmp_path, jsonl_source(write_jsonl(tmp_path / "x.jsonl", sentences(60, 3))))
    (tmp_path / "lines" / "train").mkdir(parents=True)
    (tmp_path / "lines" / "notes.md").write_text("mine")
    make(settings)
    assert (tmp_path / "lines" / "notes.md").read_text() == "mine"
    assert (tmp_path / "x.jsonl").exists()


def test_source_and_documentation_of_a_file_fall_on_the_same_side(tmp_path: Path) -> None:
    """With two sources over the same files, what one holds out the other does too."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index, text in enumerate(sentences(100, 8)):
        (folder / f"{index}.txt").write_text(text)
    sources = [SourceSettings(name=name, kind="text", path=str(folder)) for name in ("one", "two")]
    make(data_settings(tmp_path / "data", *sources))
    held_out = []
    for source in sources:
        (shard,) = Dataset(tmp_path / "data" / source.name / "validation").shards
        held_out.append([shard.documents.file_name(i) for i in range(shard.record.documents)])
    assert held_out[0] == held_out[1]
    assert held_out[0]


def test_a_given_tokenizer_is_used_and_its_change_noticed(built: DataSettings, tmp_path: Path) -> None:
    given = tmp_path / "given" / "tokenizer.json"
    given.parent.mkdir()
    given.write_bytes((built.dir / "tokenizer.json").read_bytes())
    path = write_jsonl(tmp_path / "x.jsonl", sentences(60, 3))
    settings = data_settings(tmp_path / "data", jsonl_source(path), tokenizer=TokenizerSettings(path=given.parent))
    make(settings)
    assert (settings.dir / "tokenizer.json").read_bytes() == given.read_bytes()
    make(settings)
    given.write_text(given.read_text().replace('"ignore_merges":false', '"ignore_merges":true'))
    with pytest.raises(BigtrainError, match="another tokenizer hash"):
        make(settings)


def test_a_tokenizer_is_trained_evenly_and_within_its_budget(tmp_path: Path) -> None:
    """A tokenizer is trained evenly on the training splits of all sources, within its budget of bytes."""
    from bigtrain.data.build.build_tokenizer import _training_texts
    from bigtrain.data.build.execute import Inline

    big = jsonl_source(write_jsonl(tmp_path / "big.jsonl", sentences(400, 9)), "big")
    small = jsonl_source(write_jsonl(tmp_path / "small.jsonl", [f"small {i} " * 20 for i in range(40)]), "small")
    settings = data_settings(tmp_path / "data", big, small, tokenizer=TokenizerSettings(train_bytes=60_000))
    with Inline() as executor:
        corpora = {source.name: open_corpus(source) for source in settings.sources}
        texts = list(_training_texts(settings, corpora, {name: Filters() for name in corpora}, executor))
    given = {name: [d for d in read_documents(s) if d.text in set(texts)] for name, s in (("b", big), ("s", small))}
    assert 60_000 <= sum(len(text) for text in texts) < 62_000
    assert not any(is_held_out(d.file, d.position, 0.1) for documents in given.values() for d in documents)
    everything_small = [d for d in read_documents(small) if not is_held_out(d.file, d.position, 0.1)]
    assert given["s"] == everything_small  # it is exhausted, the rest comes from the other


def test_a_vocabulary_larger_than_the_embedding_stops_before_writing(tmp_path: Path, built: DataSettings) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", sentences(60, 3))
    for tokenizer in (TokenizerSettings(vocab_size=300), TokenizerSettings(path=built.dir)):
        settings = data_settings(tmp_path / "data", jsonl_source(path), tokenizer=tokenizer)
        with pytest.raises(BigtrainError, match=r"(?s)model\.vocab_size 299.*300"):
            make(settings, vocab_size=299)
        assert [p.name for p in settings.dir.iterdir()] == [".build.lock"]
    with pytest.raises(BigtrainError, match=r"model\.vocab_size 299"):
        make(built, vocab_size=299)


def test_a_source_without_text_is_refused(tmp_path: Path, built: DataSettings) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": " "}\n')
    settings = data_settings(
        tmp_path / "data", jsonl_source(tmp_path / "x.jsonl"), tokenizer=TokenizerSettings(path=built.dir)
    )
    with pytest.raises(BigtrainError, match="no text to train on"):
        make(settings)


def test_a_second_build_in_one_folder_waits_and_finds_the_work_done(built: DataSettings) -> None:
    """A second build in one folder reports that it waits, and then finds the work done."""
    from bigtrain.data.build.build import _exclusive

    said: list[str] = []
    with ThreadPoolExecutor(1) as elsewhere:
        with _exclusive(built.dir, said.append):
            second = elsewhere.submit(build_datasets, built, vocab_size=VOCABULARY, report=said.append)
            while not said:
                time.sleep(0.01)
            assert "waiting: another process is building" in said[0] and not second.done()
        second.result(timeout=120)


def test_a_worker_that_is_killed_is_a_clear_error(tmp_path: Path) -> None:
    from bigtrain.data.build.execute import FailurePolicy, Processes

    with (
        Processes(1, FailurePolicy(losses=2)) as workers,
        pytest.raises(BigtrainError, match=r"(?s)a worker process of the build died.*status 9"),
    ):
        list(workers.map_in_order(os._exit, [9, 9, 9, 9]))


def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from bigtrain.data.build.execute import Processes\n"
        "def pid(_):\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    with Processes(1) as workers:\n"
        "        print(next(workers.map_in_order(pid, [0, 0, 0])), flush=True)\n"
        "        time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    assert Path(f"/proc/{worker}").exists()
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.05)


def test_token_ids_are_as_wide_as_the_vocabulary_needs() -> None:
    from bigtrain.data.build.tokenization import token_dtype

    assert token_dtype(65536) == np.dtype("<u2")
    assert token_dtype(65537) == np.dtype("<u4")
