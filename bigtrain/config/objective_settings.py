"""The section objective: what is learned from a sample."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bigtrain.config.section import OpenUnitInterval, Section, UnitInterval

OF_OBJECTIVE = {
    "classification": ("class_weights", "decoder_start_token"),
    "token_classification": ("class_weights",),
    "denoising": (
        "decoder_start_token",
        "infilling_length",
        "infilling_rate",
        "mask_token",
        "rotation_rate",
        "sentence_permutation_rate",
        "token_deletion_rate",
        "token_masking_rate",
    ),
    "masked": (
        "cls_token",
        "mask_rate",
        "mask_token",
        "mask_token_share",
        "random_token_share",
        "sentence_task",
        "sep_token",
        "whole_words",
    ),
    "fill_in_the_middle": ("fim_rate", "fim_spm_rate", "fim_tokens"),
    "permutation": ("max_span_length", "partial_prediction"),
    "prefix": ("prefix_max_share", "prefix_min_share"),
    "span_corruption": ("decoder_start_token", "mean_span_length", "noise_at_end", "noise_density", "sentinel_tokens"),
    "translation": ("decoder_start_token", "pair_share"),
}
"""The keys that are not for every objective."""
IN_AN_ORDER = ("permutation", "prefix")
"""The objectives that say in which order tokens see each other."""
THE_SAME_IN_EVERY_EPOCH = ("causal", "chat", "classification", "extractive_qa", "token_classification", "translation")
"""The objectives without anything random."""
ARCHITECTURES_OF = {
    "causal": ("decoder", "recurrent"),
    "chat": ("decoder", "recurrent"),
    "classification": ("decoder", "encoder", "encoder_decoder", "two_stream"),
    "denoising": ("encoder_decoder", "recurrent_encoder_decoder"),
    "extractive_qa": ("decoder", "encoder"),
    "fill_in_the_middle": ("decoder", "recurrent"),
    "masked": ("encoder",),
    "permutation": ("two_stream",),
    "prefix": ("decoder",),
    "span_corruption": ("encoder_decoder", "recurrent_encoder_decoder"),
    "token_classification": ("decoder", "encoder"),
    "translation": ("encoder_decoder", "recurrent_encoder_decoder"),
}
"""The architectures that learn by each objective."""
HEAD_OF = {
    "classification": "sequence_classification",
    "extractive_qa": "question_answering",
    "token_classification": "token_classification",
}
"""The `model.task_head` of the objectives whose labels are not tokens."""
LABELS_OF = {
    "chat": "turns",
    "classification": "classes",
    "extractive_qa": "answers",
    "token_classification": "tags",
    "translation": "parts",
}
"""What the labels in the data mean for the objectives that need some."""
METRICS_OF = {
    "classification": ("accuracy", "macro_f1", "matthews", "f1"),
    "extractive_qa": ("exact_match", "f1"),
    "token_classification": ("f1", "precision", "recall", "macro_f1", "accuracy"),
}
"""What an evaluation has beside the loss; of classes `f1` where there are two."""
WHAT_LABELS_ARE = {
    "answers": "answers to questions",
    "classes": "a class for each document",
    "parts": "pairs of texts",
    "tags": "tags of words",
    "turns": "conversations",
}
HOW_TO_LABEL = {
    "answers": "take a source of kind squad",
    "classes": "give it a label_field, or take a source of kind glue, super_glue or imdb",
    "parts": "give it a target_field, or take a source of kind gettext",
    "tags": "give it a tags_field, or take a source of kind conll",
    "turns": "take a source of kind chat",
}


class ObjectiveChoice(Section):
    """One objective, alone or in a mixture."""

    name: Literal[
        "causal",
        "chat",
        "classification",
        "denoising",
        "extractive_qa",
        "fill_in_the_middle",
        "masked",
        "mixture",
        "permutation",
        "prefix",
        "span_corruption",
        "token_classification",
        "translation",
    ] = "causal"
    """`causal`: each token predicts the next one (decoders). `chat`: the same, of what the assistant says in
    conversations. `classification`: the class of each document. `denoising`: a decoder writes the document that its
    encoder sees corrupted (encoder-decoders; Lewis et al., 2020). `extractive_qa`: where the answer to a question
    is in its context (Rajpurkar et al., 2016). `fill_in_the_middle`: as causal, with the middle of
    some documents after their end (Bavarian et al., 2022). `masked`: hidden tokens are predicted from both sides
    (encoders; Devlin et al., 2019). `mixture`: each sample by one of several objectives, see components.
    `permutation`: some tokens are predicted one after the other, in a random order (xlnet; Yang et al., 2019).
    `prefix`: as causal, after a start of each document that is seen from both sides (decoders; Raffel et al., 2020).
    `span_corruption`: a decoder writes the spans of tokens
    that its encoder does not see (encoder-decoders; Raffel et al., 2020). `token_classification`: the tag of each
    word. `translation`: a decoder writes the target of
    the source text that its encoder reads (encoder-decoders; Vaswani et al., 2017)."""
    class_weights: tuple[Annotated[float, Field(ge=0.0)], ...] = ()
    """classification, token_classification: what the loss of each class is multiplied by in training, in the order of
    the classes. The loss that is reported has no weights. Default: 1 for each."""
    cls_token: str = "[CLS]"
    """sentence_task: the special token that each pair begins with, at which the label of the pair is predicted."""
    decoder_start_token: str = "<pad>"
    """span_corruption, denoising, translation, and classification by encoder-decoders: the special token that each
    document of the decoder starts with. T5 takes its padding, and BART the token that ends documents."""
    fim_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """fill_in_the_middle: probability that a part of a document in a row is transformed. With data.packing best_fit
    nearly every part is a whole document."""
    fim_spm_rate: UnitInterval = 0.5
    """fill_in_the_middle: share of the transformed ones whose suffix comes before the prefix (SPM); else PSM."""
    fim_tokens: Literal["starcoder", "codellama", "deepseek", "qwen"] = "starcoder"
    """fill_in_the_middle: whose special tokens stand before prefix, suffix and middle. They have to be in the
    tokenizer; data.tokenizer.additional_special_tokens adds them to one that is trained."""
    infilling_length: Annotated[float, Field(ge=1.0, le=100.0)] = 3.0
    """denoising: mean of the Poisson distribution of the lengths of spans, in tokens. A span of no token is a mask that
    hides nothing."""
    infilling_rate: OpenUnitInterval = 0.3
    """denoising: share of the tokens that are in spans; one mask_token stands for each span."""
    mask_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """masked: probability that a token is to be predicted. ModernBERT was trained with 0.3."""
    mask_token: str = "[MASK]"
    """masked and denoising: the special token that stands for hidden ones.
    data.tokenizer.additional_special_tokens adds it to a tokenizer that is trained."""
    mask_token_share: UnitInterval = 0.8
    """masked: share of the tokens to predict that become mask_token."""
    max_span_length: Annotated[int, Field(ge=1, le=1000)] = 5
    """permutation: tokens in a row that are predicted, at most; each number up to it is as likely."""
    mean_span_length: Annotated[float, Field(ge=1.0, le=1000.0)] = 3.0
    """span_corruption: hidden tokens per span. Where a document has more spans than there are sentinel_tokens, it has
    fewer and longer ones instead."""
    noise_at_end: bool = False
    """span_corruption: hide the last tokens of a document, in one span: the sequential denoiser of UL2.
    mean_span_length then says how many documents of a row have one."""
    noise_density: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """span_corruption: share of the tokens that are hidden. The lengths of the rows of encoder and decoder follow from
    it, from mean_span_length and from data.sequence_length. In rows of many documents a little less is hidden."""
    pair_share: Annotated[float, Field(ge=0.1, le=1.0)] = 0.75
    """translation: tokens of a row of the encoder, and of one of the decoder, as a share of data.sequence_length. A row
    of the data holds sources and targets. Those of its last pairs that do not fit are not trained on."""
    partial_prediction: Annotated[int, Field(ge=2, le=1000)] = 6
    """permutation: one token in so many is predicted, the paper's K. The others are seen by all tokens."""
    prefix_max_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """prefix: the largest share of the tokens of a part of a document that its prefix has. One token at least is left
    to predict."""
    prefix_min_share: OpenUnitInterval = 0.0
    """prefix: the least share. Lengths of one token at least are uniform from this share to prefix_max_share. With 0.75
    for both it is the S-denoiser of UL2 (Tay et al., 2022)."""
    random_token_share: UnitInterval = 0.1
    """masked: share of the tokens to predict that become a random token. The others stay as they are."""
    rotation_rate: UnitInterval = 0.0
    """denoising: probability that a part of a document in a row begins at another of its tokens."""
    sentence_permutation_rate: UnitInterval = 1.0
    """denoising: probability that the sentences of a part of a document are in another order. A sentence ends with a
    token that has a full stop, a question mark, an exclamation mark or a line break."""
    sentence_task: Literal["none", "next_sentence", "sentence_order"] = "none"
    """masked: what is to be predicted of a pair of segments beside the hidden tokens. `next_sentence`: whether the
    second one follows the first (Devlin et al., 2019), with data.packing next_sentence_pairs. `sentence_order`: whether
    they are in their order (ALBERT; Lan et al., 2020), with data.packing sentence_pairs. model.sentence_head
    predicts it."""
    sentinel_tokens: Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$")] = "<extra_id_{}>"
    """span_corruption: the special tokens that stand for the first, second, ... span of a document, with {} for their
    numbers from 0. All that are in the tokenizer without a gap are used. data.tokenizer.additional_special_tokens adds
    them to a tokenizer that is trained; T5 has 100."""
    sep_token: str = "[SEP]"
    """sentence_task: the special token after each of the two segments."""
    token_deletion_rate: OpenUnitInterval = 0.0
    """denoising: probability that a token that no span hides is left out."""
    token_masking_rate: OpenUnitInterval = 0.0
    """denoising: probability that a token that no span hides becomes mask_token."""
    whole_words: bool = False
    """masked: choose whole words, not single tokens."""

    @property
    def mixed(self) -> tuple[ObjectiveComponent, ...]:
        """The objectives of a mixture; none of any other."""
        return ()

    @property
    def first(self) -> ObjectiveChoice:
        """The first objective of a mixture; of any other itself."""
        return self.mixed[0] if self.mixed else self

    @property
    def architectures(self) -> tuple[str, ...]:
        """The architectures that learn by it."""
        return ARCHITECTURES_OF[self.first.name]

    @property
    def reads_pairs(self) -> bool:
        """Whether it is for encoder-decoders alone."""
        return all("encoder_decoder" in architecture for architecture in self.architectures)

    @property
    def orders(self) -> frozenset[str]:
        """Those of its objectives that say in which order tokens see each other."""
        return frozenset(name for name in IN_AN_ORDER if name in {choice.name for choice in self.mixed or (self,)})

    @property
    def repeats(self) -> bool:
        """Whether it makes the same of a sample in every epoch."""
        return self.name in THE_SAME_IN_EVERY_EPOCH

    @property
    def labelled_share(self) -> float:
        """The share of tokens that are to be predicted, roughly."""
        if self.mixed:
            labelled = sum(component.weight * component.labelled_share for component in self.mixed)
            return labelled / sum(component.weight for component in self.mixed)
        return {"masked": self.mask_rate, "permutation": 1 / self.partial_prediction}.get(self.name, 1.0)

    @property
    def labels(self) -> str | None:
        """What the labels of its sources mean; None where it needs none."""
        return LABELS_OF.get(self.name)

    @property
    def task_head(self) -> str:
        """The `model.task_head` that it trains."""
        return HEAD_OF.get(self.name, "none")

    @model_validator(mode="after")
    def _choices_work(self) -> ObjectiveChoice:
        if self.mask_token_share + self.random_token_share > 1:
            raise ValueError(
                f"mask_token_share {self.mask_token_share} and random_token_share {self.random_token_share} are more "
                "than 1 together"
            )
        if self.prefix_min_share > self.prefix_max_share:
            raise ValueError(
                f"prefix_min_share {self.prefix_min_share} is more than prefix_max_share {self.prefix_max_share}; "
                "lower one or raise the other"
            )
        noises = [key for key in OF_OBJECTIVE["denoising"] if key.endswith("_rate")]
        if self.name == "denoising" and not any(getattr(self, key) for key in noises):
            raise ValueError(f"nothing is corrupted, because {', '.join(noises)} are 0; give one of them another value")
        for key in dict.fromkeys(key for keys in OF_OBJECTIVE.values() for key in keys):
            names = [name for name, keys in OF_OBJECTIVE.items() if key in keys]
            value = getattr(self, key)
            if self.name not in names and value != type(self).model_fields[key].default:
                raise ValueError(f"{key} {value} is for name {' or '.join(names)}, found name {self.name}; remove it")
        return self


