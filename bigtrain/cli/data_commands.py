"""bigtrain data build|funnel|verify|where|when|diff|card|index, and the models that rules ask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigtrain.cli.printing import (
    JsonOption,
    OverridesArgument,
    RunArgument,
    TakesOverrides,
    echo,
    print_json,
    print_table,
    say,
    say_json,
)
from bigtrain.cli.results import BuiltData, BuiltSource, RunDataCard, VerifiedData
from bigtrain.cli.rule_model_commands import classifier_app, ngram_app

if TYPE_CHECKING:
    from bigtrain.rundir import AppearanceInStep

app = typer.Typer(help="Build, check and explore the tokenizer and the token shards.", no_args_is_help=True)
app.add_typer(classifier_app, name="classifier")
app.add_typer(ngram_app, name="ngram")


@app.command(cls=TakesOverrides)
def build(
    config: Annotated[Path, typer.Argument(help="A YAML configuration.")],
    overrides: OverridesArgument = None,
    on: Annotated[
        str,
        typer.Option(
            metavar="inline|processes|ray|HOST:PORT",
            help="Who does the work: this process, processes of this machine, or a Ray cluster (RAY_ADDRESS, or one "
            "that is started here; HOST:6379 or ray://HOST:10001 names one). The bytes are the same.",
        ),
    ] = "processes",
    as_json: JsonOption = False,
) -> None:
    """Make the tokenizer and the shards of every source. Finished parts are kept; a build that was killed goes on.

    With --json, progress is on stderr as JSON lines: {"message": ...} and {"progress": {...}}.
    """
    from bigtrain.config import load_settings
    from bigtrain.data import BuildProgress, build_datasets, open_datasets

    def say_message(line: str) -> None:
        say_json({"message": line})

    def say_progress(progress: BuildProgress) -> None:
        say_json({"progress": progress})

    settings = load_settings(config, overrides or [])
    vocab_size = settings.model.vocab_size
    if as_json:
        build_datasets(settings.data, vocab_size=vocab_size, report=say_message, on=on, measured=say_progress)
    else:
        build_datasets(settings.data, vocab_size=vocab_size, report=say, on=on)
    built = BuiltData(
        str(settings.data.dir),
        [
            BuiltSource(dataset.name, split, dataset.summary.documents, dataset.tokens, len(dataset.shards))
            for split in ("train", "validation")
            for dataset in open_datasets(settings.data, model_vocab_size=settings.model.vocab_size, split=split)
        ],
    )
    if as_json:
        print_json(built)
    else:
        columns = ("source", "split", "documents", "tokens", "shards")
        rows = [(s.source, s.split, f"{s.documents:,}", f"{s.tokens:,}", f"{s.shards:,}") for s in built.sources]
        print_table(f"Data in {settings.data.dir}", columns, rows)


@app.command()
def funnel(
    data: Annotated[Path, typer.Argument(metavar="CONFIG|DIR", help="A configuration, or a data directory.")],
    examples: Annotated[bool, typer.Option(help="Also show the start of some removed documents.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with figures and examples.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show for each source how many documents were read, how many each rule removed, and how many were written."""
    from bigtrain.config import load_settings
    from bigtrain.data import describe_skipped, read_funnels
    from bigtrain.report import write_funnel_page

    directory = data if data.is_dir() else load_settings(data).data.dir
    funnels = read_funnels(directory)
    if html is not None:
        write_funnel_page(html, funnels, f"What became of the documents in {directory}")
        say(f"the page with figures: {html}")
    if as_json:
        print_json(funnels)
        return
    for source, funnel in funnels.items():
        rows = [
            (what, f"{count.documents:,}", f"{share:.2%}", f"{count.bytes / 1e6:,.3f}")
            for what, count, share in funnel.rows()
        ]
        print_table(source, ("", "documents", "share", "MB as read"), rows)
        echo(f"written: {funnel.written_bytes / 1e6:,.3f} MB, {funnel.tokens:,} tokens")
        if funnel.cut:
            echo(f"cut to the length of a row: {funnel.cut:,} documents with labels")
        if funnel.skipped_files:
            echo(describe_skipped(funnel.skipped_files))
        for removal in funnel.removed if examples else ():
            for example in removal.examples:
                echo(f"\n{removal.rule}: {removal.reason}: {example['file']}:{example['position']}")
                if "evidence" in example:
                    echo(f"because of: {example['evidence']}")
                echo(example["text"])


