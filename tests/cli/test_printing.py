"""What commands print cannot command a terminal, whatever a corpus, a name or a server put into it."""

from __future__ import annotations

import ast
import json
import logging
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bigtrain.cli
from bigtrain.base import BigtrainError, show_controls
from bigtrain.cli import main as program
from bigtrain.cli.printing import echo, print_json, print_table, say
from bigtrain.cli.texts import InTurn
from bigtrain.observe.terminal import LOGGER, log_to

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\x08\r\u202egnp.exe\u2066 tab\there\nline"
DANGEROUS = {*map(chr, range(32)), "\x7f", *map(chr, range(0x80, 0xA0)), "\u202a", "\u202e", "\u2066", "\u2069"} - {
    "\t",
    "\n",
}


def is_safe(text: str) -> bool:
    return not DANGEROUS & set(text)


@given(st.text(st.characters(), max_size=50))
def test_any_text_is_shown_without_its_control_characters(text: str) -> None:
    shown = show_controls(text)
    assert is_safe(shown) and shown.encode() is not None
    assert show_controls(shown) == shown
    if is_safe(text) and text.encode(errors="ignore").decode() == text:
        assert shown == text


def test_every_way_of_printing_shows_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    echo(HOSTILE)
    say(HOSTILE)
    print_table(HOSTILE, [HOSTILE, "b"], [(HOSTILE, 1)])
    InTurn([HOSTILE]).show(0, HOSTILE, "end")
    printed = capsys.readouterr()
    assert is_safe(printed.out) and is_safe(printed.err)
    assert "␛[2J" in printed.out and "␛[2J" in printed.err and "\\u202e" in printed.out
    assert "tab\there\nline" in printed.err


def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": HOSTILE})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"text": HOSTILE} and is_safe(printed)


def test_an_error_and_a_line_of_the_log_show_control_characters(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = BigtrainError(HOSTILE, found=HOSTILE)
    program._print(error, error)
    log_to(0, tmp_path / "rank.log")
    try:
        logging.getLogger("bigtrain.test").warning(HOSTILE)
    finally:
        for handler in LOGGER.handlers:
            handler.close()
        LOGGER.handlers.clear()
        LOGGER.propagate = True
    printed = capsys.readouterr().err
    assert printed.count("␛[2J") == 3 and is_safe(printed)
    assert is_safe((tmp_path / "rank.log").read_text())


def test_commands_print_through_one_module() -> None:
    """No other module of the command line calls `print` or `typer.echo` on what it has not written itself."""
    folder = Path(bigtrain.cli.__file__).parent
    found = []
    for path in folder.glob("*.py"):
        if path.name in ("printing.py", "torchrun.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo", "sys.stdout.write"):
                argument = ast.unparse(node.args[0])
                if not argument.startswith("show_controls(") and "__version__" not in argument:
                    found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not found, sys.stderr.write("\n".join(found))
