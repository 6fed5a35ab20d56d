"""Export of a run's model for Hugging Face transformers, with a check that it computes the same."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.config import AdapterSettings, ModelSettings, Settings
from bigtrain.convert import FOR_TRAINING_ONLY, compare_with_transformers, config_of, export_hf
from bigtrain.data import DataTokenizer, card_as_markdown, open_mirror
from bigtrain.engine import COMPUTE_DTYPES
from bigtrain.model import count_parameters
from bigtrain.rundir import CARD, Event, RunDirectory, card_of_run, read_events
from bigtrain.trained.base_model import plain_weights
from bigtrain.trained.checkpoint_settings import tokenizer_file_of
from bigtrain.trained.label_names import label_names
from bigtrain.trained.model_card import model_card
from bigtrain.trained.stored_model import StoredModel


class ComparedWithTransformers:
    """What transformers and bigtrain compute alike; all null where they were not compared."""

    largest_logit_difference: float | None
    greedy_tokens: int | None
    greedy_tokens_alike: int | None

    @property
    def sentence(self) -> str | None:
        """The comparison, for people."""
        if self.largest_logit_difference is None:
            return None
        return (
            f"reloaded with transformers: logits equal ours within {self.largest_logit_difference:.2g}, and "
            f"{self.greedy_tokens_alike} of {self.greedy_tokens} greedy tokens are ours, the others nearly tied"
        )


@dataclass(frozen=True)
class HuggingFaceExport(ComparedWithTransformers):
    """A checkpoint that was written as a Hugging Face folder."""

    out: str
    step: int
    parameters: int
    dtype: str
    """The precision of the training, such as `bf16`."""
    largest_logit_difference: float | None
    """Between transformers and bigtrain; null where they were not compared, as the two below."""
    greedy_tokens: int | None
    """How many were drawn with each of the two."""
    greedy_tokens_alike: int | None
    """How many of these are the same."""


def export_run(
    run: Path, out: Path, *, step: int | None, check: bool, report: Callable[[str], None], merge: bool = False
) -> HuggingFaceExport:
    """Write a checkpoint as a Hugging Face folder, in the precision the model was trained in.

    Memory holds one tensor at a time while it writes, and one model in float32 while it checks.

    Args:
        run: a run directory, or a folder that `bigtrain compress` wrote.
        out: the folder to make.
        step: of the checkpoint. Default: the newest verified one.
        check: reload the folder with transformers and compare; without transformers it is skipped with a message.
        report: called with each line of progress.
        merge: of a run with an adapter: merge it into the weights.

    Raises:
        BigtrainError: nothing to export, the run has an adapter that is not merged, `out` holds something else, the
            model sees its prompts as transformers cannot, or the check fails.
    """
    stored = StoredModel.open(run, step)
    settings = stored.settings
    require_known_attention(settings, "transformers")
    config_of(settings.model)  # before anything is read: it refuses what transformers has not
    open_mirror(settings.data)  # the tokenizer may be at a URL
    weights, dtype = plain_weights(settings, stored.weights, merge), COMPUTE_DTYPES[settings.engine.precision]
    compared: dict[str, Any] = {}

    def compare(made: Path) -> None:
        compared.update(checked(made, weights, settings.model, dtype, report if check else None))

    if left_out := [name for name in weights if name.startswith(FOR_TRAINING_ONLY)]:
        report(f"left out: {len(left_out)} weights of multi-token prediction, which are for training only")
    write_folder(weights, settings, out, _documents(stored, report), compare)
    return HuggingFaceExport(
        out=str(out),
        step=stored.step,
        parameters=count_parameters(settings.model),
        dtype=settings.engine.precision,
        **compared,
    )


def write_folder(
    weights: Mapping[str, Tensor],
    settings: Settings,
    out: Path,
    documents: Mapping[str, str] = MappingProxyType({}),
    check: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write weights of a run's model, without an adapter, as a Hugging Face folder: see `export_hf`."""
    objective = settings.objective.first
    export_hf(
        weights,
        settings.model,
        tokenizer_file_of(settings),
        out,
        end_of_text=settings.data.tokenizer.end_of_text,
        begin_of_text=DataTokenizer.open(settings.data.dir).begin_of_text,
        mask_token=objective.mask_token if objective.name == "masked" else None,
        decoder_start=objective.decoder_start_token if objective.reads_pairs else None,
        label_names=label_names(settings),
        separator=settings.data.tokenizer.separator,
        dtype=COMPUTE_DTYPES[settings.engine.precision],
        documents=documents,
        check=check,
    )


def require_known_attention(settings: Settings, tool: str) -> None:
    """Refuse to hand a model that sees prompts from both sides to a tool that would show it one. Raises BigtrainError.

    Args:
        settings: of the run.
        tool: its name.
    """
    if settings.objective.name == "prefix":
        raise BigtrainError(
            f"{tool} would not compute what this model computes: it shows a prompt from one side only",
            found="objective.name prefix, by which the model has learned to see a prompt from both sides",
            wanted="a model of a causal objective",
            fix="use it with `bigtrain generate`; or train on with objective.name=causal and "
            "checkpoint.allow_change=[objective.name], and export then",
        )


def checked(
    folder: Path,
    weights: Mapping[str, Tensor],
    model: ModelSettings,
    dtype: torch.dtype,
    report: Callable[[str], None] | None,
    ignored: Sequence[str] = (),
    adapter: tuple[AdapterSettings, Path] | None = None,
) -> dict[str, Any]:
    """Compare a Hugging Face folder with our weights; without `report` nothing is compared.

    Args:
        folder: at Hugging Face's format.
        weights: ours, by our names.
        model: our settings.
        dtype: of the weights in the folder; where they have several, one that holds each exactly.
        report: called with the reason why nothing is compared.
        ignored: keys of config.json that the user had ignored.
        adapter: of our model, with the folder from which peft loads it.

    Raises:
        BigtrainError: transformers computes something else.
    """
    nothing = {"largest_logit_difference": None, "greedy_tokens": None, "greedy_tokens_alike": None}
    if report is None:
        return nothing
    for package in ("transformers",) if adapter is None else ("transformers", "peft"):
        if importlib.util.find_spec(package) is None:
            report(f"not checked: {package} is not installed (pip install 'bigtrain[hf]')")
            return nothing
    comparison = compare_with_transformers(folder, weights, model, dtype, adapter=adapter)
    comparison.check(folder, ignored)
    return {key: getattr(comparison, key) for key in nothing}


def _documents(stored: StoredModel, report: Callable[[str], None]) -> dict[str, str]:
    """The model card, and the data card at the checkpoint's step."""
    try:
        data = card_of_run(stored.path, stored.step)
    except BigtrainError as error:  # the weights are of use even where the data are gone
        report(f"exported without a data card: {error.what}")
        data = None
    evaluations = [
        event["validation"]
        for event in read_events(RunDirectory(stored.path).events)
        if event["event"] == Event.EVALUATE and event["step"] == stored.step
    ]
    documents = {"README.md": model_card(stored.settings, stored.step, evaluations[-1] if evaluations else [], data)}
    if data is not None:
        documents[f"{CARD}.md"] = card_as_markdown(data)
        documents[f"{CARD}.json"] = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    return documents
