"""What a run was trained on: the documents in a step, and the steps of a document."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bigtrain.base import BigtrainError, to_json
from bigtrain.config import LabelKind, Settings
from bigtrain.data import (
    DocumentPart,
    RunData,
    SampleContents,
    appearances_of,
    contents_of,
    decode_ids,
    digest_of,
    digest_part,
    find_document,
    format_digest,
    load_tokenizer,
)
from bigtrain.rundir.directory import RunDirectory

Record = dict[str, Any]

EVIDENT_DOCUMENTS = 100


@dataclass(frozen=True)
class LabelledRun:
    """Tokens of a document that follow each other and have the same label."""

    label: str | None
    """Null where they have none."""
    text: str
    """Of the tokens, special ones too."""


@dataclass(frozen=True)
class PartOfDocument:
    """The part of a document that is visible in a sample."""

    id: str
    """Of the document, the same in every build."""
    file: str
    """The file of the source that the document is from."""
    position: int
    """Its number in that file, from 0."""
    start: int
    """The first token of the part, counted from the start of the document."""
    end: int
    """The token after its last one."""
    tokens: int
    """Of the whole document."""
    labelled: bool
    """False where data.skip took the labels away: the part is in the batch and is not trained on."""
    text: str | None = None
    """Of the part, where it was asked for."""
    labels: LabelKind | None = None
    """What labels the source has: parts, classes, tags, answers or turns."""
    runs: list[LabelledRun] | None = None
    """The text again, divided by the labels of its tokens, where its source has labels."""
    metadata: dict[str, Any] | None = None
    """What the source keeps beside the document, such as URL and date."""


@dataclass(frozen=True)
class SampleOfStep:
    """One sample of a global batch."""

    position: int
    """Its position in the global batch, from 0."""
    sample: int
    """Its number in the whole schedule, from 0."""
    source: str
    epoch: int
    sequence: int
    """Its number in the source."""
    padding: int
    """Tokens after the last document."""
    documents: list[PartOfDocument]


@dataclass(frozen=True)
class DocumentsOfStep:
    """The documents in the global batch of a step."""

    run: str
    step: int
    plan_id: str
    batch_digest: str
    """Worked out from the data that are here now."""
    recorded_digest: str | None
    """The digest in metrics.jsonl; null where the step is not done yet."""
    samples: list[SampleOfStep]


@dataclass(frozen=True)
class FoundDocument:
    """A document of the data of a run."""

    id: str
    source: str
    file: str
    position: int
    """Its number in the file, from 0."""
    tokens: int
    held_out: bool
    """Whether it is for validation, and so never trained on."""
    metadata: dict[str, Any] | None = None
    """What the source keeps beside the document, such as URL and date."""


@dataclass(frozen=True)
class AppearanceInStep:
    """A sample that a document is in."""

    step: int
    done: bool
    """Whether the run has done the step."""
    sample: int
    """Its number in the whole schedule, from 0."""
    epoch: int
    sequence: int
    """Its number in the source."""
    start: int
    """The first token of the document that is in the sample."""
    end: int
    """The token after the last one."""
    labelled: bool
    """False where data.skip took the labels away."""


@dataclass(frozen=True)
class StepsOfDocument:
    """The steps of a run's schedule at which a document is trained on."""

    run: str
    document: FoundDocument
    total_steps: int
    newest_step: int
    """The newest step that the run has done; 0 before the first."""
    appearances: list[AppearanceInStep]
    """In the order of the schedule."""


@dataclass(frozen=True)
class OpenedRun:
    """A run and its data, opened to be read."""

    directory: RunDirectory
    settings: Settings
    data: RunData

    @classmethod
    def open(cls, run: Path) -> OpenedRun:
        """Open the data that `run` was started with.

        Raises:
            BigtrainError: no run, or its data are not there or were built with other settings.
        """
        directory = RunDirectory.of_existing_run(run)
        settings = directory.settings_for_data()
        return cls(directory, settings, RunData.open(settings))

    def contents_of_step(self, step: int) -> list[SampleContents]:
        """The samples of the global batch of a step."""
        return contents_of(self.data.plan, self.data.train, self.data.plan.batches.samples_of(step))

    def check(self, step: int, digest: str, recorded: Record) -> None:
        """Raise BigtrainError where a recomputed batch is not the one that the run recorded for the step."""
        consumed = self.data.plan.batches.samples_of(step).stop
        then = recorded.get("batch_digest"), recorded.get("consumed_samples")
        if (digest, consumed) != then:
            raise BigtrainError(
                f"the data or settings that are here now are not those that {self.directory.root} trained on: "
                f"step {step} has another batch",
                found=f"batch_digest {digest} after {consumed} samples, plan {self.data.plan.plan_id[:12]}",
                wanted=f"batch_digest {then[0]} after {then[1]} samples, as in {self.directory.metrics}",
                fix=f"run: bigtrain data verify {self.settings.data.dir}; then restore the data, or the config.yaml, "
                "of the run",
            )


