"""What every objective does, and the one that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings, ObjectiveChoice
from bigtrain.objective.causal import Causal
from bigtrain.objective.denoising import Denoising
from bigtrain.objective.fill_in_the_middle import FillInTheMiddle
from bigtrain.objective.labelled import Chat, Classification, DocumentInputs, ExtractiveQa, TokenClassification
from bigtrain.objective.masked import Masked
from bigtrain.objective.mixture import ObjectiveMixture, common_lengths
from bigtrain.objective.permutation import Permuted
from bigtrain.objective.prefix import Prefix
from bigtrain.objective.randomness import U64
from bigtrain.objective.rows import Bools, PreparedRows, TokenRows
from bigtrain.objective.sentence_pairs import SentencePairs
from bigtrain.objective.span_corruption import SpanCorruption, span_lengths
from bigtrain.objective.translation import Translation, side_length

FIM_TOKENS = {
    "starcoder": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "codellama": ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", "\u2581<EOT>"),
    "deepseek": ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    "qwen": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
}
"""What stands before prefix, suffix and middle, and after the middle where that is not the end of a text."""
SHOWN_TOKENS = 8
"""So many special tokens are listed in a message, at most."""


class Objective(Protocol):
    """What is learned from rows. It has no state, and its arrays are shared by threads."""

    @property
    def changes_inputs(self) -> bool:
        """Whether the inputs are other than the tokens of the data, so that they have a digest of their own."""

    @property
    def reads_next_ids(self) -> bool:
        """Whether it needs `TokenRows.next_ids`: the loader copies them for it."""

    @property
    def causal(self) -> bool:
        """Whether the label at a position is of a later token, as a decoder needs it."""

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """The inputs and labels of rows. Row i of the result is that of row i alone.

        Args:
            rows: R rows.
            keys: [R], from the addresses of the rows: all randomness follows from them.
        """


@dataclass(frozen=True)
class ObjectiveVocabulary:
    """What objectives know of a tokenizer."""

    special: Mapping[str, int]
    """The ids of special tokens."""
    ordinary: Bools
    """[V], whether an id is of a token that is not special."""
    begins_word: Bools
    """[V], whether a token begins a word."""
    end_of_text: int
    """The token that ends documents."""
    begin_of_text: tuple[int, ...] = ()
    """What documents begin with."""
    ends_sentence: Bools | None = None
    """[V], whether a token ends a sentence. None: no token does."""
    separator: int | None = None
    """What stands between the two texts of a document. None: nothing does."""

    def id_of(self, token: str, key: str) -> int:
        """The id of a special token that the settings name at a key. Raises BigtrainError where there is none."""
        if token not in self.special:
            shown = ", ".join(list(self.special)[:SHOWN_TOKENS]) or "none"
            raise BigtrainError(
                f"{key}: the tokenizer has no special token {token!r}",
                found=f"special tokens {shown}",
                wanted=f"a special token {token!r} in the tokenizer of the data",
                fix=f"name one of these at {key}; or add {token!r} to data.tokenizer.additional_special_tokens and "
                "build the data in another data.dir",
            )
        return self.special[token]


def row_lengths(settings: ObjectiveChoice, length: int, *, reads_pairs: bool = False) -> tuple[int, int | None]:
    """The tokens of a row that a model predicts from, and of its encoder's row where it is an encoder-decoder.

    Args:
        settings: the section `objective`.
        length: tokens of a row of the data.
        reads_pairs: whether the model is an encoder-decoder.
    """
    if settings.mixed:
        return common_lengths([row_lengths(component, length) for component in settings.mixed])
    if settings.name == "translation":
        return 2 * (side_length(length, settings.pair_share),)
    if settings.name == "span_corruption":
        encoder, decoder = span_lengths(length, settings.noise_density, settings.mean_span_length)
        return decoder, encoder
    return length, length if reads_pairs or settings.reads_pairs else None


def make_objective(
    settings: ObjectiveChoice,
    vocabulary: ObjectiveVocabulary | None,
    length: int | None = None,
    model: ModelSettings | None = None,
) -> Objective:
    """The objective of the settings.

    Args:
        settings: the section `objective`.
        vocabulary: of the data; the causal objective needs none.
        length: tokens of a row of the data; only a mixture needs it.
        model: that learns; only the objectives with a head of their own need it.

    Raises:
        BigtrainError: the tokenizer lacks a token that the objective needs.
    """
    if settings.name == "causal":
        return Causal()
    assert vocabulary is not None
    if settings.mixed:
        assert length is not None
        decoder, encoder = row_lengths(settings, length)
        return ObjectiveMixture(
            [make_objective(component, vocabulary) for component in settings.mixed],
            [component.weight for component in settings.mixed],
            length=decoder,
            encoder_length=encoder,
            padding=vocabulary.end_of_text,
            in_an_order=bool(settings.orders),
        )
    if settings.task_head != "none":
        assert model is not None
        return _labelled(settings, vocabulary, model)
    return _MADE_BY[settings.name](settings, vocabulary)


def _fill_in_the_middle(settings: ObjectiveChoice, vocabulary: ObjectiveVocabulary) -> FillInTheMiddle:
    names = FIM_TOKENS[settings.fim_tokens]
    ids = [vocabulary.id_of(name, f"objective.fim_tokens {settings.fim_tokens}") for name in names]
    prefix, suffix, middle, *end = ids
    return FillInTheMiddle(
        prefix,
        suffix,
        middle,
        end_id=end[0] if end else vocabulary.end_of_text,
        end_of_text_id=vocabulary.end_of_text,
        begin_ids=vocabulary.begin_of_text,
        rate=settings.fim_rate,
        spm_rate=settings.fim_spm_rate,
    )


def _labelled(settings: ObjectiveChoice, vocabulary: ObjectiveVocabulary, model: ModelSettings) -> Objective:
    inputs = DocumentInputs(
        end_of_text_id=vocabulary.end_of_text,
        separator_id=vocabulary.separator if model.type_vocab_size > 1 else None,
        start_id=vocabulary.id_of(settings.decoder_start_token, "objective.decoder_start_token")
        if model.reads_pairs
        else None,
    )
    if settings.name == "classification":
        return Classification(inputs, at_end=model.architecture != "encoder")
    return TokenClassification(inputs) if settings.name == "token_classification" else ExtractiveQa(inputs)


def _require_ordinary(vocabulary: ObjectiveVocabulary) -> None:
    if not np.any(vocabulary.ordinary):
        raise BigtrainError(
            "the tokenizer has no tokens that could be predicted",
            found=f"{len(vocabulary.ordinary)} tokens, all of them special",
            fix="use another tokenizer",
        )


def _permutation(settings: ObjectiveChoice, vocabulary: ObjectiveVocabulary) -> Permuted:
    _require_ordinary(vocabulary)
    return Permuted(settings.partial_prediction, settings.max_span_length, vocabulary.ordinary)


def _masked(settings: ObjectiveChoice, vocabulary: ObjectiveVocabulary) -> Masked:
    mask_id = vocabulary.id_of(settings.mask_token, "objective.mask_token")
    _require_ordinary(vocabulary)
    return Masked(
        mask_id=mask_id,
        rate=settings.mask_rate,
        mask_share=settings.mask_token_share,
        random_share=settings.random_token_share,
        ordinary=vocabulary.ordinary,
        begins_word=vocabulary.begins_word if settings.whole_words else None,
        pairs=_sentence_pairs(settings, vocabulary),
    )


def _sentence_pairs(settings: ObjectiveChoice, vocabulary: ObjectiveVocabulary) -> SentencePairs | None:
    if settings.sentence_task == "none":
        return None
    return SentencePairs(
        cls_id=vocabulary.id_of(settings.cls_token, "objective.cls_token"),
        sep_id=vocabulary.id_of(settings.sep_token, "objective.sep_token"),
        orders=settings.sentence_task == "sentence_order",
    )


def _span_corruption(settings: ObjectiveChoice, vocabulary: ObjectiveVocabulary) -> SpanCorruption:
    name = settings.sentinel_tokens.format
    sentinels = [vocabulary.id_of(name(0), "objective.sentinel_tokens")]
    while name(len(sentinels)) in vocabulary.special:
        sentinels.append(vocabulary.special[name(len(sentinels))])
    return SpanCorruption(
        density=settings.noise_density,
        mean=settings.mean_span_length,
        sentinels=sentinels,
        start_id=vocabulary.id_of(settings.decoder_start_token, "objective.decoder_start_token"),
        end_of_text_id=vocabulary.end_of_text,
        at_end=settings.noise_at_end,
    )


def _denoising(settings: ObjectiveChoice, vocabulary: ObjectiveVocabulary) -> Denoising:
    known = vocabulary.ends_sentence
    return Denoising(
        mask_id=vocabulary.id_of(settings.mask_token, "objective.mask_token"),
        start_id=vocabulary.id_of(settings.decoder_start_token, "objective.decoder_start_token"),
        end_of_text_id=vocabulary.end_of_text,
        infilling_rate=settings.infilling_rate,
        mean=settings.infilling_length,
        permutation_rate=settings.sentence_permutation_rate,
        masking_rate=settings.token_masking_rate,
        deletion_rate=settings.token_deletion_rate,
        rotation_rate=settings.rotation_rate,
        ends_sentence=np.zeros(len(vocabulary.ordinary), np.bool_) if known is None else known,
    )


def _translation(settings: ObjectiveChoice, vocabulary: ObjectiveVocabulary) -> Translation:
    return Translation(
        start_id=vocabulary.id_of(settings.decoder_start_token, "objective.decoder_start_token"),
        end_of_text_id=vocabulary.end_of_text,
        share=settings.pair_share,
    )


_MADE_BY: Mapping[str, Callable[[ObjectiveChoice, ObjectiveVocabulary], Objective]] = {
    "chat": lambda settings, vocabulary: Chat(),
    "denoising": _denoising,
    "fill_in_the_middle": _fill_in_the_middle,
    "masked": _masked,
    "permutation": _permutation,
    "prefix": lambda settings, _: Prefix(settings.prefix_min_share, settings.prefix_max_share),
    "span_corruption": _span_corruption,
    "translation": _translation,
}
