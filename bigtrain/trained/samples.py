"""Samples: how the model continues the starts of the same held-out documents at each evaluation. An encoder-decoder
reads starts that its objective has corrupted, always in the same way.

Rank 0 draws them from the weights in training, while the other ranks wait. It can where it has all weights: at ZeRO
stages 0 to 2, without tensor or sequence parallelism. Elsewhere every rank would have to take part in each token, and
a rank that chose another token would leave the others waiting for ever. For those runs `bigtrain report RUN
--samples N` draws samples from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from bigtrain.base import IGNORE_INDEX
from bigtrain.config import Settings
from bigtrain.data import Dataset, decode_ids, open_objective
from bigtrain.objective import TARGET, Objective, TokenRows

if TYPE_CHECKING:
    from bigtrain.trained.text_model import TextModel

PROMPT_TOKENS = 16
TOKENS_TO_READ = 48
"""Of an encoder-decoder's prompt, before they are corrupted."""
TEMPERATURE, TOP_P = 0.8, 0.95


@dataclass(frozen=True)
class Sample:
    """The start of a held-out document, and how a model continued it."""

    source: str
    prompt: str
    completion: str

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def one_rank_can_sample(settings: Settings) -> bool:
    """Whether every rank has the whole model."""
    engine = settings.engine
    return engine.zero_stage < 3 and engine.tensor_parallel_size == 1 and engine.sequence_parallel_size == 1


def prompts(
    held_out: Sequence[Dataset], settings: Settings, tokenizer: Tokenizer, number: int
) -> list[tuple[str, str]]:
    """Source and start of held-out documents: the first document of each source, then the second, ...

    Args:
        held_out: one dataset a source.
        settings: of the run. A prompt takes at most half of the model's context.
        tokenizer: that of the model's texts.
        number: how many; fewer where there are not as many.
    """
    pairs = settings.objective.reads_pairs
    corrupts = pairs and not any(dataset.summary.labels for dataset in held_out)
    objective = open_objective(settings.objective, settings.data, settings.model) if corrupts else None
    longest = min(TOKENS_TO_READ if pairs else PROMPT_TOKENS, settings.model.max_position_embeddings // 2)
    found: list[tuple[str, str]] = []
    for row in count():
        of_row = [
            (dataset.name, decode_ids(tokenizer, ids if objective is None else _corrupted(objective, ids, dataset)))
            for dataset in held_out
            if (ids := _beginning(dataset, row, longest)) is not None
        ]
        found += [(name, text) for name, text in of_row if text.strip()]
        if not of_row or len(found) >= number:
            break
    return found[:number]


def draw(model: TextModel, beginnings: Sequence[tuple[str, str]], tokens: int) -> list[Sample]:
    """Continue each text by at most `tokens` tokens; the same model gives the same texts."""
    from bigtrain.model import Sampling

    sampling = Sampling(temperature=TEMPERATURE, top_p=TOP_P)
    made = model.continue_texts([text for _, text in beginnings], max_new_tokens=tokens, sampling=sampling)
    return [
        Sample(source, text, continuation.completion)
        for (source, text), continuation in zip(beginnings, made.texts, strict=True)
    ]


def _corrupted(objective: Objective, ids: list[int], dataset: Dataset) -> list[int]:
    """What an encoder reads of a whole document of these tokens."""
    whole = np.array([ids if ids[-1] == dataset.end_of_text else [*ids, dataset.end_of_text]], np.int32)
    length = whole.shape[1]
    rows = TokenRows(
        input_ids=whole,
        next_ids=np.append(whole[:, 1:], [[IGNORE_INDEX]], axis=1).astype(np.int32),
        positions=np.arange(length, dtype=np.int32)[None],
        boundaries=np.array([0, length]),
        next_tokens=np.array([length - 1]),
        input_tokens=np.array([length]),
        turns=np.zeros(1, np.int64),
    )
    encoder = objective.prepare(rows, np.zeros(1, np.uint64)).encoder
    assert encoder is not None
    read: list[int] = encoder.input_ids[0, : encoder.boundaries[1]].tolist()
    return read


def _beginning(dataset: Dataset, number: int, tokens: int) -> list[int] | None:
    """The first tokens of a document of the first shard; None where there is no such document.

    Of a pair they are its source, and of a conversation what comes before the first answer: both have the same number.
    """
    shard = next((shard for shard in dataset.shards if shard.record.tokens), None)
    if shard is None or number + 1 >= len(shard.documents.offset):
        return None
    begin, end = (int(offset) for offset in shard.documents.offset[number : number + 2])
    end = min(begin + tokens, end)
    ids = shard.slice(begin, end)
    if dataset.summary.labels in ("parts", "turns"):
        ids = ids[: np.argmax([*(shard.labels[begin:end] == TARGET), True])]
    own: list[int] = ids.tolist()
    return own
