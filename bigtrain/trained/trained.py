"""The model of a run at a committed step, opened in one process without the training engine."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import torch
from tokenizers import Tokenizer
from torch import nn

from bigtrain.base import BigtrainError, to_json, write_atomically
from bigtrain.config import Settings
from bigtrain.data import (
    TOKENIZER_FILE,
    DataTokenizer,
    MicroBatch,
    common_labels,
    evaluation_batches,
    held_out_packing,
    load_tokenizer,
    open_datasets,
    open_mirror,
    open_objective,
    open_token_bytes,
    read_questions,
    tokenizer_hash,
)
from bigtrain.engine import COMPUTE_DTYPES
from bigtrain.model import LanguageModel, build_model
from bigtrain.objective import LabelMetric, Objective, make_metric
from bigtrain.rundir import RunDirectory
from bigtrain.trained.answer_scores import AnswerScores, answer_scores
from bigtrain.trained.answering import answer
from bigtrain.trained.evaluation import Evaluation, SourceLoss, sum_of_losses
from bigtrain.trained.label_scores import LabelScores
from bigtrain.trained.labelled_baselines import LabelPredictors
from bigtrain.trained.ngram import Baselines, LabelBaselines
from bigtrain.trained.right_labels import RightLabels
from bigtrain.trained.stored_model import StoredModel
from bigtrain.trained.translation import TranslationScores, pairs_of, require_libraries, score, translated

logger = logging.getLogger(__name__)

BASELINE_SEQUENCES = 4096
"""Of each source: on so many training sequences the baseline of labels that are not next tokens is counted."""


@dataclass(frozen=True)
class TrainedModel:
    """A model with the weights of one checkpoint, in the precision it was trained in."""

    settings: Settings
    step: int
    """Of the checkpoint."""
    model: LanguageModel
    tokenizer: Tokenizer
    device: torch.device

    @classmethod
    def open(cls, run: Path, step: int | None = None) -> TrainedModel:
        """Load the model of a run.

        Args:
            run: a run directory, or a folder that `bigtrain compress` wrote.
            step: of the checkpoint. Default: the newest verified one.

        Raises:
            BigtrainError: no run, no such checkpoint, a damaged one, or one of another model than RUN/config.yaml has.
        """
        stored = StoredModel.open(run, step)
        settings = stored.settings
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = loaded_model(stored).to(device=device, dtype=COMPUTE_DTYPES[settings.engine.precision]).eval()
        return cls(settings, stored.step, model, load_tokenizer(settings.data.dir), device)

    @torch.no_grad()
    def validation_losses(
        self, *, with_baselines: bool = False, beside: Mapping[str, TrainedModel] = MappingProxyType({})
    ) -> list[SourceLoss]:
        """The validation loss of every source, over the same sequences as during training; and the accuracy, where
        labels are not the next tokens of a text.

        Args:
            with_baselines: also the perplexities of a unigram and a 5-gram model on the same labels, trained on the
                same data, and the accuracy of the unigram model.
            beside: also the perplexities of these models on the same labels, by their names; see `require_same_labels`.
        """
        data = self.settings.data
        opened = {
            split: open_datasets(data, model_vocab_size=self.settings.model.vocab_size, split=split)
            for split in ("train", "validation")
        }
        objective = open_objective(self.settings.objective, self.settings.data, self.settings.model)
        labels = common_labels(opened["train"])
        metric = make_metric(self.settings.objective, () if labels is None else labels.names)
        sample = chain.from_iterable(
            evaluation_batches(
                held_out_packing(data, dataset), self.settings, objective, max_sequences=BASELINE_SEQUENCES
            )
            for dataset in opened["train"]
        )
        baselines: Baselines | LabelBaselines | None = None
        simple: LabelPredictors | None = None
        if with_baselines and metric is not None:
            simple = LabelPredictors(self.settings.objective, metric, sample)
        elif with_baselines and objective.causal:
            baselines = Baselines(opened["train"])
        elif with_baselines:
            baselines = LabelBaselines(sample, opened["train"][0].summary.vocab_size)
        rows = []
        for dataset in opened["validation"]:
            batches = list(evaluation_batches(held_out_packing(data, dataset), self.settings, objective))
            row = self._measured(dataset.name, batches, objective, metric)
            if row is None:
                continue
            if simple is not None:
                row = replace(row, baseline_metrics=simple.scores(batches))
            if baselines is not None:
                found = baselines.perplexities(batches)
                row = replace(row, unigram_perplexity=found["unigram"], five_gram_perplexity=found.get("5-gram"))
            if isinstance(baselines, LabelBaselines):
                row = replace(row, unigram_accuracy=baselines.accuracy(batches))
            if beside:
                row = replace(
                    row, run_perplexities={name: other._perplexity(batches) for name, other in beside.items()}
                )
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

    def _perplexity(self, batches: Sequence[MicroBatch]) -> float:
        loss, tokens = sum_of_losses(lambda inputs: self.model(**inputs), batches, self.device)
        return SourceLoss.of("", loss / tokens, tokens).perplexity

    def _measured(
        self, name: str, batches: Sequence[MicroBatch], objective: Objective, metric: LabelMetric | None
    ) -> SourceLoss | None:
        """Loss and accuracies of the model on batches of a source; None where they have no labels."""
        pairs = getattr(self.model, "sentence_head", None)
        head = nn.Identity() if objective.causal or metric is not None else self.model.head
        with (
            RightLabels(head) as right,
            RightLabels(pairs or nn.Identity()) as related,
            LabelScores(self.model, metric) as labelled,
        ):
            loss, tokens = sum_of_losses(lambda inputs: self.model(**inputs), batches, self.device)
        if not tokens:
            return None
        row = replace(SourceLoss.of(name, loss / tokens, tokens), metrics=labelled.scores())
        if right.labels:
            row = replace(row, accuracy=right.number / tokens)
        if related.labels:
            row = replace(row, sentence_accuracy=related.number / related.labels)
        return row

    def translations(self, most: int) -> list[TranslationScores]:
        """How well held-out pairs are translated, source by source of the data.

        Args:
            most: pairs of each source, at most; they are spread evenly over its held-out ones.

        Raises:
            BigtrainError: the run does not learn to translate, or sacrebleu is missing.
        """
        data, model = self.settings.data, self.settings.model
        if self.settings.objective.name != "translation" or not model.writes_text:
            raise BigtrainError(
                "this run translates nothing",
                found=f"objective.name {self.settings.objective.name}, model.architecture {model.architecture}",
                wanted="objective.name translation, model.architecture encoder_decoder",
                fix="leave out --translations",
            )
        require_libraries()
        tokenizer = DataTokenizer.open(data.dir)
        scores = []
        for dataset in open_datasets(data, model_vocab_size=model.vocab_size, split="validation"):
            pairs = list(pairs_of(dataset, tokenizer))
            chosen = pairs[:: max(1, -(-len(pairs) // most))]
            if chosen:
                texts = translated(self.model, self.settings, tokenizer, chosen)
                scores.append(score(dataset.name, chosen, texts))
        return scores

    def answer_questions(self, path: str) -> tuple[AnswerScores, dict[str, str]]:
        """The scores of the answers to the questions of a file, and the answers by question.

        Args:
            path: a file as SQuAD has them, a folder or a glob.

        Raises:
            BigtrainError: the run does not learn to answer, or the file has another form.
        """
        if self.settings.objective.name != "extractive_qa":
            raise BigtrainError(
                "this run answers no questions",
                found=f"objective.name {self.settings.objective.name}",
                wanted="objective.name extractive_qa",
                fix="leave out --answers",
            )
        questions = read_questions(path)
        answers = answer(self.model, self.settings, questions, self.device)
        return answer_scores(answers, {question.name: question.answers for question in questions}), answers


@torch.no_grad()
def loaded_model(stored: StoredModel) -> LanguageModel:
    """The model with its weights, in float32. Raises BigtrainError where a weight is damaged."""
    settings = stored.settings
    with torch.device("meta"):
        model = build_model(
            settings.model, attn_implementation=settings.engine.attn_implementation, adapter=settings.adapter
        )
    model = model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        parameter.copy_(stored.weights[name])
    open_mirror(settings.data)  # the tokenizer may be at a URL
    if settings.model.character_filters:
        model.set_token_bytes(torch.from_numpy(open_token_bytes(settings.model, settings.data.dir)))
    model.set_router_moves(stored.router_moves)
    return model


def evaluate_run(
    run: Path,
    step: int | None,
    *,
    with_baselines: bool,
    baseline_runs: Sequence[Path] = (),
    translations: int = 0,
    questions: str | None = None,
) -> Evaluation:
    """The validation losses of a checkpoint of a run, kept in RUN/evaluation.json for the report.

    Args:
        run: a run directory.
        step: of the checkpoint. Default: the newest verified one.
        with_baselines: also the perplexities of a unigram and a 5-gram model.
        baseline_runs: also those of the newest checkpoints of these runs, of any architecture.
        translations: also how well so many held-out pairs of each source are translated.
        questions: also how well the questions of this file are answered; the answers are kept in RUN/answers.json.

    Raises:
        BigtrainError: there is no such checkpoint, nothing is held out, or a run of `baseline_runs` learned other
            labels.
    """
    trained = TrainedModel.open(run, step)
    beside = {str(other): TrainedModel.open(other) for other in baseline_runs}
    for name, other in beside.items():
        require_same_labels(trained, name, other)
    losses = trained.validation_losses(with_baselines=with_baselines, beside=beside)
    scores = trained.translations(translations) if translations else None
    answered, answers = trained.answer_questions(questions) if questions is not None else (None, {})
    evaluation = Evaluation(str(run), trained.step, losses, scores, answered)
    with suppress(OSError):  # a run directory that is read-only can be evaluated too
        if answered is not None:
            write_atomically(RunDirectory(run).answers, json.dumps(answers, indent=1) + "\n", follow_link=False)
        write_atomically(
            RunDirectory(run).evaluation, json.dumps(to_json(evaluation), indent=2) + "\n", follow_link=False
        )
    return evaluation


def require_same_labels(trained: TrainedModel, name: str, other: TrainedModel) -> None:
    """Refuse to compare perplexities of two models that do not predict the same labels from the same rows.

    Args:
        trained: the model whose held-out rows are used.
        name: of the other one, for the message.
        other: the model that is to predict the same.

    Raises:
        BigtrainError: it has another tokenizer, another objective, or a context that is too short.
    """
    ours, theirs = trained.settings, other.settings
    length = ours.data.sequence_length
    hashes = [tokenizer_hash((each.data.dir / TOKENIZER_FILE).read_bytes()) for each in (ours, theirs)]
    for what, found, wanted, same in (
        ("tokenizer", hashes[1], hashes[0], hashes[0] == hashes[1]),
        ("objective", theirs.objective.name, ours.objective.name, ours.objective == theirs.objective),
        (
            "context",
            f"model.max_position_embeddings {theirs.model.max_position_embeddings}",
            f"at least data.sequence_length {length}",
            theirs.model.max_position_embeddings >= length,
        ),
    ):
        if not same:
            raise BigtrainError(
                f"{name} has another {what} than the run that it is compared with: perplexities would not compare",
                found=found,
                wanted=wanted,
                fix="train the baseline with the sections data and objective of the run",
            )
    if ours.data.dir.resolve() != theirs.data.dir.resolve():
        logger.warning(
            f"{name} was trained on {theirs.data.dir}, and the held-out documents are of {ours.data.dir}: it may have "
            "been trained on some of them"
        )
