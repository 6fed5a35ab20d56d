"""The section objective: what is learned from a sample."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bigtrain.config.section import Section, UnitInterval

OF_OBJECTIVE = {
    "masked": ("mask_rate", "mask_token", "mask_token_share", "random_token_share", "whole_words"),
    "fill_in_the_middle": ("fim_rate", "fim_spm_rate", "fim_tokens"),
}
"""The keys that are for one objective alone."""
ARCHITECTURES_OF = {"causal": "decoder", "fill_in_the_middle": "decoder", "masked": "encoder"}
"""The architecture that learns by each objective."""


class ObjectiveSettings(Section):
    """What is learned from a sample. What it does to one follows from train.seed and the sample's address alone."""

    name: Literal["causal", "fill_in_the_middle", "masked"] = "causal"
    """`causal`: each token predicts the next one (decoders). `fill_in_the_middle`: the same, with the middle of some
    documents after their end (Bavarian et al., 2022). `masked`: hidden tokens are predicted from both sides (encoders;
    Devlin et al., 2019)."""
    fim_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """fill_in_the_middle: probability that a part of a document in a row is transformed. With data.packing best_fit
    nearly every part is a whole document."""
    fim_spm_rate: UnitInterval = 0.5
    """fill_in_the_middle: share of the transformed ones whose suffix comes before the prefix (SPM); else PSM."""
    fim_tokens: Literal["starcoder", "codellama", "deepseek", "qwen"] = "starcoder"
    """fill_in_the_middle: whose special tokens stand before prefix, suffix and middle. They have to be in the
    tokenizer; data.tokenizer.additional_special_tokens adds them to one that is trained."""
    mask_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """masked: probability that a token is to be predicted. ModernBERT was trained with 0.3."""
    mask_token: str = "[MASK]"
    """masked: the special token that stands for hidden ones. data.tokenizer.additional_special_tokens adds it to a
    tokenizer that is trained."""
    mask_token_share: UnitInterval = 0.8
    """masked: share of the tokens to predict that become mask_token."""
    random_token_share: UnitInterval = 0.1
    """masked: share of the tokens to predict that become a random token. The others stay as they are."""
    whole_words: bool = False
    """masked: choose whole words, not single tokens."""

    @property
    def labelled_share(self) -> float:
        """The share of tokens that are to be predicted, roughly."""
        return self.mask_rate if self.name == "masked" else 1.0

    @model_validator(mode="after")
    def _choices_work(self) -> ObjectiveSettings:
        if self.mask_token_share + self.random_token_share > 1:
            raise ValueError(
                f"mask_token_share {self.mask_token_share} and random_token_share {self.random_token_share} are more "
                "than 1 together"
            )
        for name, keys in OF_OBJECTIVE.items():
            for key in keys if name != self.name else ():
                value = getattr(self, key)
                if value != type(self).model_fields[key].default:
                    raise ValueError(f"{key} {value} is for name {name}, found name {self.name}; remove it")
        return self
