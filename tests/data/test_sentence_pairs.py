"""Promises of the packings of sentence pairs, and of what the loader says of their segments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings, ValidationSettings
from bigtrain.data import held_out_packing, open_datasets
from bigtrain.data.batch.assemble import assemble
from bigtrain.data.batch.packing import IndexedPacking
from bigtrain.data.build.pack import ShardPack, pack_shard
from bigtrain.objective import PAIR_TOKENS
from tests.data.helpers import VOCABULARY, data_settings, jsonl_source, make, sentences, write_jsonl

shards = st.tuples(
    st.lists(st.integers(1, 120), min_size=1, max_size=40), st.integers(0, 2**32), st.integers(8, 64), st.booleans()
)


def pack_of(lengths: list[int], seed: int, sequence_length: int, exchanged: bool) -> tuple[ShardPack, np.ndarray]:
    """A pack of documents of random sentences, and whether each token ends one."""
    offset = np.concatenate(([0], np.cumsum(lengths)))
    ends = np.random.default_rng(seed).random(int(offset[-1])) < 0.15
    packing = "next_sentence_pairs" if exchanged else "sentence_pairs"
    return pack_shard.pack_shard(offset, packing, sequence_length, ends), ends


def rows_of(pack: ShardPack) -> list[list[tuple[int, int]]]:
    spans = list(zip(pack.start[:-1].tolist(), pack.start[1:].tolist(), strict=True))
    return [
        [spans[i] for i in pack.span[begin:end]] for begin, end in zip(pack.first[:-1], pack.first[1:], strict=True)
    ]


@given(shards)
def test_every_token_is_in_one_row_with_space_for_special_tokens(shard: tuple[list[int], int, int, bool]) -> None:
    lengths, seed, sequence_length, exchanged = shard
    pack, _ = pack_of(lengths, seed, sequence_length, exchanged)
    offset = np.concatenate(([0], np.cumsum(lengths)))
    assert pack.fault(offset, sequence_length) is None
    for row in rows_of(pack):
        assert 1 <= len(row) <= 2
        assert sum(end - start for start, end in row) <= sequence_length - PAIR_TOKENS


@given(shards)
def test_segments_end_with_sentences_where_a_row_has_space_for_one(shard: tuple[list[int], int, int, bool]) -> None:
    """A segment ends with a sentence, a document or a full row; or its chunk was one sentence, cut in the middle."""
    lengths, seed, sequence_length, _ = shard
    pack, ends = pack_of(lengths, seed, sequence_length, False)
    document_ends = set(np.cumsum(lengths).tolist())
    for row in rows_of(pack):
        start, end = row[0][0], row[-1][1]
        inside = [place + 1 for place in range(start, end) if ends[place] and place + 1 < end]
        assert end in document_ends or ends[end - 1] or end - start == sequence_length - PAIR_TOKENS
        if len(row) == 2:
            assert row[0][1] == row[1][0]
            assert row[0][1] in inside or (not inside and row[0][1] == start + (end - start) // 2)


def test_half_of_the_rows_exchange_their_second_segments() -> None:
    """A second segment follows the first in its document in half of the rows, and no document exchanges with itself."""
    lengths = np.random.default_rng(1).integers(20, 200, 3000).tolist()
    pack, _ = pack_of(lengths, 2, 64, True)
    document = np.repeat(np.arange(len(lengths)), lengths)
    pairs = [row for row in rows_of(pack) if len(row) == 2]
    follow = [one[1] == other[0] and document[one[0]] == document[other[0]] for one, other in pairs]
    assert abs(sum(follow) / len(pairs) - 0.5) < 0.01
    for (one, other), follows in zip(pairs, follow, strict=True):
        assert follows == (document[one[0]] == document[other[0]])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    texts = [". ".join(text.split(" ", 3)) for text in sentences(300, 5)]
    settings = data_settings(
        folder / "data",
        jsonl_source(write_jsonl(folder / "texts.jsonl", texts)),
        packing="next_sentence_pairs",
        sequence_length=64,
        validation=ValidationSettings(fraction=0.2),
    )
    make(settings)
    return folder


def test_the_loader_says_which_segments_follow_each_other(built: Path) -> None:
    """`follows` is true where the second segment goes on with the document of the first, at its very next token."""
    settings = data_settings(
        built / "data",
        SourceSettings(name="lines", kind="jsonl", path=str(built / "texts.jsonl")),
        packing="next_sentence_pairs",
        sequence_length=64,
        validation=ValidationSettings(fraction=0.2),
    )
    for split in ("train", "validation"):
        (dataset,) = open_datasets(settings, model_vocab_size=VOCABULARY, split=split)
        packing = held_out_packing(settings, dataset)
        assert isinstance(packing, IndexedPacking) and packing.rows > 10
        numbers = np.arange(packing.rows + 1)  # and a row of padding
        rows = assemble([packing], np.zeros_like(numbers), numbers)
        spans = packing.spans(numbers)
        assert rows.follows is not None and len(rows.follows) == len(rows.boundaries) - 1
        ends = {int(end) for shard in dataset.shards for end in shard.documents.offset}
        wanted = set()
        for row in range(packing.rows):
            own = np.flatnonzero(spans.row == row)
            if len(own) == 2:
                one, other = own
                border = int(spans.start[one] + spans.length[one])
                if spans.start[other] == border and border not in ends:
                    wanted.add(row * 64 + int(spans.offset[other]))
        assert set(rows.boundaries[:-1][rows.follows].tolist()) == wanted
        assert 0.25 < len(wanted) / packing.rows < 0.75


def test_documents_of_one_sentence_make_no_pairs(tmp_path: Path) -> None:
    source = jsonl_source(write_jsonl(tmp_path / "texts.jsonl", ["one sentence alone"] * 20))
    settings = data_settings(tmp_path / "data", source, packing="sentence_pairs", sequence_length=32)
    with pytest.raises(BigtrainError) as error:
        make(settings)
    assert "have no two sentences" in error.value.what and "data.packing best_fit" in str(error.value.fix)
