"""The funnel of a data folder as an HTML page: a figure for each source, and examples of what was removed.

A figure goes down from the documents that were read, by what each rule took of them, to those that are kept:

    documents read        ████████████████████████
    gopher_quality: ...   ░░░░░░░░░░░░░░░░░░░█████      what goes on is pale, what is removed here has the rule's colour
    dedup: ...            ░░░░░░░░░░░░░░░███
    kept                  ███████████████               training and held-out
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bigtrain.base import write_asked_for
from bigtrain.data import Count, Funnel, describe_skipped
from bigtrain.report.page import page, render

WIDTH, ROW, BAR = 1120, 26, 16
LEFT, RIGHT = 370, 240
FULL = WIDTH - LEFT - RIGHT
HEAD = 34
"""Height of the heading."""
COLUMNS = (WIDTH - 160, WIDTH - 90, WIDTH - 8)
"""Where the columns of numbers end: documents, share, MB."""

READ, PASSES, TRAIN, VALIDATION = "#334155", "#e0e7ff", "#1d4ed8", "#93b4f5"
REMOVED = ("#d97706", "#dc2626", "#7c3aed", "#059669", "#db2777", "#0891b2", "#78716c")


def write_funnel_page(file: Path, funnels: Mapping[str, Funnel], title: str) -> None:
    """Write the page of these funnels. Raises BigtrainError where the file cannot be written."""
    write_asked_for(file, funnel_page(funnels, title))


def funnel_page(funnels: Mapping[str, Funnel], title: str) -> str:
    """The page of these funnels, by the name of their source."""
    return page("funnel.html", title, styles=["funnel.css"], funnels=funnel_parts(funnels))


def funnel_parts(funnels: Mapping[str, Funnel]) -> dict[str, Any]:
    """What the template funnel_body.html shows of the funnels."""
    colors = _colors(funnels)
    return {
        "facts": _facts(funnels),
        "sources": [
            {
                "name": source,
                "figure": _figure(source, funnel, colors),
                "caption": f"written: {funnel.written_bytes / 1e6:,.3f} MB, {funnel.tokens:,} tokens"
                + (f"; {describe_skipped(funnel.skipped_files)}" if funnel.skipped_files else ""),
                "examples": _examples(funnel) if funnel.removed else None,
            }
            for source, funnel in funnels.items()
        ],
    }


def _facts(funnels: Mapping[str, Funnel]) -> list[tuple[str, str]]:
    total = Funnel()
    for funnel in funnels.values():
        total.add(funnel)
    read, kept = total.read.documents, total.train.documents + total.validation.documents
    return [
        ("sources", f"{len(funnels):,}"),
        ("documents read", f"{read:,}"),
        ("kept", f"{kept:,}"),
        ("share kept", f"{kept / max(read, 1):.2%}"),
        ("written", f"{total.written_bytes / 1e6:,.3f} MB"),
        ("tokens", f"{total.tokens:,}"),
    ]


def _colors(funnels: Mapping[str, Funnel]) -> dict[str, str]:
    """A colour for each rule, the same in all figures."""
    rules = dict.fromkeys(removal.rule for funnel in funnels.values() for removal in funnel.removed)
    return {rule: REMOVED[number % len(REMOVED)] for number, rule in enumerate(rules)}


def _figure(source: str, funnel: Funnel, colors: Mapping[str, str]) -> Markup:
    rows = [{"y": HEAD + ROW * number, **row} for number, row in enumerate(_rows(funnel, colors))]
    return render(
        "funnel.svg",
        width=WIDTH,
        height=HEAD + ROW * len(rows) + 6,
        source=source,
        columns=list(zip(COLUMNS, ("documents", "share", "MB as read"), strict=True)),
        rows=rows,
        left=LEFT,
        full=FULL,
        bar=BAR,
    )


def _rows(funnel: Funnel, colors: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    read = funnel.read.documents
    yield _row("documents read", funnel.read, read, [(0, read, READ)])
    left = read
    for removal in funnel.removed:
        left -= removal.documents
        bars = [(0, left, PASSES), (left, removal.documents, colors[removal.rule])]
        yield _row(f"{removal.rule}: {removal.reason}", removal, read, bars)
    train, validation = funnel.train, funnel.validation
    yield _row("kept for training", train, read, [(0, train.documents, TRAIN)])
    yield _row("kept, held out", validation, read, [(train.documents, validation.documents, VALIDATION)])


def _row(name: str, count: Count, read: int, bars: list[tuple[int, int, str]]) -> dict[str, Any]:
    """One row: its name, bars (first document, documents, colour), and three numbers."""
    numbers = (f"{count.documents:,}", f"{count.documents / max(read, 1):.2%}", f"{count.bytes / 1e6:,.3f}")
    return {
        "name": name,
        "bars": [
            (f"{LEFT + FULL * first / read:.2f}", f"{max(FULL * documents / read, 1.5):.2f}", color)
            for first, documents, color in bars
            if documents
        ],
        "numbers": list(zip(COLUMNS, numbers, strict=True)),
    }


def _examples(funnel: Funnel) -> list[tuple[str, str, str, str]]:
    return [
        (
            f"{removal.rule}: {removal.reason}",
            f"{example['file']}:{example['position']}",
            example.get("evidence", ""),
            example["text"],
        )
        for removal in funnel.removed
        for example in removal.examples
    ]
