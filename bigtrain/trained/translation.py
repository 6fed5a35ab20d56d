"""Translations of held-out pairs: what a model writes for their sources, measured against their targets.

BLEU (Papineni et al., 2002) and chrF (Popović, 2015) are sacrebleu's, over all pairs of a source of data; ROUGE-L (Lin,
2004) is rouge-score's, the mean F1 of pairs. The baseline is the source text itself, which is right where names and
placeholders are all that there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from bigtrain.base import BigtrainError
from bigtrain.config import Settings
from bigtrain.data import Dataset, DataTokenizer, decode_ids
from bigtrain.model import LanguageModel, generate
from bigtrain.objective import SOURCE, TARGET

AT_ONCE = 64
"""Pairs that are translated together."""


@dataclass(frozen=True)
class HeldOutPair:
    """A pair of texts."""

    source_ids: list[int]
    """What the encoder reads, without the token that ends it."""
    source: str
    target: str


@dataclass(frozen=True)
class TranslationScores:
    """How well the held-out pairs of a source are translated, each score from 0 to 100."""

    source: str
    pairs: int
    bleu: float
    chrf: float
    rouge_l: float
    copy_bleu: float
    """Of the source text in place of a translation."""
    copy_chrf: float
    copy_rouge_l: float
    signature: str
    """Of sacrebleu: how BLEU was computed."""
    examples: list[tuple[str, str, str]]
    """Source, target and translation of the first pairs."""

    @property
    def scores(self) -> tuple[float, ...]:
        """BLEU, chrF and ROUGE-L of the translations, then of the copies."""
        return self.bleu, self.chrf, self.rouge_l, self.copy_bleu, self.copy_chrf, self.copy_rouge_l


def require_libraries() -> None:
    """Raise BigtrainError where a library is missing."""
    if missing := [name for name in ("sacrebleu", "rouge_score") if find_spec(name) is None]:
        raise BigtrainError(
            f"BLEU, chrF and ROUGE need the library {' and '.join(missing)}", fix="pip install 'bigtrain[translation]'"
        )


def pairs_of(dataset: Dataset, tokenizer: DataTokenizer) -> Iterator[HeldOutPair]:
    """The pairs of a labelled dataset, in order."""
    reading = tokenizer.for_reading()
    for shard in dataset.shards:
        offset = shard.documents.offset
        for first, end in zip(offset[:-1].tolist(), offset[1:].tolist(), strict=True):
            ids, labels = shard.tokens[first:end].astype(np.int64), shard.labels[first:end]
            source = ids[labels == SOURCE].tolist()
            target = ids[labels == TARGET][:-1].tolist()
            begun = len(tokenizer.begin_of_text.ids)
            yield HeldOutPair(source, decode_ids(reading, source[begun:]), decode_ids(reading, target))


def translated(
    model: LanguageModel, settings: Settings, tokenizer: DataTokenizer, pairs: Sequence[HeldOutPair]
) -> list[str]:
    """What a model writes for the sources of pairs, the likeliest token at a time."""
    reading, ends = tokenizer.for_reading(), tokenizer.end_id
    start = tokenizer.vocabulary().id_of(settings.objective.decoder_start_token, "objective.decoder_start_token")
    most = settings.model.max_position_embeddings
    texts: list[str] = []
    for first in range(0, len(pairs), AT_ONCE):
        read = [[*pair.source_ids, ends][-most:] for pair in pairs[first : first + AT_ONCE]]
        written = generate(
            model,
            [[start]] * len(read),
            read=read,
            max_new_tokens=most - 1,
            end_of_text=[ends],
            vocab_size=tokenizer.vocabulary_size,
        )
        for each in written:
            tokens = each.tokens[:-1] if each.ended == "end_of_text" else each.tokens
            texts.append(decode_ids(reading, tokens))
    return texts


def score(name: str, pairs: Sequence[HeldOutPair], translations: Sequence[str], shown: int = 3) -> TranslationScores:
    """BLEU and chrF of translations of a source's pairs, and of its texts as they are."""
    from sacrebleu.metrics import BLEU, CHRF

    targets, sources = [[pair.target for pair in pairs]], [plain(pair.source) for pair in pairs]
    bleu, chrf = BLEU(), CHRF()
    found = bleu.corpus_score(list(translations), targets).score
    signature = str(bleu.get_signature())
    return TranslationScores(
        source=name,
        pairs=len(pairs),
        bleu=found,
        chrf=chrf.corpus_score(list(translations), targets).score,
        rouge_l=rouge_l(targets[0], translations),
        copy_bleu=BLEU().corpus_score(sources, targets).score,
        copy_chrf=CHRF().corpus_score(sources, targets).score,
        copy_rouge_l=rouge_l(targets[0], sources),
        signature=signature,
        examples=[(pair.source, pair.target, text) for pair, text in zip(pairs, translations, strict=True)][:shown],
    )


def rouge_l(targets: Sequence[str], texts: Sequence[str]) -> float:
    """The mean F1 of the longest common subsequences of words, from 0 to 100."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = zip(targets, texts, strict=True)
    return 100 * sum(scorer.score(target, text)["rougeL"].fmeasure for target, text in pairs) / max(len(texts), 1)


class _Words:
    """Words in small letters, of any script: the library's own know a to z alone."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


def plain(source: str) -> str:
    """A source text without the mark of its target's language."""
    return source.split("<< ", 1)[1] if source.startswith(">>") and "<< " in source else source
