"""How rotary frequencies change with the context: a section of the model, and of a phase of the data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from bigtrain.config.section import PositiveInt, Section


class RopeScaling(Section):
    """How rotary frequencies are changed for contexts longer than those of an earlier training."""

    rope_type: Literal["linear", "ntk", "yarn", "llama3"]
    """`linear`: all frequencies are divided by the factor (Chen et al., 2023). `ntk`: the base is raised, so that the
    lowest frequency is divided by the factor and the highest stays. `yarn`: by wavelength, and attention is scaled
    (Peng et al., 2023). `llama3`: by wavelength, as in Llama 3.1."""
    factor: Annotated[float, Field(ge=1.0)]
    """How many times longer the context becomes."""
    original_max_position_embeddings: PositiveInt | None = None
    """yarn, llama3: the context of the earlier training. Default: model.max_position_embeddings / factor."""
    low_freq_factor: PositiveFloat = 1.0
    """llama3: frequencies with wavelengths longer than the original context divided by this are divided by the
    factor."""
    high_freq_factor: PositiveFloat = 4.0
    """llama3: frequencies with wavelengths shorter than the original context divided by this stay."""
    beta_fast: PositiveFloat = 32.0
    """yarn: frequencies with this many rotations or more within the original context stay."""
    beta_slow: PositiveFloat = 1.0
    """yarn: frequencies with this many rotations or fewer within the original context are divided by the factor."""
    attention_factor: PositiveFloat | None = None
    """yarn: cosine and sine are multiplied by this. Default: 0.1 ln(factor) + 1."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> RopeScaling:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} is not below high_freq_factor {self.high_freq_factor}"
            )
        if self.beta_slow >= self.beta_fast:
            raise ValueError(f"beta_slow {self.beta_slow} is not below beta_fast {self.beta_fast}")
        return self
