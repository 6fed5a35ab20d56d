"""The section objective: what is learned from a sample."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bigtrain.config.section import Section, UnitInterval

OF_MASKED = ("mask_rate", "mask_token", "mask_token_share", "random_token_share", "whole_words")


class ObjectiveSettings(Section):
    """What is learned from a sample. What it does to one follows from train.seed and the sample's address alone."""

    name: Literal["causal", "masked"] = "causal"
    """`causal`: each token predicts the next one (decoders). `masked`: hidden tokens are predicted from both sides
    (encoders; Devlin et al., 2019)."""
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

    @model_validator(mode="after")
    def _choices_work(self) -> ObjectiveSettings:
        if self.mask_token_share + self.random_token_share > 1:
            raise ValueError(
                f"mask_token_share {self.mask_token_share} and random_token_share {self.random_token_share} are more "
                "than 1 together"
            )
        if self.name != "masked":
            for key in OF_MASKED:
                value = getattr(self, key)
                if value != type(self).model_fields[key].default:
                    raise ValueError(f"{key} {value} is for name masked, found name {self.name}; remove it")
        return self
