"""HTML pages from the templates in this package. A page fetches nothing, so that it opens from disk anywhere.

templates/page.html is the frame of all pages; static/ has their style sheets. Every value that a template prints is
escaped, and characters that a page may not hold are shown by others: the texts of a corpus can hold anything.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bigtrain.base import show_controls

STATIC = Path(__file__).parent / "static"

_NO_CHARACTERS = dict.fromkeys((0xFFFE, 0xFFFF), 0xFFFD)


def visible(value: object) -> object:
    """A value as a page can hold it: NUL is shown as ␀, for example. Markup and numbers stay as they are."""
    return value if isinstance(value, Markup | int | float) else show_controls(str(value)).translate(_NO_CHARACTERS)


def render(template: str, **data: Any) -> Markup:
    """A template of this package with these values."""
    return Markup(_environment().get_template(template).render(data).strip())


def page(template: str, title: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), **data: Any) -> str:
    """A whole page.

    Args:
        template: extends page.html.
        title: of the page, and its heading.
        styles: style sheets in static/, beside page.css.
        scripts: scripts in static/; the browser runs these and no others.
        data: what the template prints.
    """
    sheets = [_static(name) for name in ("page.css", *styles)]
    inline = [_script(name) for name in scripts]
    return str(render(template, title=title, styles=sheets, scripts=inline, policy=_policy(inline), **data)) + "\n"


def _static(name: str) -> Markup:
    return Markup((STATIC / name).read_text(encoding="utf-8"))


def _script(name: str) -> Markup:
    """A script with the licence that lies beside it, in a form that is the same to parsers of HTML and of XML."""
    script, licence = _static(name), (STATIC / name).with_name("LICENSE")
    if licence.is_file():
        script = Markup("/*\n{}*/\n{}").format(Markup(licence.read_text(encoding="utf-8")), script)
    return Markup("//<![CDATA[\n{}//]]>").format(script)


def _policy(scripts: Sequence[str]) -> str:
    """What the page may do: nothing may be fetched, and a text of a corpus can never become a script that runs."""
    hashes = [b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}"


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
