"""bigtrain data classifier train|score, and bigtrain data ngram train|score: models that rules of `clean` ask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bigtrain.cli.printing import JsonOption, echo, print_json, print_table, say

if TYPE_CHECKING:
    from bigtrain.data import ScoredDocuments

classifier_app = typer.Typer(
    help="Train and try classifiers of texts, for the rule `classifier`.", no_args_is_help=True
)
ngram_app = typer.Typer(help="Train and try n-gram models, for the rule `perplexity`.", no_args_is_help=True)

TextField = Annotated[str, typer.Option(help="JSON lines, Parquet: the field that holds the text.")]
Show = Annotated[int, typer.Option(min=0, help="How many documents to list.")]
Inputs = Annotated[
    list[str], typer.Argument(metavar="TEXT|PATH...", help="Files of documents, folders or globs; or a text itself.")
]


@classifier_app.command("train")
def train_classifier_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, in fastText's format (.bin).")],
    positive: Annotated[list[str], typer.Option(metavar="PATH", help="Documents to keep; may be given several times.")],
    negative: Annotated[list[str], typer.Option(metavar="PATH", help="Other documents; may be given several times.")],
    text_field: TextField = "text",
    word_ngrams: Annotated[int, typer.Option(min=1, max=10, help="The longest n-gram of words.")] = 2,
    buckets: Annotated[int, typer.Option(min=1, max=1 << 28, help="Different hashes of n-grams.")] = 1 << 21,
    max_words: Annotated[int, typer.Option(min=1, help="Most single words that are features.")] = 100_000,
    min_count: Annotated[int, typer.Option(min=1, help="Rarer words are no features.")] = 2,
    l2: Annotated[float, typer.Option(min=1e-12, help="The strength of the penalty on weights.")] = 1e-6,
    as_json: JsonOption = False,
) -> None:
    """Train a linear classifier from two sets of documents: text, JSON lines or Parquet, by their suffixes.

    Every tenth document or so is held out, and the printed measures are of these.
    """
    from bigtrain.data import ClassifierOptions, train_classifier

    options = ClassifierOptions(
        word_ngrams=word_ngrams, buckets=buckets, max_words=max_words, min_count=min_count, l2=l2
    )
    trained = train_classifier(positive, negative, out, text_field=text_field, options=options, report=say)
    if as_json:
        print_json(trained)
        return
    rows = [
        (
            f"{at.threshold:.1f}",
            f"{at.kept:.1%}",
            "-" if at.precision is None else f"{at.precision:.1%}",
            f"{at.recall:.1%}",
        )
        for at in trained.thresholds
    ]
    print_table(f"{trained.held_out:,} held-out documents", ("threshold", "kept", "precision", "recall"), rows)
    bins = [
        (f"{each.low:.1f} to {each.high:.1f}", f"{each.documents:,}", f"{each.mean_score:.3f}", f"{each.positive:.3f}")
        for each in trained.calibration
    ]
    print_table("Calibration", ("score", "documents", "mean score", "positive"), bins)
    echo(
        f"accuracy {trained.accuracy:.2%} (the more frequent label alone: {trained.majority:.2%}), "
        f"AUC {trained.auc:.4f}, loss {trained.log_loss:.4f} nats"
    )
    echo(
        f"{out}: {trained.features:,} features of {trained.positive:,} positive and {trained.negative:,} negative "
        f"documents, hash {trained.hash}"
    )


@classifier_app.command("score")
def score_by_classifier_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A classifier in fastText's format.")],
    inputs: Inputs,
    label: Annotated[str, typer.Option(help="The label whose score is shown.")] = "positive",
    text_field: TextField = "text",
    show: Show = 20,
    as_json: JsonOption = False,
) -> None:
    """Show the score that a classifier gives to documents, and percentiles of all scores."""
    from bigtrain.config import ClassifierSettings
    from bigtrain.data import score_by_classifier

    limits = ClassifierSettings(model=model, label=label)
    _print_scores(score_by_classifier(limits, inputs, text_field, show), as_json=as_json)


@ngram_app.command("train")
def train_ngram_command(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Documents: text, JSON lines or Parquet.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: an ARPA file if it ends in .arpa.")],
    text_field: TextField = "text",
    order: Annotated[int, typer.Option(min=1, max=10, help="The n of the n-grams.")] = 5,
    tokens: Annotated[Literal["words", "spaces"], typer.Option(help="What is counted, as in the rule.")] = "words",
    max_words: Annotated[int, typer.Option(min=1, max=1 << 24, help="Most words that the model knows.")] = 100_000,
    min_count: Annotated[int, typer.Option(min=1, help="Rarer words are unknown.")] = 2,
    max_tokens: Annotated[int, typer.Option(min=1, help="Stop reading after so many tokens.")] = 20_000_000,
    as_json: JsonOption = False,
) -> None:
    """Train an n-gram model with modified Kneser-Ney smoothing.

    Every tenth document or so is held out, and the printed perplexities are of these.
    """
    from bigtrain.data import NGramOptions, train_ngrams

    options = NGramOptions(order=order, tokens=tokens, max_words=max_words, min_count=min_count, max_tokens=max_tokens)
    trained = train_ngrams(paths, out, text_field=text_field, options=options, report=say)
    if as_json:
        print_json(trained)
        return
    rows = [(f"{each.percent:g}%", f"{each.value:,.1f}") for each in trained.perplexities]
    print_table(f"Perplexities of {trained.held_out:,} held-out documents", ("percentile", "perplexity"), rows)
    counts = ", ".join(f"{count:,} {n}-grams" for n, count in enumerate(trained.ngrams, start=1))
    echo(f"{out}: {counts}, hash {trained.hash}")


@ngram_app.command("score")
def score_by_perplexity_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An n-gram model or an ARPA file.")],
    inputs: Inputs,
    tokens: Annotated[Literal["words", "spaces"], typer.Option(help="What is counted, as in the rule.")] = "words",
    text_field: TextField = "text",
    show: Show = 20,
    as_json: JsonOption = False,
) -> None:
    """Show the perplexity of documents, and percentiles of all perplexities: limits for the rule `perplexity`."""
    from bigtrain.config import PerplexitySettings
    from bigtrain.data import score_by_perplexity

    limits = PerplexitySettings(model=model, tokens=tokens, min=1.0)  # the limits themselves do not count here
    _print_scores(score_by_perplexity(limits, inputs, text_field, show), as_json=as_json)


def _print_scores(found: ScoredDocuments, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [(f"{each.file}:{each.position}", _value(each.value)) for each in found.documents]
    print_table(f"{found.count:,} documents", ("document", found.measure), rows)
    if found.count > 1:
        shares = [(f"{each.percent:g}%", _value(each.value)) for each in found.percentiles]
        print_table("All of them", ("percentile", found.measure), shares)


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4f}" if value <= 1 else f"{value:,.1f}"
