"""A run's settings in the planner's terms: what a model keeps is counted once, in every mode of recomputation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bigtrain.config import load_settings
from bigtrain.estimate import Layout, forecast_memory, workload_of
from bigtrain.model import Computation, activations, model_shapes
from bigtrain.objective import row_lengths

CONFIGS = Path(__file__).parents[2] / "configs"
OF_EACH_ARCHITECTURE = (
    "quickstart", "gpt2-124m", "mixtral-8x7b", "albert-base", "bert-base", "t5-small", "xlnet-base", "lstm-python",
    "lora-python", "python-tags",
)  # fmt: skip


@pytest.mark.parametrize("name", OF_EACH_ARCHITECTURE)
def test_kept_activations_are_those_of_the_shapes(name: str) -> None:
    """The forecast's activations and its loss, without logits, are the bytes that `activations` lists, in every mode.

    They are means over equal blocks, so that what neighbours share may be counted with either: 1%.
    """
    settings = load_settings(CONFIGS / f"{name}.yaml")
    model, data, objective = settings.model, settings.data, settings.objective
    length, encoder_length = row_lengths(objective, data.sequence_length, reads_pairs=model.reads_pairs)
    made = activations(
        model_shapes(model, settings.adapter),
        Computation(
            precision=settings.engine.precision,
            attention=settings.engine.attn_implementation,
            length=length,
            read_length=encoder_length or length,
        ),
    )
    work = replace(workload_of(settings), logits_bytes=0.0, loss_workspace=0.0)
    for mode in ("none", "selective", "full", "offloaded"):
        found = forecast_memory(work, Layout(micro_batch_size=3, recomputation=mode))  # type: ignore[arg-type]
        tokens = 3.0 * length
        read, labelled = 3.0 * (encoder_length or length), tokens * objective.labelled_share
        wanted = sum(each.bytes(tokens, read=read, labelled=labelled) for each in made.kept(mode))  # type: ignore[arg-type]
        assert found.activations_kept + found.logits_and_loss == pytest.approx(wanted, rel=0.01), mode
