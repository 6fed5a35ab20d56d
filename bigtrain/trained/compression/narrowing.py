"""Structured pruning: whole attention heads and feed-forward channels, and smaller matrices afterwards.

A head goes with the key/value group that it belongs to, so that each group keeps as many heads as before. Each layer
keeps as many as every other: the settings then say the smaller model. The importance of what feeds a column of `o_proj`
or `down_proj` is the energy that it adds to the output, |W_j|^2 times the squares of the inputs x_j: Wanda's score,
squared and summed over a column. By magnitude the inputs count 1 each.

    zero the columns of o_proj, down_proj   --same function-->   cut rows of q, k, v, gate, up, and these columns
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.trained.compression.calibration import LayerInputs

_OUT, _DOWN = "self_attn.o_proj.weight", "mlp.down_proj.weight"


@dataclass(frozen=True)
class NarrowShape:
    """How many attention heads and feed-forward channels a model keeps."""

    heads: int | None
    channels: int | None

    def check(self, settings: ModelSettings) -> None:
        """Refuse what the model cannot become. Raises BigtrainError."""
        if settings.architecture not in ("decoder", "encoder"):
            raise _refused("model.architecture", settings.architecture, "decoder or encoder")
        if self.heads is not None:
            heads, of_group = settings.num_attention_heads, settings.num_attention_heads // settings.key_value_heads
            if not (0 < self.heads <= heads) or self.heads % of_group:
                raise BigtrainError(
                    "a model cannot keep this number of heads",
                    found=f"--heads {self.heads}",
                    wanted=f"a multiple of {of_group}, the heads that share keys, up to {heads}",
                    fix="give another number",
                )
            if settings.qk_norm == "full":
                raise _refused("model.qk_norm", "full, which normalises all heads as one", "none or head")
            if settings.position_embedding in ("alibi", "t5", "transformer_xl"):
                raise _refused("model.position_embedding", f"{settings.position_embedding}, which has numbers for each "
                               "head of all layers", "rope, learned, sinusoidal or none")  # fmt: skip
        if self.channels is not None:
            if not 0 < self.channels <= settings.intermediate_size:
                raise BigtrainError(
                    "a model cannot keep this number of channels",
                    found=f"--channels {self.channels}",
                    wanted=f"1 to {settings.intermediate_size}, model.intermediate_size",
                    fix="give another number",
                )
            if settings.num_experts:
                raise _refused("model.num_experts", settings.num_experts, "0")

    def of(self, settings: ModelSettings) -> ModelSettings:
        """The settings of the smaller model."""
        values = settings.model_dump()
        if self.heads is not None:
            groups = self.heads * settings.key_value_heads // settings.num_attention_heads
            values |= {"num_attention_heads": self.heads, "num_key_value_heads": groups,
                       "head_dim": settings.head_width}  # fmt: skip
        if self.channels is not None:
            values |= {"intermediate_size": self.channels}
        return ModelSettings.model_validate(values | {"expect_parameters": None})


class Narrowing:
    """Chooses heads and channels; a `Change` that zeroes those that go."""

    def __init__(self, shape: NarrowShape, settings: ModelSettings) -> None:
        self._shape, self._settings = shape, settings
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, weight: Tensor, inputs: LayerInputs | None) -> Tensor:
        """See `Change`."""
        if self._shape.heads is not None and name.endswith(_OUT):
            kept = self._heads_kept(column_energy(weight, inputs))
        elif self._shape.channels is not None and name.endswith(_DOWN):
            kept = _largest(column_energy(weight, inputs), self._shape.channels)
        else:
            return weight
        self._kept[name] = kept
        mask = torch.zeros(weight.shape[1], dtype=weight.dtype, device=weight.device)
        mask[kept] = 1
        return weight * mask

    def cut(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weights of the smaller model, of those of the model with zeroed columns."""
        cut = dict(weights)
        for name, kept in self._kept.items():
            cut[name] = weights[name][:, kept]
            if name.endswith(_DOWN):
                inner = name.removesuffix("down_proj.weight")
                rows = {f"{inner}{each}_proj": kept for each in ("gate", "up")}
            else:
                inner = name.removesuffix("o_proj.weight")
                keys = self._key_rows(kept)
                rows = {f"{inner}q_proj": kept, f"{inner}k_proj": keys, f"{inner}v_proj": keys}
            for module, chosen in rows.items():
                for part in (f"{module}.weight", f"{module}.bias"):
                    if part in weights:
                        cut[part] = weights[part][chosen]
        return cut

    def kept(self) -> dict[str, list[int]]:
        """The heads, or channels, that stay, by the name of the matrix that reads them; counted from 0."""
        width = self._settings.head_width
        return {
            name: (kept[::width] // width if name.endswith(_OUT) else kept).tolist()
            for name, kept in self._kept.items()
        }

    def _heads_kept(self, energy: Tensor) -> Tensor:
        """The columns of the heads of the key/value groups with the most energy."""
        groups = self._settings.key_value_heads
        assert self._shape.heads is not None
        number = self._shape.heads * groups // self._settings.num_attention_heads
        columns = torch.arange(len(energy), device=energy.device).view(groups, -1)
        return columns[_largest(energy.view(groups, -1).sum(1), number)].flatten()

    def _key_rows(self, kept: Tensor) -> Tensor:
        """The rows of keys and values that the queries at these rows go with."""
        width, of_group = (
            self._settings.head_width,
            self._settings.num_attention_heads // self._settings.key_value_heads,
        )
        heads = kept[::width] // width
        groups = heads[::of_group] // of_group
        return (groups[:, None] * width + torch.arange(width, device=kept.device)).flatten()


def column_energy(weight: Tensor, inputs: LayerInputs | None) -> Tensor:
    """The importance [in] of the columns of [out, in]: see above."""
    energy = weight.square().sum(0)
    return energy if inputs is None else energy * inputs.squares


def _largest(scores: Tensor, number: int) -> Tensor:
    """Where the largest of [n] are, in ascending order; of equal ones the later."""
    return scores.argsort(stable=True)[len(scores) - number :].sort().values


def _refused(key: str, found: object, wanted: str) -> BigtrainError:
    return BigtrainError(
        f"heads and channels of this model cannot be cut: {key}",
        found=found,
        wanted=wanted,
        fix="prune single weights: --prune magnitude",
    )
