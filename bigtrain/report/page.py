"""HTML pages from the templates in this package. A page fetches nothing, so that it opens from disk anywhere.

templates/page.html is the frame of all pages; static/ has their style sheets. Every value that a template prints is
escaped, and characters that a page may not hold are shown by others: the texts of a corpus can hold anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

STATIC = Path(__file__).parent / "static"

_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421, 0xFFFE: 0xFFFD}
_VISIBLE |= dict.fromkeys((*range(0xD800, 0xE000), 0xFFFF), 0xFFFD)


def visible(value: object) -> object:
    """A value as a page can hold it: NUL is shown as ␀, for example. Markup and numbers stay as they are."""
    return value if isinstance(value, Markup | int | float) else str(value).translate(_VISIBLE)


def render(template: str, **data: Any) -> Markup:
    """A template of this package with these values."""
    return Markup(_environment().get_template(template).render(data).strip())


def page(template: str, title: str, *, styles: Sequence[str] = (), **data: Any) -> str:
    """A whole page.

    Args:
        template: extends page.html.
        title: of the page, and its heading.
        styles: files in static/, beside page.css.
        data: what the template prints.
    """
    sheets = [Markup((STATIC / name).read_text(encoding="utf-8")) for name in ("page.css", *styles)]
    return render(template, title=title, styles=sheets, **data) + "\n"


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("bigtrain.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
