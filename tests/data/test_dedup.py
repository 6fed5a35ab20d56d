"""Near-duplicates: the signatures against exact similarity, the components against datasketch, and whole builds."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import DataSettings
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data import build_datasets, open_datasets, read_funnels
from bigtrain.data.build.corpus import read_documents
from bigtrain.data.build.dedup.minhash import MinHash, _permutations
from bigtrain.data.build.selection import DuplicateMark
from bigtrain.data.build.shingles import hash_words, ngram_hashes, words_of
from tests.data.dedup_reference import Group, firsts, reference, searched, shuffled_firsts
from tests.data.helpers import contents, data_settings, jsonl_source, write_jsonl

VOCABULARY = 512
NEAR = MinHash(ngram=5, bands=14, rows=8)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """The documentation of 150 modules, each followed by a copy in which some of the words are others."""
    source = SourceSettings(name="docs", kind="python_stdlib", content="documentation")
    long = (d.text for d in read_documents(source) if 80 <= len(words_of(d.text)) <= 2_000)
    originals = list(islice(long, 150))
    chance = random.Random(5)
    return [text for original in originals for text in (original, edited(original, chance.random() * 0.1, chance))]


def edited(text: str, share: float, chance: random.Random) -> str:
    return " ".join("edited" if chance.random() < share else word for word in text.split())


def shingles(text: str, n: int = NEAR.ngram) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def keys_of(texts: Sequence[str], near: MinHash = NEAR) -> Group:
    """The keys of documents that are one group."""
    keys = np.array([near.keys(text) for text in texts], np.uint64).reshape(-1, near.bands)
    return np.arange(1, 2 * len(texts) + 1, dtype=np.uint64).reshape(-1, 2), keys


def test_words_are_those_of_the_text_whatever_its_layout_and_typography() -> None:
    assert words_of("The \ufb01rst—_second_,\n THIRD; 4.5") == ["the", "first", "second", "third", "4", "5"]
    assert words_of("Écrit l'été") == words_of("E\u0301CRIT l\u2019e\u0301te\u0301") == ["écrit", "l", "été"]
    assert words_of(" ... !\n") == []


@given(st.lists(st.sampled_from("abcd"), max_size=40), st.sets(st.integers(1, 9), max_size=4))
def test_n_grams_have_the_same_hash_exactly_when_they_are_equal(words: list[str], lengths: set[int]) -> None:
    known: dict[int, tuple[str, ...]] = {}
    found = dict(ngram_hashes(hash_words(words), lengths))
    assert list(found) == sorted(n for n in lengths if n <= len(words))
    for n, hashes in found.items():
        ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        assert len(set(hashes.tolist())) == len(set(ngrams))
        for ngram, value in zip(ngrams, hashes.tolist(), strict=True):
            assert known.setdefault(value, ngram) == ngram


def test_a_signature_holds_the_smallest_image_under_each_permutation(texts: list[str]) -> None:
    factors, summands = ([int(n) for n in numbers] for numbers in _permutations(112))
    assert all(factor % 2 for factor in factors) and len(set(factors)) == 112
    for text in [*texts[:6], "three words only", "word"]:
        words = hash_words(words_of(text))
        [(_, hashes)] = ngram_hashes(words, [min(5, len(words))])
        values = [int(value) >> 32 for value in hashes]
        wanted = [min((a * x + b) % 2**32 for x in values) for a, b in zip(factors, summands, strict=True)]
        signature = NEAR.signature(text)
        assert signature is not None and signature.tolist() == wanted


def test_keys_stay_what_they_are_for_data_are_built_with_them() -> None:
    keys = MinHash(ngram=3, bands=2, rows=3).keys("Readability counts. Special cases aren't special enough.")
    assert keys == [9595479758612121873, 11777404795128028497]
    more = MinHash(ngram=3, bands=3, rows=3).keys("Readability counts. Special cases aren't special enough.")
    assert more[:2] == keys  # more bands find what fewer find, and more


def test_similarity_is_estimated_within_its_error_and_as_by_datasketch(texts: list[str], require: Any) -> None:
    """The number of equal minima of k is binomial: a standard error of sqrt(s (1 - s) / k)."""
    require("datasketch")
    import datasketch

    near = MinHash(ngram=5, bands=64, rows=4)
    ours, theirs = [], []
    for one, other in zip(texts[:120:2], texts[1:120:2], strict=True):
        exact = jaccard(one, other)
        error = (exact * (1 - exact) / 256) ** 0.5
        if error == 0:
            continue
        a, b = near.signature(one), near.signature(other)
        assert a is not None and b is not None
        ours.append(((a == b).mean() - exact) / error)
        sketches = []
        for text in (one, other):
            sketch = datasketch.MinHash(num_perm=256)
            sketch.update_batch([" ".join(shingle).encode() for shingle in shingles(text)])
            sketches.append(sketch)
        theirs.append((sketches[0].jaccard(sketches[1]) - exact) / error)
    assert len(ours) >= 50
    for deviations in (ours, theirs):
        assert abs(np.mean(deviations)) < 4 / len(deviations) ** 0.5
        assert 0.7 < np.std(deviations) < 1.35


@pytest.mark.parametrize("bands, rows", [(14, 8), (20, 5), (5, 20), (112, 1)])
def test_components_are_those_of_datasketch_on_the_same_signatures(
    texts: list[str], tmp_path: Path, bands: int, rows: int, require: Any
) -> None:
    require("datasketch")
    import datasketch

    near = MinHash(ngram=5, bands=bands, rows=rows)
    lsh = datasketch.MinHashLSH(num_perm=bands * rows, params=(bands, rows))
    sketches = []
    for number, text in enumerate(texts):
        sketches.append(datasketch.MinHash(num_perm=bands * rows, hashvalues=near.signature(text), scheme="affine32"))
        lsh.insert(number, sketches[-1])
    pairs = [(number, other) for number, sketch in enumerate(sketches) for other in lsh.query(sketch)]
    wanted = firsts(pairs, len(texts))
    found = searched(tmp_path, [[keys_of(texts, near)]], bands, keys_at_once=1000, pairs_at_once=1000)
    assert found.marks == [DuplicateMark.NEAR * (first != number) for number, first in enumerate(wanted)]
    assert sum(map(bool, found.marks)) > 20


def test_only_what_is_well_above_the_threshold_is_found(texts: list[str]) -> None:
    """At 14 bands of 8 rows half of the pairs are found at 0.72; at 0.9 all but 4 in 10^4, at 0.3 1 in 10^3."""
    chance = random.Random(1)
    above = below = 0
    for original in texts[::2]:
        for share in (0.005, 0.01, 0.25, 0.5):
            copy = edited(original, share, chance)
            similar = jaccard(original, copy)
            found = any(one == other for one, other in zip(NEAR.keys(original), NEAR.keys(copy), strict=True))
            if similar > 0.93:
                above += 1
                assert found, similar
            elif similar < 0.25:
                below += 1
                assert not found, similar
    assert above > 100 and below > 100


SPREAD = np.uint64(0x9E3779B97F4A7C15)
documents = st.lists(st.tuples(*[st.integers(0, 9)] * 3), max_size=25)
sources_of_groups = st.lists(st.lists(documents, max_size=3), min_size=1, max_size=3)


@hypothesis_settings(max_examples=40)
@given(sources_of_groups, st.integers(0, 2), st.integers(10, 200), st.integers(10, 200))
def test_marks_equal_those_of_a_plain_search(
    sources: list[list[list[tuple[int, int, int]]]], bands: int, keys_at_once: int, pairs_at_once: int
) -> None:
    """Marks, counts and names of examples are those of one process, however the keys and pairs are divided.

    Of three keys the first is that of the text, and 0 is no key: such a document is removed, or has no words.
    """
    groups = [[keys_of_numbers(group, bands) for group in source] for source in sources]
    everything = [group for source in groups for group in source]
    wanted = reference(
        np.concatenate([np.empty((0, 2), np.uint64), *(hashes for hashes, _ in everything)]),
        np.concatenate([np.empty((0, bands), np.uint64), *(keys for _, keys in everything)]),
    )
    with tempfile.TemporaryDirectory() as folder:
        found = searched(Path(folder), groups, bands, keys_at_once=keys_at_once, pairs_at_once=pairs_at_once)
    assert found.marks == wanted.marks
    names = [
        f"s{number}:{index}:{position}"
        for number, source in enumerate(groups)
        for index, (hashes, _) in enumerate(source)
        for position in range(len(hashes))
    ]
    start = 0
    for source, marked in zip(groups, found.sources, strict=True):
        own = range(start, start + sum(len(hashes) for hashes, _ in source))
        assert marked.duplicates == sum(wanted.marks[n] != DuplicateMark.KEPT for n in own)
        shown = [[n for n in own if wanted.marks[n] == mark][:3] for mark in (DuplicateMark.EXACT, DuplicateMark.NEAR)]
        assert marked.originals == {str(n - start): names[wanted.kept[n]] for kind in shown for n in kind}
        start = own.stop


@hypothesis_settings(max_examples=12)
@given(st.randoms(use_true_random=False))
def test_a_damaged_file_of_a_search_is_made_again(chance: random.Random) -> None:
    """Whatever byte of which file is changed or cut off, a search that goes on finds the same."""
    numbers = [[tuple(chance.randrange(9) for _ in range(3)) for _ in range(20)] for _ in range(3)]
    groups = [keys_of_numbers(group, 2) for group in numbers]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = searched(folder, [groups], 2, keys_at_once=60)
        file = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".keys"))
        content = bytearray(file.read_bytes())
        place = chance.randrange(len(content))
        content[place] ^= 1 << chance.randrange(8)
        file.write_bytes(content[: place if chance.random() < 0.5 else None])
        assert searched(folder, [groups], 2, keys_at_once=60) == wanted


def keys_of_numbers(documents: list[tuple[int, int, int]], bands: int) -> Group:
    """The keys of documents that are given as small numbers, spread over all keys. Half a key may be another's."""
    numbers = np.array(documents, np.uint64).reshape(-1, 3)
    text, kept = numbers[:, :1], numbers[:, :1] > 0
    return np.hstack(((text % 3 + 1) * SPREAD * kept, text)), numbers[:, 1 : 1 + bands] * SPREAD * kept


