"""Handing a run's model to other tools, with proof that they compute the same."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigtrain.checkpoint import load_weights
from bigtrain.config import BigtrainError
from bigtrain.convert import compare_with_transformers, export_hf
from bigtrain.data.card import card_as_markdown
from bigtrain.data.tokenizer import TOKENIZER_FILE
from bigtrain.engine.precision import COMPUTE_DTYPES
from bigtrain.model import count_parameters
from bigtrain.run.data_card import CARD, card_of_run
from bigtrain.run.directory import RunDirectory
from bigtrain.run.model_card import model_card
from bigtrain.run.records import read_json_lines
from bigtrain.run.trained import TrainedModel

LARGEST_DIFFERENCE = 1e-2
"""Logits are of the order of 10; the order of summation in float32 explains differences of some 1e-5."""


def export_run(run: Path, out: Path, *, step: int | None, check: bool, report: Callable[[str], None]) -> dict[str, Any]:
    """Write a checkpoint as a Hugging Face folder, in the precision the model was trained in.

    Args:
        run: a run directory.
        out: the folder to make.
        step: of the checkpoint. Default: the newest verified one.
        check: reload the folder with transformers and compare logits; passed over, aloud, without transformers.
        report: takes lines about what is going on.

    Returns:
        step, parameters, dtype and, when checked, the largest difference between their logits and ours.

    Raises:
        BigtrainError: nothing to export, `out` holds something else, or the check fails.
    """
    trained = TrainedModel.open(run, step)
    settings = trained.settings
    export_hf(
        load_weights(trained.checkpoint),
        settings.model,
        settings.data.dir / TOKENIZER_FILE,
        out,
        end_of_text=settings.data.tokenizer.end_of_text,
        dtype=COMPUTE_DTYPES[settings.engine.precision],
        documents=_documents(run, trained, report),
    )
    difference = None
    if check and importlib.util.find_spec("transformers") is None:
        report("not checked: transformers is not installed (pip install 'bigtrain[hf]')")
    elif check:
        difference = compare_with_transformers(out, trained.model)
        if not difference <= LARGEST_DIFFERENCE:
            raise BigtrainError(
                f"transformers does not compute what bigtrain computes from {out}; do not use it",
                found=f"logits that differ by {difference:.3g}",
                wanted=f"at most {LARGEST_DIFFERENCE}",
                fix="report this with the settings: it is a defect of bigtrain",
            )
    return {
        "out": str(out),
        "step": trained.step,
        "parameters": count_parameters(settings.model),
        "dtype": settings.engine.precision,
        "largest_logit_difference": difference,
    }


def _documents(run: Path, trained: TrainedModel, report: Callable[[str], None]) -> dict[str, str]:
    """The model card, and the data card at the checkpoint's step."""
    try:
        data = card_of_run(run, trained.step)
    except BigtrainError as error:  # the weights are worth having even where the data are gone
        report(f"exported without a data card: {error.what}")
        data = None
    evaluations = [
        event["validation"]
        for event in read_json_lines(RunDirectory(run).events)
        if event["event"] == "evaluate" and event["step"] == trained.step
    ]
    documents = {"README.md": model_card(trained.settings, trained.step, evaluations[-1] if evaluations else [], data)}
    if data is not None:
        documents[f"{CARD}.md"] = card_as_markdown(data)
        documents[f"{CARD}.json"] = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    return documents
