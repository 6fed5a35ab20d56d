"""The funnel of a data folder as an HTML page: a picture for each source, and examples of what was removed.

A picture goes down from the documents that were read, by what each rule took of them, to those that are kept:

    documents read        ████████████████████████
    gopher_quality: ...   ░░░░░░░░░░░░░░░░░░░█████      what goes on is pale, what is removed here has the rule's colour
    dedup: ...            ░░░░░░░░░░░░░░░███
    kept                  ███████████████               training and held-out
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from bigtrain.base.errors import BigtrainError
from bigtrain.base.files import write_atomically
from bigtrain.data.build.funnel import Count, Funnel
from bigtrain.report.page import INK, MUTED, RULE, cards, page, svg, table, text

WIDTH, ROW, BAR = 1120, 26, 16
LEFT, RIGHT = 370, 240
FULL = WIDTH - LEFT - RIGHT
COLUMNS = (WIDTH - 160, WIDTH - 90, WIDTH - 8)
"""Where the columns of numbers end: documents, share, MB."""

READ, PASSES, TRAIN, VALIDATION = "#334155", "#e0e7ff", "#1d4ed8", "#93b4f5"
REMOVED = ("#d97706", "#dc2626", "#7c3aed", "#059669", "#db2777", "#0891b2", "#78716c")

FUNNEL_STYLE = f"""
figure {{ margin: 1rem 0 }}
.examples td {{ border-top: 1px solid {RULE}; padding: .4rem .8rem .4rem 0 }}
.examples td:first-child {{ white-space: nowrap }}
.examples td:last-child {{ white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace }}
"""


def write_funnel_page(file: Path, funnels: Mapping[str, Funnel], title: str) -> None:
    """Write the page of these funnels. Raises BigtrainError where the file cannot be written."""
    try:
        write_atomically(file, funnel_page(funnels, title))
    except OSError as error:
        raise BigtrainError(
            f"{file} cannot be written: {error.strerror}", fix="give a file in a folder of yours"
        ) from None


def funnel_page(funnels: Mapping[str, Funnel], title: str) -> str:
    """The page of these funnels, by the name of their source."""
    return page(title, funnel_body(funnels), style=FUNNEL_STYLE)


def funnel_body(funnels: Mapping[str, Funnel]) -> str:
    """What is on that page, for another one, which then needs FUNNEL_STYLE."""
    colors = _colors(funnels)
    parts = [_overview(funnels)]
    for source, funnel in funnels.items():
        caption = f"written: {funnel.written_bytes / 1e6:,.3f} MB, {funnel.tokens:,} tokens"
        parts.append(f"<figure>{_picture(source, funnel, colors)}<figcaption>{caption}</figcaption></figure>")
        if funnel.removed:
            parts.append(_examples(source, funnel))
    return "\n".join(parts)


def _overview(funnels: Mapping[str, Funnel]) -> str:
    total = Funnel()
    for funnel in funnels.values():
        total.add(funnel)
    read, kept = total.read.documents, total.train.documents + total.validation.documents
    return cards(
        [
            ("sources", f"{len(funnels):,}"),
            ("documents read", f"{read:,}"),
            ("kept", f"{kept:,}"),
            ("share kept", f"{kept / max(read, 1):.2%}"),
            ("written", f"{total.written_bytes / 1e6:,.3f} MB"),
            ("tokens", f"{total.tokens:,}"),
        ]
    )


def _colors(funnels: Mapping[str, Funnel]) -> dict[str, str]:
    """A colour for each rule, the same in all pictures."""
    rules = dict.fromkeys(removal.rule for funnel in funnels.values() for removal in funnel.removed)
    return {rule: REMOVED[number % len(REMOVED)] for number, rule in enumerate(rules)}


def _picture(source: str, funnel: Funnel, colors: Mapping[str, str]) -> str:
    rows = list(_rows(funnel, colors))
    parts = [f'<text x="8" y="22" font-size="15" font-weight="600" fill="{INK}">{text(source)}</text>']
    for end, column in zip(COLUMNS, ("documents", "share", "MB as read"), strict=True):
        parts.append(f'<text x="{end}" y="22" text-anchor="end" fill="{MUTED}">{column}</text>')
    for number, row in enumerate(rows):
        parts.append(f'<g class="row" transform="translate(0 {34 + ROW * number})">{row}</g>')
    return svg(WIDTH, 34 + ROW * len(rows) + 6, parts)


def _rows(funnel: Funnel, colors: Mapping[str, str]) -> Iterator[str]:
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


def _row(what: str, count: Count, read: int, bars: list[tuple[int, int, str]]) -> str:
    """One row: a text, bars (first document, documents, colour), and three numbers."""
    share = count.documents / max(read, 1)
    parts = [f'<text x="{LEFT - 12}" y="{BAR - 3}" text-anchor="end">{text(what)}</text>']
    parts.append(f'<line x1="{LEFT}" x2="{LEFT + FULL}" y1="{BAR + 5}" y2="{BAR + 5}" stroke="{RULE}"/>')
    for first, documents, color in bars:
        if documents:
            x, width = (FULL * part / read for part in (first, documents))
            parts.append(
                f'<rect x="{LEFT + x:.2f}" width="{max(width, 1.5):.2f}" height="{BAR}" rx="2" fill="{color}"/>'
            )
    numbers = (f"{count.documents:,}", f"{share:.2%}", f"{count.bytes / 1e6:,.3f}")
    for end, number in zip(COLUMNS, numbers, strict=True):
        parts.append(f'<text x="{end}" y="{BAR - 3}" text-anchor="end">{number}</text>')
    return "".join(parts)


def _examples(source: str, funnel: Funnel) -> str:
    rows = [
        (
            f"{removal.rule}: {removal.reason}",
            f"{example['file']}:{example['position']}",
            example.get("evidence", ""),
            example["text"],
        )
        for removal in funnel.removed
        for example in removal.examples
    ]
    header = ("removed by", "document", "evidence", "its beginning")
    summary = f"<summary>Examples of what was removed from {text(source)}</summary>"
    return f'<details class="examples">{summary}{table(rows, header=header)}</details>'