@hypothesis_settings(max_examples=40)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=40), max_size=5), st.integers(1, 7)
)
def test_components_equal_those_of_a_plain_search(batches: list[list[tuple[int, int]]], parts: int) -> None:
    """The components equal those of a plain search, in whatever files the pairs are, for any number of tasks."""
    with tempfile.TemporaryDirectory() as folder:
        found = shuffled_firsts(Path(folder), batches, 60, parts)
    assert found == firsts([pair for batch in batches for pair in batch], 60)


@pytest.mark.parametrize("order", ["rising", "shuffled"])
def test_a_long_chain_is_one_component_in_few_rounds(tmp_path: Path, order: str) -> None:
    """A chain of 20,000 documents takes some log2 n rounds: 16 in order, 12 shuffled."""
    length = 20_000
    chain = np.arange(length) if order == "rising" else np.random.default_rng(3).permutation(length)
    pairs = list(zip(chain[1:].tolist(), chain[:-1].tolist(), strict=True))
    assert not any(shuffled_firsts(tmp_path, [pairs], length, 2))
    rounds = {path.name.split("-")[1] for path in (tmp_path / "job").glob("hook-*")}
    assert 5 < len(rounds) <= 20


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two corpora; the second has documents of the first again, the same and with a word changed."""
    folder = tmp_path_factory.mktemp("corpora")
    distinct = [f"{i} " + " ".join(f"w{i}x{j}" for j in range(120)) for i in range(60)]
    first = [*distinct[:40], "...", "!"]
    changed = [text.replace(f"w{i}x60", "other") for i, text in enumerate(distinct)]
    second = [distinct[3], changed[5], *distinct[40:], changed[41], "...", "two words", "Two, words!", distinct[5]]
    return write_jsonl(folder / "first.jsonl", first), write_jsonl(folder / "second.jsonl", second)


def settings_for(directory: Path, files: tuple[Path, Path], **changes: Any) -> DataSettings:
    sources = [jsonl_source(file, file.stem) for file in files]
    return data_settings(directory, *sources, **{"dedup": "near", "shard_tokens": 9_000, **changes})


def make(settings: DataSettings) -> list[str]:
    lines: list[str] = []
    build_datasets(settings, vocab_size=VOCABULARY, report=lines.append)
    return lines


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, corpora: tuple[Path, Path]) -> Iterator[DataSettings]:
    settings = settings_for(tmp_path_factory.mktemp("built") / "data", corpora)
    make(settings)
    yield settings


def test_the_funnel_separates_equal_from_nearly_equal_documents(built: DataSettings) -> None:
    """The funnel counts equal and nearly equal documents apart, and names the document that is kept."""
    funnels = read_funnels(built.dir)
    assert not funnels["first"].removed
    removed = {removal.reason.split()[0]: removal for removal in funnels["second"].removed}
    assert {reason: removal.documents for reason, removal in removed.items()} == {"the": 3, "nearly": 3}
    evidence = {
        example["position"]: example["evidence"] for removal in removed.values() for example in removal.examples
    }
    assert evidence == {
        0: "first:first.jsonl:3",
        1: "first:first.jsonl:5",
        22: "second:second.jsonl:3",
        23: "first:first.jsonl:40",
        25: "second:second.jsonl:24",
        26: "first:first.jsonl:5",
    }


def test_near_duplicates_do_not_depend_on_the_number_of_workers(
    built: DataSettings, tmp_path: Path, corpora: tuple[Path, Path]
) -> None:
    make(settings_for(tmp_path / "data", corpora, workers=3))
    assert contents(tmp_path / "data") == contents(built.dir)


@pytest.mark.parametrize("dedup", ["exact", {"method": "near", "bands": 20}, {"method": "near", "ngram": 3}])
def test_another_comparison_over_finished_data_is_refused(built: DataSettings, corpora: Any, dedup: Any) -> None:
    with pytest.raises(BigtrainError, match="another dedup"):
        open_datasets(settings_for(built.dir, corpora, dedup=dedup), model_vocab_size=VOCABULARY)


def test_what_a_source_is_weighted_and_licensed_with_changes_no_duplicates(built: DataSettings) -> None:
    sources = [source.model_copy(update={"weight": 1.0, "max_epochs": 2, "license": "MIT"}) for source in built.sources]
    assert open_datasets(built.model_copy(update={"sources": sources}), model_vocab_size=VOCABULARY)


KILLED = """
import sys
from bigtrain.config.data_settings import DataSettings
from bigtrain.data import build_datasets
if __name__ == "__main__":
    settings = DataSettings.model_validate_json(open(sys.argv[1]).read())
    build_datasets(settings, vocab_size=512, report=lambda line: print(line, flush=True))
"""


def test_a_build_killed_while_deduplicating_goes_on_to_the_same_bytes(
    built: DataSettings, tmp_path: Path, corpora: tuple[Path, Path]
) -> None:
    """A build that is killed while it looks for duplicates goes on at that source, to the same bytes."""
    settings = settings_for(tmp_path / "data", corpora)
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    (tmp_path / "build.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "build.py"), str(tmp_path / "settings.json")]
    for line in ("second: looking for duplicates", "tokenizer: "):  # training, or done if the first kill came late
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        seen = []
        for printed in process.stdout:
            seen.append(printed.strip())
            if seen[-1].startswith(line):
                time.sleep(0.05)
                process.kill()
        process.wait()
        assert any(printed.startswith(line) for printed in seen)
    assert "first: looking for duplicates" not in seen  # the second time
    make(settings)
    assert contents(settings.dir) == contents(built.dir)