def documents_of_step(run: Path, step: int, *, text: bool = False) -> DocumentsOfStep:
    """The documents in a step's global batch, checked against the run's metrics where the step is done.

    Args:
        run: a run directory.
        step: from 1 to the last of the schedule; it need not be done yet.
        text: add the decoded text of each part of a document.

    Raises:
        BigtrainError: no run, no such step, data that are missing, or not those that the run trained on.
    """
    opened = OpenedRun.open(run)
    if not 1 <= step <= opened.settings.total_steps:
        raise BigtrainError(
            f"{run} has no step {step}", found=step, wanted=f"a step from 1 to {opened.settings.total_steps}"
        )
    contents = opened.contents_of_step(step)
    digest = digest_of(contents)
    recorded = opened.directory.recorded(step)
    if recorded is not None:
        opened.check(step, digest, recorded)
    tokenizer = load_tokenizer(opened.settings.data.dir) if text else None
    samples = [
        SampleOfStep(
            position=sample.position,
            sample=sample.sample,
            source=sample.dataset.name,
            epoch=sample.epoch,
            sequence=sample.sequence,
            padding=sample.padding,
            documents=[part_of_document(part, tokenizer) for part in sample.parts],
        )
        for sample in contents
    ]
    return DocumentsOfStep(
        run=str(run),
        step=step,
        plan_id=opened.data.plan.plan_id,
        batch_digest=digest,
        recorded_digest=recorded.get("batch_digest") if recorded is not None else None,
        samples=samples,
    )


def part_of_document(part: DocumentPart, tokenizer: Tokenizer | None = None) -> PartOfDocument:
    """Where a part of a document is from; with a tokenizer, its text too."""
    document = part.document
    text = tokenizer and decode_ids(tokenizer, part.token_ids.tolist())
    runs = None if tokenizer is None else part.runs
    return PartOfDocument(
        id=document.id,
        file=document.file,
        position=document.position,
        start=part.start,
        end=part.end,
        tokens=document.tokens,
        labelled=part.labelled,
        text=text,
        labels=document.dataset.summary.labels,
        runs=None
        if tokenizer is None or runs is None
        else [LabelledRun(label, decode_ids(tokenizer, ids, special=True)) for label, ids in runs],
        metadata=document.metadata,
    )


def record_of(part: DocumentPart, tokenizer: Tokenizer | None = None) -> Record:
    """A part of a document, for JSON; with a tokenizer, its text too."""
    record: Record = to_json(part_of_document(part, tokenizer))
    return record


def count_evidence(data: RunData, step: int, rank: int, world_size: int) -> tuple[int, int]:
    """A rank's share of the batch of a step: what it adds to the digest, as int64, and the number of its documents.

    Args:
        data: in the order that the step is counted in.
        step: from 1.
        rank: data-parallel rank.
        world_size: data-parallel size.
    """
    samples = data.plan.batches.samples_of(step)
    size = len(samples) // world_size
    contents = contents_of(data.plan, data.train, samples[rank * size : (rank + 1) * size])
    return digest_part(contents, rank * size), sum(len(sample.parts) for sample in contents)


def evidence_of(data: RunData, step: int, digest: int, documents: int) -> Record:
    """The batch of a step, for a decision about it: its digest, and where its documents come from.

    Of a large batch only the first documents are listed; `data where` lists all.

    Args:
        data: in the order that the step is counted in.
        step: from 1.
        digest: of the batch: the sum of what all ranks have counted, as is the next.
        documents: in the batch.
    """
    samples = data.plan.batches.samples_of(step)[:EVIDENT_DOCUMENTS]  # each has a document
    contents = contents_of(data.plan, data.train, samples)
    parts = [(sample.dataset.name, part) for sample in contents for part in sample.parts]
    return {
        "step": step,
        "plan_id": data.plan.plan_id,
        "batch_digest": format_digest(digest),
        "documents_in_all": documents,
        "documents": [{"source": source, **record_of(part)} for source, part in parts[:EVIDENT_DOCUMENTS]],
    }


def steps_of_document(run: Path, reference: str) -> StepsOfDocument:
    """The steps of the run's schedule at which a document is trained on, in order.

    Args:
        run: a run directory.
        reference: a document's id, or SOURCE:FILE or SOURCE:FILE:POSITION.

    Raises:
        BigtrainError: no run, no such document, data that are missing, or not those that the run trained on.
    """
    opened = OpenedRun.open(run)
    document = find_document([*opened.data.datasets, *opened.data.held_out_datasets], reference)
    newest = opened.directory.newest()
    done = 0
    if newest is not None:
        done = newest["step"]
        opened.check(done, digest_of(opened.contents_of_step(done)), newest)
    total = opened.settings.total_steps
    appearances = []
    if not document.held_out:
        batches = opened.data.plan.batches
        before = batches.consumed_after(total)
        for found in appearances_of(opened.data.plan, opened.data.train, document, before=before):
            step = batches.step_of(found.sample)
            appearances.append(AppearanceInStep(step=step, done=step <= done, **vars(found)))
    return StepsOfDocument(
        run=str(run),
        document=FoundDocument(
            id=document.id,
            source=document.dataset.name,
            file=document.file,
            position=document.position,
            tokens=document.tokens,
            held_out=document.held_out,
            metadata=document.metadata,
        ),
        total_steps=total,
        newest_step=done,
        appearances=appearances,
    )
