"""The page of a funnel shows the numbers of funnel.json and no others, and opens whatever the documents say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bigtrain.cli.data_commands import app
from bigtrain.data.build.clean import RULES, Rejection
from bigtrain.data.build.funnel import Funnel
from bigtrain.data.format.documents import Document
from bigtrain.report.funnel_page import funnel_page
from bigtrain.report.page import visible as visible_value

SVG = "{http://www.w3.org/2000/svg}"
STEPS = ["gopher_quality", "c4", "pii"]


@st.composite
def funnels(draw: st.DrawFn) -> Funnel:
    """Funnels of up to a million documents, that say anything."""
    funnel = Funnel(tokens=draw(st.integers(0, 10**12)))
    verdicts = st.builds(
        Rejection, st.sampled_from(["gopher_quality", "c4"]), st.text(max_size=12), st.text(max_size=9)
    )
    for verdict in draw(st.lists(verdicts, max_size=5)):
        document = Document(draw(st.text(max_size=20)), draw(st.text(max_size=8)), draw(st.integers(0, 99)))
        funnel.remove(document, len(document.content), verdict)
        more = draw(st.integers(0, 10**5))
        next(r for r in funnel.removed if (r.rule, r.reason) == (verdict.rule, verdict.reason)).add(more, 70 * more)
        funnel.read.add(more, 70 * more)
    for held_out in draw(st.lists(st.booleans(), max_size=20)):
        funnel.keep(Document("kept", "f", 0), 4, held_out=held_out)
    return funnel


def parse(page: str) -> ElementTree.Element:
    """As XML, which is stricter than any browser."""
    return ElementTree.fromstring(page.removeprefix("<!doctype html>"))


def visible(text: str) -> str:
    """How the page shows characters that command a terminal, reverse a line, or that HTML cannot have."""
    return str(visible_value(text))


def rows_of(value: dict[str, Any]) -> list[tuple[str, ...]]:
    """What a figure should show, from funnel.json."""
    parts = [("documents read", value["read"])]
    parts += [(f"{removal['rule']}: {removal['reason']}", removal) for removal in value["removed"]]
    parts += [("kept for training", value["train"]), ("kept, held out", value["validation"])]
    read = value["read"]["documents"]
    return [
        (visible(what), f"{n['documents']:,}", f"{n['documents'] / max(read, 1):.2%}", f"{n['bytes'] / 1e6:,.3f}")
        for what, n in parts
    ]


def check(page: str, values: dict[str, dict[str, Any]]) -> None:
    root = parse(page)
    figures = root.findall(".//figure")
    assert len(figures) == len(values)
    for figure, (source, value) in zip(figures, values.items(), strict=True):
        groups = figure.findall(f".//{SVG}g")
        assert [tuple(t.text or "" for t in group.findall(f"{SVG}text")) for group in groups] == rows_of(value)
        title = figure.find(f".//{SVG}text")
        assert title is not None and title.text == source
        caption = figure.find("figcaption")
        assert caption is not None
        assert caption.text == f"written: {value['written_bytes'] / 1e6:,.3f} MB, {value['tokens']:,} tokens"
        check_bars(groups, value)
    tables = root.findall(".//table")
    examples = [
        [
            [
                visible(t)
                for t in (
                    f"{r['rule']}: {r['reason']}",
                    f"{e['file']}:{e['position']}",
                    e.get("evidence", ""),
                    e["text"],
                )
            ]
            for r in value["removed"]
            for e in r["examples"]
        ]
        for value in values.values()
        if value["removed"]
    ]
    assert [[[cell.text or "" for cell in row] for row in table.findall("tr")[1:]] for table in tables] == examples
    cards = {div.findtext("span"): div.findtext("b") for div in root.findall(".//div[@class='cards']/div")}
    read = sum(value["read"]["documents"] for value in values.values())
    kept = sum(value[split]["documents"] for value in values.values() for split in ("train", "validation"))
    assert cards == {
        "sources": f"{len(values):,}",
        "documents read": f"{read:,}",
        "kept": f"{kept:,}",
        "share kept": f"{kept / max(read, 1):.2%}",
        "written": f"{sum(value['written_bytes'] for value in values.values()) / 1e6:,.3f} MB",
        "tokens": f"{sum(value['tokens'] for value in values.values()):,}",
    }


def check_bars(groups: list[ElementTree.Element], value: dict[str, Any]) -> None:
    """Each bar is as long as its share, and starts where the rest after it ends."""
    read = value["read"]["documents"]
    bars = [[(float(r.get("x", 0)), float(r.get("width", 0))) for r in g.findall(f"{SVG}rect")] for g in groups]
    if not read:
        assert not any(bars)
        return
    ((left, full),) = bars[0]
    remaining = read
    for row, removal in zip(bars[1:-2], value["removed"], strict=True):
        remaining -= removal["documents"]
        *_, (start, width) = row
        assert start == pytest.approx(left + full * remaining / read, abs=0.02)
        assert width == pytest.approx(max(full * removal["documents"] / read, 1.5), abs=0.02)
    train, validation = value["train"]["documents"], value["validation"]["documents"]
    assert remaining == train + validation
    for row, first, documents in ((bars[-2], 0, train), (bars[-1], train, validation)):
        wanted = [(left + full * first / read, max(full * documents / read, 1.5))] if documents else []
        assert row == [pytest.approx(bar, abs=0.02) for bar in wanted]


@settings(max_examples=100, deadline=None)
@given(st.lists(funnels(), max_size=3))
def test_every_number_and_text_of_a_page_is_that_of_its_funnel(made: list[Funnel]) -> None:
    named = {f"source-{number}": funnel for number, funnel in enumerate(made)}
    check(funnel_page(named, "a <title> & more"), {name: funnel.to_json() for name, funnel in named.items()})


def test_the_command_writes_the_page_of_the_files(tmp_path: Path) -> None:
    for source, marks in (("web", "<script>alert(1)</script> & \"q\" 'a' \0"), ("wiki", "]]> </pre> <!-- ")):
        funnel = Funnel(tokens=1234)
        for position in range(40):
            document = Document(f"{marks} {position}", "a<b>.txt", position)
            if position % 3:
                funnel.remove(document, len(document.content), Rejection(STEPS[position % 2], "too <short>"))
            else:
                funnel.keep(document, len(document.content), held_out=position % 9 == 0)
        (tmp_path / source).mkdir()
        funnel.write(tmp_path / source, STEPS)
    file = tmp_path / "funnel.html"
    result = CliRunner().invoke(app, ["funnel", str(tmp_path), "--html", str(file)])
    assert result.exit_code == 0, result.output
    assert f"the page with figures: {file}" in result.stderr
    page = file.read_text(encoding="utf-8")
    check(page, {name: json.loads((tmp_path / name / "funnel.json").read_text()) for name in ("web", "wiki")})
    root = parse(page)
    assert f"What became of the documents in {tmp_path}" == root.findtext("body/h1")
    assert not root.findall(".//script") and not root.findall(".//link") and not root.findall(".//img")
    assert set(re.findall(r"https?://[^\"]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"src=|href=|url\(|@import", page)


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    Funnel().write(tmp_path, [])
    result = CliRunner().invoke(app, ["funnel", str(tmp_path), "--html", str(tmp_path / "no" / "x.html")])
    assert result.exit_code == 1
    assert "x.html cannot be written: No such file or directory" in str(result.exception)


def test_a_rule_has_one_colour_on_the_whole_page() -> None:
    page = []
    for first, then in (list(RULES)[:2], list(RULES)[1::-1]):
        funnel = Funnel()
        for rule in (first, then):
            funnel.remove(Document("x", "f", 0), 1, Rejection(rule, "why"))
        page.append(funnel)
    figures = parse(funnel_page({"a": page[0], "b": page[1]}, "t")).findall(".//figure")
    colours = []
    for figure in figures:
        groups = figure.findall(f".//{SVG}g")[1:3]
        colours.append({g.findtext(f"{SVG}text"): g.findall(f"{SVG}rect")[-1].get("fill") for g in groups})
    assert colours[0] == colours[1] and len(set(colours[0].values())) == 2
