"""What a run was trained on: the documents in a step, and the steps of a document."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bigtrain.base.errors import BigtrainError
from bigtrain.config import Settings
from bigtrain.data import load_tokenizer
from bigtrain.data.provenance.provenance import DocumentPart, SampleContents, appearances_of, contents_of, digest_of
from bigtrain.data.run_data import RunData
from bigtrain.data.store.stored_document import find_document
from bigtrain.rundir.directory import RunDirectory

Record = dict[str, Any]

EVIDENT_DOCUMENTS = 100


@dataclass(frozen=True)
class OpenedRun:
    """A run and its data, opened to answer questions."""

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
        settings = directory.settings()
        return cls(directory, settings, RunData.open(settings))

    def contents_of_step(self, step: int) -> list[SampleContents]:
        """What a step's global batch consists of."""
        return contents_of(self.data.plan, self.data.train, self.data.plan.batches.samples_of(step))

    def check(self, step: int, digest: str, recorded: Record) -> None:
        """Raise BigtrainError where a recomputed batch is not the one that the run recorded for the step."""
        consumed = self.data.plan.batches.samples_of(step).stop
        if (digest, consumed) != (recorded["batch_digest"], recorded["consumed_samples"]):
            raise BigtrainError(
                f"the data and settings that are here now are not those that {self.directory.root} trained on: "
                f"they give step {step} another batch",
                found=f"batch_digest {digest} after {consumed} samples, plan {self.data.plan.plan_id[:12]}",
                wanted=f"batch_digest {recorded['batch_digest']} after {recorded['consumed_samples']} samples, as in "
                f"{self.directory.metrics}",
                fix=f"run: bigtrain data verify {self.settings.data.dir}; then put back the data, or the config.yaml, "
                "that the run had",
            )


def documents_of_step(run: Path, step: int, *, text: bool = False) -> Record:
    """The documents in a step's global batch, checked against the run's metrics where the step is done.

    Args:
        run: a run directory.
        step: from 1 to the last of the schedule; it need not be done yet.
        text: add the decoded text of each part of a document.

    Returns:
        run, step, plan_id, batch_digest, recorded_digest (None where the step is not in metrics.jsonl) and samples.

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
    samples = []
    for sample in contents:
        samples.append(
            {
                "position": sample.position,
                "sample": sample.sample,
                "source": sample.dataset.name,
                "epoch": sample.epoch,
                "sequence": sample.sequence,
                "padding": sample.padding,
                "documents": [record_of(part, tokenizer) for part in sample.parts],
            }
        )
    return {
        "run": str(run),
        "step": step,
        "plan_id": opened.data.plan.plan_id,
        "batch_digest": digest,
        "recorded_digest": recorded["batch_digest"] if recorded is not None else None,
        "samples": samples,
    }


def record_of(part: DocumentPart, tokenizer: Tokenizer | None = None) -> Record:
    """A part of a document, for JSON; with a tokenizer, its text too."""
    document = part.document
    record = {
        "id": document.id,
        "file": document.file,
        "position": document.position,
        "start": part.start,
        "end": part.end,
        "tokens": document.tokens,
        "labelled": part.labelled,
    }
    if tokenizer is not None:
        record["text"] = tokenizer.decode(part.token_ids.tolist(), skip_special_tokens=True)
    return record


def evidence_of(data: RunData, step: int) -> Record:
    """What was in a step's batch, for a decision about it: its digest, and where its documents come from.

    Of a large batch the first documents stand for all; `data where` has the rest.
    """
    contents = contents_of(data.plan, data.train, data.plan.batches.samples_of(step))
    parts = [(sample.dataset.name, part) for sample in contents for part in sample.parts]
    return {
        "step": step,
        "plan_id": data.plan.plan_id,
        "batch_digest": digest_of(contents),
        "documents_in_all": len(parts),
        "documents": [{"source": source, **record_of(part)} for source, part in parts[:EVIDENT_DOCUMENTS]],
    }


def steps_of_document(run: Path, reference: str) -> Record:
    """The steps of the run's schedule at which a document is trained on, in order.

    Args:
        run: a run directory.
        reference: a document's id, or SOURCE:FILE or SOURCE:FILE:POSITION.

    Returns:
        run, document, total_steps, newest_step (that the run has done) and appearances: a row for each sample that
        the document is in, with its step, whether that is done, and the document's tokens [start, end) in it.

    Raises:
        BigtrainError: no run, no such document, data that are missing, or not those that the run trained on.
    """
    opened = OpenedRun.open(run)
    document = find_document([*opened.data.datasets, *opened.data.held_out], reference)
    newest = opened.directory.newest()
    done = 0
    if newest is not None:
        done = newest["step"]
        opened.check(done, digest_of(opened.contents_of_step(done)), newest)
    total = opened.settings.total_steps
    rows = []
    if not document.held_out:
        batches = opened.data.plan.batches
        before = batches.consumed_after(total)
        for found in appearances_of(opened.data.plan, opened.data.train, document, before=before):
            step = batches.step_of(found.sample)
            rows.append({"step": step, "done": step <= done, **vars(found)})
    return {
        "run": str(run),
        "document": {
            "id": document.id,
            "source": document.dataset.name,
            "file": document.file,
            "position": document.position,
            "tokens": document.tokens,
            "held_out": document.held_out,
        },
        "total_steps": total,
        "newest_step": done,
        "appearances": rows,
    }