class ObjectiveComponent(ObjectiveChoice):
    """One objective of a mixture."""

    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    """Its share of the samples, relative to the others."""

    @model_validator(mode="after")
    def _can_be_mixed(self) -> ObjectiveComponent:
        if self.name == "mixture" or self.labels is not None or self.sentence_task != "none":
            task = f" with sentence_task {self.sentence_task}" if self.name == "masked" else ""
            raise ValueError(f"name {self.name}{task} cannot be a component of a mixture: it needs samples of its own")
        return self


class ObjectiveSettings(ObjectiveChoice):
    """What is learned from a sample. What it does to one follows from train.seed and the sample's address alone."""

    components: tuple[ObjectiveComponent, ...] = ()
    """mixture: its objectives, for one architecture. Samples take turns among them, by their weights in exact quotas.
    To let a user choose at the beginning of a text, give each component of an encoder-decoder another
    decoder_start_token (the modes of UL2; Tay et al., 2022)."""

    @property
    def mixed(self) -> tuple[ObjectiveComponent, ...]:
        """The objectives of a mixture; none of any other."""
        return self.components

    @model_validator(mode="after")
    def _mixture_works(self) -> ObjectiveSettings:
        if self.name != "mixture" and self.components:
            raise ValueError(f"components are for name mixture, found name {self.name}; remove them")
        if self.name == "mixture" and len(self.components) < 2:
            raise ValueError(f"name mixture needs two components or more, found {len(self.components)}")
        if len(able := {component.architectures[0] for component in self.components}) > 1:
            raise ValueError(f"the components are for {' and '.join(sorted(able))}; a model has one architecture")
        return self
