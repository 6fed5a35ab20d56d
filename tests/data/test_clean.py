"""The rules of cleaning decide as published, and as datatrove does on the same words."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.config.cleaning import CleanStep
from bigtrain.data.build.clean import NO_TEXT, RULES, Rejection, Text, clean, gopher
from bigtrain.data.build.clean.text import sentences

GOLDEN = json.loads((Path(__file__).parent / "clean_golden.json").read_text())
REASONS = {
    "gopher_short_doc": "too few words",
    "gopher_long_doc": "too many words",
    "gopher_below_avg_threshold": "words too short",
    "gopher_above_avg_threshold": "words too long",
    "gopher_too_many_hashes": "too many hash signs",
    "gopher_too_many_ellipsis": "too many ellipses",
    "gopher_too_many_bullets": "too many bullet points",
    "gopher_too_many_end_ellipsis": "too many lines end with an ellipsis",
    "gopher_below_alpha_threshold": "too few words with letters",
    "gopher_enough_stop_words": "too few stop words",
    "dup_para_frac": "repeated paragraphs",
    "dup_para_char_frac": "characters in repeated paragraphs",
    "dup_line_frac": "repeated lines",
    "dup_line_char_frac": "characters in repeated lines",
    **{f"top_{n}_gram": f"most frequent {n}-gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"repeated {n}-grams" for n in range(5, 11)},
    "lorem_ipsum": "lorem ipsum",
    "curly_bracket": "curly bracket",
    "too_few_sentences": "too few sentences",
    "line_punct_ratio": "too few lines end in punctuation",
    "short_line_ratio": "too many short lines",
    "char_dup_ratio": "characters in repeated lines",
    "list_ratio": "too many line ends",
}


def step(rule: str, **limits: Any) -> CleanStep:
    return CleanStep.model_validate({rule: limits})


def reason(rule: str, text: str, **limits: Any) -> str | None:
    """Why a rule refuses a text; None where it does not."""
    rejection = RULES[rule](Text(text), step(rule, **limits).settings)
    assert not isinstance(rejection, Rejection) or rejection.rule == rule
    return rejection.reason if isinstance(rejection, Rejection) else None


@pytest.mark.parametrize("rule", ["gopher_quality", "gopher_repetition", "c4", "fineweb"])
def test_on_the_same_words_every_verdict_is_datatroves(rule: str) -> None:
    reasons = set()
    for document in GOLDEN["documents"]:
        wanted = document["verdicts"][rule]["same_words"]
        assert reason(rule, document["text"]) == (wanted and REASONS[wanted]), document["name"]
        reasons.add(wanted)
    assert len(reasons) >= 4  # kept, and at least three ways to be refused


def test_with_its_own_words_datatrove_decides_alike_on_nearly_all_texts() -> None:
    differing = [
        (document["name"], rule, rejection)
        for document in GOLDEN["documents"]
        for rule, rejection in document["verdicts"].items()
        if rejection["datatrove"] != rejection["same_words"]
    ]
    assert len(differing) <= 7, differing  # of 392


def test_c4_keeps_the_same_lines_as_datatrove() -> None:
    rewritten = 0
    for document in GOLDEN["documents"]:
        if wanted := document["verdicts"]["c4"].get("rewritten"):
            text = clean(document["text"], [step("c4")])
            assert isinstance(text, str)
            assert hashlib.sha256(text.encode()).hexdigest() == wanted, document["name"]
            rewritten += 1
    assert rewritten >= 10


PROSE = "\n".join(f"Line {n} tells of the {w} and that it was seen." for n, w in enumerate("abcdefghij"))


def prose(words: int) -> str:
    """So many different words, with stop words among them."""
    return " ".join(["the", "of", *(f"word{number}" for number in range(words - 2))])


def lines(long: int, short: int, end: str) -> str:
    """So many different lines of more than 30 characters with this end, and of at most 30 with a full stop."""
    return "\n".join(
        [f"Line {n:02} of a text that has many {end.format(n=n)}" for n in range(long)]
        + [f"Word {n:02} is in a short line." for n in range(short)]
    )


@pytest.mark.parametrize(
    ("rule", "kept", "refused", "why"),
    [
        ("gopher_quality", prose(50), prose(49), "too few words"),
        ("gopher_quality", prose(100_000), prose(100_001), "too many words"),
        ("gopher_quality", "the that " + "abc " * 60, "the that " + "ab " * 60, "words too short"),
        (
            "gopher_quality",
            "the of " + "a" * 10 + " abcdefghij" * 60,
            "the of " + "abcdefghijk " * 60,
            "words too long",
        ),
        ("gopher_quality", prose(90) + " #" * 10, prose(89) + " #" * 10, "too many hash signs"),
        ("gopher_quality", "... " * 10 + prose(90), "... " * 10 + prose(89), "too many ellipses"),
        ("gopher_quality", "\n".join([prose(50), *["• it is so"] * 9]), "• " + prose(50), "too many bullet points"),
        (
            "gopher_quality",
            "\n".join([prose(50)] * 7 + ["it is so ..."] * 3),
            "\n".join([prose(50)] * 6 + ["it is so ..."] * 3),
            "too many lines end with an ellipsis",
        ),
        ("gopher_quality", prose(80) + " 12" * 20, prose(80) + " 12" * 21, "too few words with letters"),
        ("gopher_quality", "word " * 50 + "the of", "word " * 50 + "the the", "too few stop words"),
        (
            "gopher_repetition",
            "\n\n".join([prose(200), "a", "b", "c", "d", "e", "f", *["a"] * 3]),
            "\n\n".join([prose(200), "a", "b", "c", "d", "e", *["a"] * 3]),
            "repeated paragraphs",
        ),
        (
            "gopher_repetition",
            "\n".join([prose(200), "a", "b", "c", "d", "e", "f", *["a"] * 3]),
            "\n".join([prose(200), "a", "b", "c", "d", "e", *["a"] * 3]),
            "repeated lines",
        ),
        ("c4", "This is one. And two. Three? Four! Five.", "This is one. And two. Three? Four!", "too few sentences"),
        ("c4", PROSE, PROSE + "\nThis is Lorem Ipsum text.", "lorem ipsum"),
        ("c4", PROSE, PROSE + "\nThis is { a block.", "curly bracket"),
        ("fineweb", lines(22, 3, "{n}"), lines(23, 3, "{n}"), "too few lines end in punctuation"),
        (
            "fineweb",
            lines(33, 67, "is on the list today too."),
            lines(32, 68, "is on the list today too."),
            "too many short lines",
        ),
    ],
)
def test_each_threshold_keeps_what_meets_it_and_refuses_what_does_not(
    rule: str, kept: str, refused: str, why: str
) -> None:
    assert reason(rule, kept) is None
    assert reason(rule, refused) == why


@given(st.lists(st.sampled_from(["the", "of", "cat", "dog", "a", "b"]), min_size=1, max_size=60), st.integers(2, 10))
@settings(max_examples=200, deadline=None)
def test_characters_in_ngrams_are_those_of_a_plain_count(words: list[str], n: int) -> None:
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    top = max(ngrams, key=ngrams.count, default=())
    assert gopher._characters_of_the_most_frequent(words, n) == len(" ".join(top)) * ngrams.count(top)
    characters = start = 0
    seen = set()
    while start < len(ngrams):
        again = ngrams[start] in seen
        characters += again * len("".join(ngrams[start]))
        seen.add(ngrams[start])
        start += n if again else 1
    assert gopher._characters_in_repeated(words, ngrams, n) == characters


@pytest.mark.parametrize("n", range(2, 11))
def test_each_ngram_threshold_keeps_what_meets_it_and_nothing_above(n: int) -> None:
    phrase = " ".join("abcdefghij"[:n])
    text = phrase + " in the one long text of many other words that is not there again " + phrase
    characters = gopher._characters_of_the_most_frequent(Text(text).words, n) if n <= 4 else n
    name, first = ("max_top_ngram_characters", 2) if n <= 4 else ("max_duplicate_ngram_characters", 5)
    limits = {"max_top_ngram_characters": [1.0] * 3, "max_duplicate_ngram_characters": [1.0] * 6}
    limits[name][n - first] = characters / len(text)
    assert reason("gopher_repetition", text, **limits) is None
    limits[name][n - first] -= 1e-9
    assert f"{n}-gram" in (reason("gopher_repetition", text, **limits) or "")


def test_c4_leaves_out_the_lines_that_are_no_sentences() -> None:
    left_out = ["No full stop here", "Two words.", "Enable Javascript to go on.", "We use cookies here, too.",
                "It goes on and on ...", "a" * 1001 + " is a long word."]  # fmt: skip
    text = "\n".join([PROSE, *left_out, "It was so.[12]"])
    assert clean(text, [step("c4")]) == PROSE + "\nIt was so."
    assert clean("\n".join([PROSE, "No full stop here"]), [step("c4", terminal_punctuation=False)]) != PROSE


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to jane.doe+x@mail.example.org, please.", "Write to email@example.com, please."),
        ("<a@b.co>", "<email@example.com>"),
        ("a @b.co, user@localhost and @decorator", None),
        ("From 8.8.8.8: ping.", "From 192.0.2.1: ping."),
        ("Not 10.0.0.1, 127.0.0.1, 192.168.1.1, 999.1.1.1 nor 1.2.3.4.5", None),
        ("Mail jörg@example.org today", "Mail email@example.com today"),
    ],
)
def test_personal_information_is_masked_and_nothing_else(text: str, masked: str | None) -> None:
    assert clean(text, [step("pii")]) == (masked or text)
    again = clean(masked or text, [step("pii")])
    assert again == (masked or text)


def test_masks_and_kinds_can_be_chosen() -> None:
    text = "From a@b.co at 8.8.8.8"
    assert clean(text, [step("pii", emails=False, ip_mask="<ip>")]) == "From a@b.co at <ip>"
    assert clean(text, [step("pii", ips=False, email_mask=r"\1")]) == r"From \1 at 8.8.8.8"


def test_masking_takes_time_in_proportion_to_the_text() -> None:
    assert clean("a." * 200_000 + "@", [step("pii")])
    assert clean("1." * 200_000 + "@", [step("pii")])
    assert clean("a@" + "b." * 200_000, [step("pii")])


def test_rules_apply_in_order_and_the_first_verdict_counts() -> None:
    assert clean(PROSE, []) == PROSE
    assert clean("Too short.", [step("c4"), step("gopher_quality")]) == Rejection("c4", "too few sentences")
    assert clean("Too short.", [step("gopher_quality"), step("c4")]) == Rejection("gopher_quality", "too few words")
    assert clean("Menu\nHome", [step("c4", min_sentences=0), step("gopher_quality")]) == NO_TEXT
    assert clean(" \n", []) == clean("", [step("gopher_quality")]) == NO_TEXT


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_text_gets_a_verdict_or_a_text(text: str) -> None:
    for rule in ("gopher_quality", "gopher_repetition", "c4", "fineweb", "pii"):
        result = clean(text, [step(rule)])
        assert isinstance(result, Rejection) or result.strip()
    everything_off = step("gopher_quality", min_words=0, min_mean_word_length=0, min_stop_words=0)
    assert clean(text, [everything_off]) is not None
    assert sentences(text) >= bool(text.strip())


def test_wrongly_decoded_text_is_repaired() -> None:
    pytest.importorskip("ftfy")
    assert clean("schÃ¶n", [step("fix_encoding")]) == "schön"
    assert clean("ﬁ", [step("fix_encoding", normalization="NFKC")]) == "fi"


def test_a_missing_library_is_named_with_its_extra() -> None:
    code = (
        "import sys; sys.modules['ftfy'] = None\n"
        "from bigtrain.config.cleaning import CleanStep\n"
        "from bigtrain.data.build.clean import pinned\n"
        "pinned([CleanStep.model_validate('c4')])\n"
        "pinned([CleanStep.model_validate('fix_encoding')])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert "bigtrain[clean]" in run.stderr
