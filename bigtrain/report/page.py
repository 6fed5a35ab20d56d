"""The pieces of our HTML pages: one look for all of them, and nothing fetched, so that they open from disk anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

INK, MUTED, RULE, PAPER = "#0f172a", "#64748b", "#e2e8f0", "#ffffff"

_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421, 0xFFFE: 0xFFFD}
_VISIBLE |= dict.fromkeys((*range(0xD800, 0xE000), 0xFFFF), 0xFFFD)

STYLE = f"""
body {{ font: 15px/1.5 system-ui, sans-serif; color: {INK}; background: #f8fafc; margin: 2rem auto; max-width: 1480px;
       padding: 0 1rem }}
.cards {{ display: flex; flex-wrap: wrap; gap: .8rem }}
.cards div, figure, details {{ background: {PAPER}; border: 1px solid {RULE}; border-radius: 8px; padding: .7rem 1rem }}
.cards b {{ display: block; font-size: 1.3rem }} .cards span {{ color: {MUTED} }}
figure {{ margin: 0 }} svg {{ width: 100%; height: auto }} figcaption {{ color: {MUTED} }}
table {{ border-collapse: collapse }} td, th {{ padding: .15rem .8rem .15rem 0; vertical-align: top; text-align: left }}
th {{ color: {MUTED}; font-weight: 500 }}
details {{ margin-bottom: 1rem }} summary {{ cursor: pointer }} pre {{ overflow: auto }}
"""


def text(value: object) -> str:
    """As text of a page: markup is escaped, and signs that no page may hold are shown by others (NUL as ␀)."""
    return escape(str(value).translate(_VISIBLE))


def page(title: str, body: str, *, style: str = "") -> str:
    """A whole page; `body` and `style` are markup."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<title>{text(title)}</title>
<style>{STYLE}{style}</style></head><body>
<h1>{text(title)}</h1>
{body}
</body></html>
"""


def cards(facts: Iterable[tuple[str, str]]) -> str:
    """The main numbers, each with its name: pairs of name and value."""
    return f'<div class="cards">{"".join(f"<div><b>{text(v)}</b><span>{text(n)}</span></div>" for n, v in facts)}</div>'


def table(rows: Iterable[Sequence[object]], *, header: Sequence[str] = ()) -> str:
    """A table of texts."""
    head = f"<tr>{''.join(f'<th>{text(cell)}</th>' for cell in header)}</tr>" if header else ""
    return (
        "<table>"
        + head
        + "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
        + "</table>"
    )


def svg(width: float, height: float, parts: Iterable[str]) -> str:
    """A picture of these elements on white."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'font-family="system-ui, sans-serif" font-size="12" fill="#334155">',
            f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
            *parts,
            "</svg>",
        ]
    )