@app.command()
def verify(
    place: Annotated[str, typer.Argument(metavar="DIR", help="A data directory (data.dir or data.remote).")],
    as_json: JsonOption = False,
) -> None:
    """Read all data and check checksums, counts and token ids. Status 1 when anything is wrong."""
    from bigtrain.data import verify

    report = verify(place)
    if as_json:
        print_json(VerifiedData(**report.to_json()))
    else:
        for problem in report.problems:
            echo(problem)
        echo(
            f"{place}: {report.tokens:,} tokens of {report.documents:,} documents in {report.shards} shards; "
            + (f"{len(report.problems)} problems" if report.problems else f"all {report.blocks:,} blocks are right")
        )
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def where(
    run: RunArgument,
    step: Annotated[int, typer.Option(help="A step of the run's schedule, from 1.")],
    text: Annotated[
        bool, typer.Option("--text", help="Print the text of each part of a document, and labels.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the documents in a step's global batch, and check its digest against the run's metrics."""
    from bigtrain.cli.labelled_text import with_labels
    from bigtrain.rundir import documents_of_step

    found = documents_of_step(run, step, text=text)
    if as_json:
        print_json(found)
        return
    parts = [
        (sample, part, f"{sample.source}:{part.file}:{part.position}")
        for sample in found.samples
        for part in sample.documents
    ]
    if text:
        for sample, part, origin in parts:
            echo(f"--- {sample.position}: {origin}, tokens {part.start}-{part.end} of {part.tokens}, {part.id}")
            if part.metadata:
                echo(_fields(part.metadata))
            echo(with_labels(part))
    else:
        metadata = any(part.metadata for _, part, _ in parts)
        columns = ("", "sample", "epoch", "sequence", "document", "tokens", "of", "id")
        rows = [
            (
                sample.position,
                sample.sample,
                sample.epoch,
                sample.sequence,
                origin,
                f"{part.start}-{part.end}",
                part.tokens,
                part.id if part.labelled else f"{part.id} (skipped)",
                *([_fields(part.metadata)] if metadata else []),
            )
            for sample, part, origin in parts
        ]
        print_table(f"Step {step} of {run}", (*columns, *(["metadata"] if metadata else [])), rows)
    recorded = "the same as in metrics.jsonl" if found.recorded_digest else "not in metrics.jsonl yet"
    echo(
        f"{len(parts)} parts of documents in {len(found.samples)} samples; "
        f"batch digest {found.batch_digest}, {recorded}"
    )


@app.command()
def when(
    run: RunArgument,
    document: Annotated[str, typer.Option(help="An id as `where` prints it, or SOURCE:FILE or SOURCE:FILE:POSITION.")],
    as_json: JsonOption = False,
) -> None:
    """Show the steps of a run's schedule that train on a document, and which of them are done."""
    from bigtrain.rundir import steps_of_document

    found = steps_of_document(run, document)
    if as_json:
        print_json(found)
        return
    which = found.document
    name = f"{which.source}:{which.file}:{which.position} ({which.tokens} tokens, {which.id})"
    if which.metadata:
        echo(_fields(which.metadata))
    if which.held_out:
        echo(f"{name} is held out for validation: it is never trained on")
        return
    columns = ("step", "epoch", "sample", "sequence", "tokens", "")
    rows = [
        (row.step, row.epoch, row.sample, row.sequence, f"{row.start}-{row.end}", _state(row))
        for row in found.appearances
    ]
    print_table(name, columns, rows)
    steps = {row.step: row.done for row in found.appearances if row.labelled}
    echo(
        f"in {len(steps)} of {found.total_steps} steps, {sum(steps.values())} of them done "
        f"(the run is at step {found.newest_step})"
    )


@app.command(cls=TakesOverrides)
def diff(
    one: Annotated[Path, typer.Argument(metavar="A", help="A run directory or a configuration.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="Another, or the same with key=value after it.")],
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Show the step from which on two runs or configurations train on other data, and whether a run may change over."""
    from bigtrain.rundir import compare_plans

    found = compare_plans(one, other, overrides or [])
    if as_json:
        print_json(found)
        return
    rows = [(row.source, *(f"{n:,}" for n in row.samples)) for row in found.sources]
    print_table("Samples in the whole schedule", ("source", str(one), str(other)), rows)
    parting = found.same_before
    if parting is None:
        differs = f"they differ in {', '.join(found.differs)}, and every batch is the same"
        echo(differs if found.differs else f"the same plan, {found.plans[0]}")
        return
    echo(
        f"they differ in {', '.join(found.differs)}; all batches before step {parting.step:,} are the same "
        f"(sample {parting.sample:,}, {parting.tokens:,} tokens)"
    )
    for path, consumed in zip((one, other), found.consumed, strict=True):
        if consumed is not None:
            may = "may change over to the other" if consumed <= parting.sample else "has gone too far to change"
            echo(f"{path} has done {consumed:,} samples: it {may}")


@app.command()
def card(run: RunArgument, as_json: JsonOption = False) -> None:
    """Write RUN/data-card.md and .json, a card of what the run was trained on, and print it."""
    from bigtrain.rundir import write_card

    document, markdown = write_card(run)
    if as_json:
        print_json(RunDataCard(**document))
    else:
        echo(markdown, nl=False)


@app.command()
def index(
    directory: Annotated[Path, typer.Argument(help="A data directory (data.dir of a configuration).")],
    as_json: JsonOption = False,
) -> None:
    """Index documents by id and by file, so that `when` finds one among billions without reading all shards."""
    from bigtrain.data import index_datasets

    paths = [str(path) for path in index_datasets(directory)]
    if as_json:
        print_json(paths)
    else:
        echo("\n".join(paths))


def _fields(metadata: Mapping[str, Any] | None) -> str:
    """Metadata on one line."""
    return ", ".join(f"{name} {value}" for name, value in (metadata or {}).items())


def _state(appearance: AppearanceInStep) -> str:
    state = "done" if appearance.done else "to come"
    return state if appearance.labelled else f"{state}, skipped: it has no labels"
