"""Results of pieces: what is written is read back, damage is found, and borders of shards follow from counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.data.build.build_source import _shard_jobs
from bigtrain.data.build.funnel import Funnel
from bigtrain.data.build.piece_results import KeepTokenized, PieceCounts, encoded, piece_name, read_piece
from bigtrain.data.build.progress import ProgressMeter
from bigtrain.data.build.tokenization import TokenizedPiece
from bigtrain.data.format.hashing import digest
from bigtrain.data.format.layout import SPLITS
from bigtrain.data.format.shards import TokenizedDocuments
from bigtrain.data.format.work_folder import WorkFolder

names = st.text(min_size=1, max_size=5)
document = st.tuples(
    st.lists(st.integers(0, 65535), min_size=1, max_size=9), st.binary(min_size=16, max_size=16), names
)


def of_documents(documents: list[tuple[list[int], bytes, str]]) -> TokenizedDocuments:
    tokens = [token for ids, _, _ in documents for token in ids]
    return TokenizedDocuments(
        tokens=np.array(tokens, "<u2"),
        lengths=[len(ids) for ids, _, _ in documents],
        ids=[identity for _, identity, _ in documents],
        files=[name for _, _, name in documents],
        positions=list(range(len(documents))),
        labels=np.array([token % 100 for token in tokens], np.int8),
        metadata=[{"url": name} for _, _, name in documents],
    )


def fields(documents: TokenizedDocuments) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(documents).items()}


@settings(max_examples=15)
@given(st.lists(document, max_size=6), st.lists(document, max_size=2))
def test_documents_come_back_as_they_were(train: list[Any], held_out: list[Any]) -> None:
    folder = WorkFolder.at("memory://pieces/round-trip")
    piece = TokenizedPiece(of_documents(train), of_documents(held_out), Funnel(tokens=5), 7, continued=True)
    folder.write(piece_name(12), encoded(piece))
    found = read_piece(folder, 12)
    assert fields(found["train"]) == fields(piece.train)
    assert fields(found["validation"]) == fields(piece.validation)
    assert found["train"].tokens.dtype == np.dtype("<u2")


class Counted:
    """Tokenizes nothing, and counts how often it was asked."""

    def __init__(self, made: TokenizedPiece) -> None:
        self.made, self.calls = made, 0

    def __call__(self, piece: Any) -> TokenizedPiece:
        self.calls += 1
        return self.made


@settings(max_examples=15)
@given(st.data())
def test_a_damaged_result_is_made_again(data: st.DataObject) -> None:
    """A result that lost a byte, or its end, in a loss of power is found, and made again with the same bytes."""
    piece = TokenizedPiece(
        of_documents([([1, 2, 3] * 50, bytes(16), "a")]), of_documents([]), Funnel(tokens=150), 7, continued=False
    )
    folder, work = WorkFolder.at("memory://pieces/damaged"), Counted(piece)
    folder.clear()
    keep = KeepTokenized(work, folder)  # type: ignore[arg-type]
    first = keep((3, None))  # type: ignore[arg-type]
    whole = folder.read(piece_name(3))
    assert keep((3, None)) == first and work.calls == 1  # type: ignore[arg-type]
    cut = data.draw(st.integers(0, len(whole) - 1))
    tokens = whole.index(piece.train.tokens.tobytes())
    position = data.draw(st.integers(tokens, tokens + 299))
    flipped = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
    for number, damaged in enumerate((whole[:cut], flipped), 2):
        folder.write(piece_name(3), damaged)
        with pytest.raises(BigtrainError, match="start the build again"):
            read_piece(folder, 3)
        assert keep((3, None)) == first and work.calls == number  # type: ignore[arg-type]
        assert folder.read(piece_name(3)) == whole


counts = st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=30)


@given(counts, st.integers(1, 20))
def test_a_shard_ends_with_the_group_that_reaches_its_size(pieces: list[tuple[int, bool]], size: int) -> None:
    """Borders, and the hash of the corpus at each, are those of adding pieces to a shard one by one."""
    kept = [
        PieceCounts(
            n, 1, continued and n + 1 < len(pieces), Funnel(tokens=tokens), dict.fromkeys(SPLITS, bytes([n]) * 16)
        )
        for n, (tokens, continued) in enumerate(pieces)
    ]
    meter = ProgressMeter("s", lambda line: None, extent=None, done=0)
    jobs = list(_shard_jobs(iter(kept), None, size, meter))
    wanted: list[tuple[list[int], int, str]] = []
    members: list[int] = []
    group: list[PieceCounts] = []
    tokens, groups, corpus = 0, 0, ""
    for piece in kept:
        members.append(piece.number)
        group.append(piece)
        tokens += piece.funnel.tokens
        if not piece.continued:
            ids = b"".join(each.ids[split] for split in SPLITS for each in group)
            corpus, groups, group = digest(bytes.fromhex(corpus) + ids, person=b"corpus").hex(), groups + 1, []
            if tokens >= size:
                wanted.append((members, groups, corpus))
                members, tokens = [], 0
    if members:
        wanted.append((members, groups, corpus))
    assert [(list(job.pieces), job.next_piece, job.corpus) for job in jobs] == wanted
    assert [job.index for job in jobs] == list(range(len(wanted)))


def test_a_piece_that_is_missing_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(BigtrainError, match="missing or damaged"):
        read_piece(WorkFolder.at(tmp_path), 0)
