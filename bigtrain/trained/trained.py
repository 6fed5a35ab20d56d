"""The model of a run at a committed step, opened in one process without the training engine."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer

from bigtrain.base import BigtrainError, to_json, write_atomically
from bigtrain.checkpoint import Checkpoint, load_weights
from bigtrain.config import Settings
from bigtrain.data import (
    evaluation_batches,
    held_out_packing,
    load_tokenizer,
    open_datasets,
    open_mirror,
    open_objective,
)
from bigtrain.engine import COMPUTE_DTYPES
from bigtrain.model import Transformer, build_model
from bigtrain.rundir import RunDirectory, RunState
from bigtrain.trained.checkpoint_settings import open_with_settings
from bigtrain.trained.evaluation import Evaluation, SourceLoss, sum_of_losses
from bigtrain.trained.ngram import Baselines, LabelBaselines

BASELINE_SEQUENCES = 4096
"""Of each source: on so many training sequences the baseline of labels that are not next tokens is counted."""


@dataclass(frozen=True)
class TrainedModel:
    """A model with the weights of one checkpoint, in the precision it was trained in."""

    settings: Settings
    checkpoint: Checkpoint
    model: Transformer
    tokenizer: Tokenizer
    device: torch.device

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return self.checkpoint.step

    @classmethod
    def open(cls, run: Path, step: int | None = None) -> TrainedModel:
        """Load the model of a run.

        Args:
            run: a run directory.
            step: of the checkpoint. Default: the newest verified one.

        Raises:
            BigtrainError: no run, no such checkpoint, a damaged one, or one of another model than RUN/config.yaml has.
        """
        directory = RunDirectory.of_existing_run(run)
        settings, checkpoint = open_with_settings(directory, step)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.device("meta"):
            model = build_model(settings.model, attn_implementation=settings.engine.attn_implementation)
        model = model.to_empty(device="cpu")
        with torch.no_grad():
            weights = load_weights(checkpoint)
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        model.set_router_moves(RunState.of(checkpoint.manifest.state).router_moves)
        model = model.to(device=device, dtype=COMPUTE_DTYPES[settings.engine.precision]).eval()
        open_mirror(settings.data)  # the tokenizer may be at a URL
        return cls(settings, checkpoint, model, load_tokenizer(settings.data.dir), device)

    @torch.no_grad()
    def validation_losses(self, *, with_baselines: bool = False) -> list[SourceLoss]:
        """The validation loss of every source, over the same sequences as during training.

        Args:
            with_baselines: also the perplexities of a unigram and a 5-gram model on the same labels, trained on the
                same data.
        """
        data = self.settings.data
        opened = {
            split: open_datasets(data, model_vocab_size=self.settings.model.vocab_size, split=split)
            for split in ("train", "validation")
        }
        objective = open_objective(self.settings.objective, self.settings.data)
        baselines: Baselines | LabelBaselines | None = None
        if with_baselines and objective.causal:
            baselines = Baselines(opened["train"])
        elif with_baselines:
            sample = chain.from_iterable(
                evaluation_batches(
                    held_out_packing(data, dataset), self.settings, objective, max_sequences=BASELINE_SEQUENCES
                )
                for dataset in opened["train"]
            )
            baselines = LabelBaselines(sample, opened["train"][0].summary.vocab_size)
        rows = []
        for dataset in opened["validation"]:
            batches = list(evaluation_batches(held_out_packing(data, dataset), self.settings, objective))
            loss, tokens = sum_of_losses(lambda inputs: self.model(**inputs), batches, self.device)
            if not tokens:
                continue
            row = SourceLoss.of(dataset.name, loss / tokens, tokens)
            if baselines is not None:
                found = baselines.perplexities(batches)
                row = replace(row, unigram_perplexity=found["unigram"], five_gram_perplexity=found.get("5-gram"))
            rows.append(row)
        if not rows:
            raise BigtrainError(
                "there are no held-out documents to evaluate on",
                found=f"held out of {', '.join(dataset.name for dataset in opened['validation'])}: "
                f"{sum(dataset.tokens for dataset in opened['validation']):,} tokens, by data.validation.fraction "
                f"{self.settings.data.validation.fraction}",
                fix="raise data.validation.fraction or add documents, build in another data.dir and train again",
            )
        return rows


def evaluate_run(run: Path, step: int | None, *, with_baselines: bool) -> Evaluation:
    """The validation losses of a checkpoint of a run, kept in RUN/evaluation.json for the report."""
    trained = TrainedModel.open(run, step)
    losses = trained.validation_losses(with_baselines=with_baselines)
    evaluation = Evaluation(str(run), trained.step, losses)
    with suppress(OSError):  # a run directory that is read-only can be evaluated too
        write_atomically(
            RunDirectory(run).evaluation, json.dumps(to_json(evaluation), indent=2) + "\n", follow_link=False
        )
    return evaluation
