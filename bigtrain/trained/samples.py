"""Samples: how the model continues the starts of the same held-out documents at each evaluation.

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

from tokenizers import Tokenizer

from bigtrain.config import Settings
from bigtrain.data import Dataset, decode_ids

if TYPE_CHECKING:
    from bigtrain.trained.text_model import TextModel

PROMPT_TOKENS = 16
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


def prompts(held_out: Sequence[Dataset], tokenizer: Tokenizer, number: int, longest: int) -> list[tuple[str, str]]:
    """Source and start of held-out documents: the first document of each source, then the second, ...

    Args:
        held_out: one dataset a source.
        tokenizer: theirs.
        number: how many; fewer where there are not as many.
        longest: the context of the model in tokens, of which a prompt takes at most half.
    """
    found: list[tuple[str, str]] = []
    for row in count():
        of_row = [
            (dataset.name, beginning)
            for dataset in held_out
            if (beginning := _beginning(dataset, tokenizer, row, min(PROMPT_TOKENS, longest // 2))) is not None
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


def _beginning(dataset: Dataset, tokenizer: Tokenizer, number: int, tokens: int) -> str | None:
    """The text of the first tokens of a document of the first shard; None where there is no such document."""
    shard = next((shard for shard in dataset.shards if shard.record.tokens), None)
    if shard is None or number + 1 >= len(shard.documents.offset):
        return None
    begin, end = (int(offset) for offset in shard.documents.offset[number : number + 2])
    return decode_ids(tokenizer, shard.slice(begin, min(begin + tokens, end)).tolist())
