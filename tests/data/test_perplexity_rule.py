"""N-gram models as files: the perplexity is that of the published definition, whichever form the file has."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bigtrain.base.errors import BigtrainError
from bigtrain.config.cleaning import CleanStep, PerplexitySettings
from bigtrain.data.build.clean import Rejection, clean, contents_of, pinned
from bigtrain.data.build.rule_models.backoff_model import backoff_of
from bigtrain.data.build.rule_models.kneser_ney import NGramModel
from bigtrain.data.build.rule_models.ngram_file import read_ngrams
from bigtrain.data.build.rule_models.sentences import END, START, UNKNOWN, sentences_of
from bigtrain.data.build.rule_models.train_ngram import NGramOptions, TrainedNGrams, train_ngrams
from bigtrain.data.build.rule_scores import score_by_perplexity
from bigtrain.data.format.hashing import file_digest
from tests.data.helpers import write_jsonl
from tests.refusals import assert_refused

LINES = ["The cat sat on the mat.", "The dog sat on the log.", "A cat and a dog, 12 cats!", "The mat is on the log."]
ODD = "colourless green ideas sleep furiously"

ARPA = r"""
made by hand

\data\
ngram 1=6
ngram 2=4
ngram 3=2

\1-grams:
-1.0	<unk>
-99	<s>	-0.30
-0.7	</s>
-0.6	the	-0.2
-0.8	cat	-0.1
-0.9	süß	-0.4

\2-grams:
-0.2	<s> the	-0.15
-0.3	the cat	-0.05
-0.25	cat </s>
-0.5	the süß

\3-grams:
-0.1	<s> the cat
-0.05	the cat </s>

\end\
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(7)
    texts = ["\n".join(rng.choice(LINES, 4)) + f"\n\nNumber {n} is {'xyz'[n % 3] * 3}." for n in range(200)]
    return write_jsonl(tmp_path_factory.mktemp("ngrams") / "x.jsonl", texts)


def trained(corpus: Path, out: Path, **options: object) -> TrainedNGrams:
    given = NGramOptions(**options)  # type: ignore[arg-type]
    return train_ngrams([str(corpus)], out, text_field="text", options=given, report=lambda line: None)


@pytest.fixture(scope="module")
def model(corpus: Path) -> Path:
    trained(corpus, corpus.parent / "m.ngram", order=3)
    return corpus.parent / "m.ngram"


def limits(model: Path, **changes: object) -> PerplexitySettings:
    return PerplexitySettings.model_validate({"model": model, "hash": file_digest(model), "max": 100.0, **changes})


class NaiveArpa:
    """KenLM's definition (Heafield 2011, section 2): the longest n-gram there is, and the weights of what is longer."""

    def __init__(self, text: str) -> None:
        self.grams: dict[tuple[str, ...], tuple[float, float]] = {}
        order = 0
        for line in text.split("\n"):
            if line.endswith("-grams:"):
                order = int(line[1])
            elif order and line and not line.startswith("\\"):
                parts = line.replace("\t", " ").split(" ")
                weight = float(parts[order + 1]) if len(parts) > order + 1 else 0.0
                self.grams[tuple(parts[1 : order + 1])] = float(parts[0]), weight
        self.order = order

    def log10(self, history: tuple[str, ...], word: str) -> float:
        if (*history, word) in self.grams:
            return self.grams[(*history, word)][0]
        weight = self.grams[history][1] if history in self.grams else 0.0
        return weight + self.log10(history[1:], word)

    def perplexity(self, sentences: list[list[str]]) -> float:
        total, count = 0.0, 0
        for sentence in sentences:
            known = [word if (word,) in self.grams else "<unk>" for word in sentence]
            for at in range(1, len(known)):
                total += self.log10(tuple(known[max(0, at - self.order + 1) : at]), known[at])
                count += 1
        return float(10 ** (-total / count))


WORDS = st.lists(st.sampled_from(["the", "cat", "süß", "dog", "<s>", "</s>", "\n"]), min_size=1, max_size=12)


@given(WORDS)
@settings(deadline=None)
def test_the_perplexity_by_an_arpa_file_is_the_published_one(corpus: Path, words: list[str]) -> None:
    path = corpus.parent / "hand.arpa.gz"
    if not path.exists():
        path.write_bytes(gzip.compress(ARPA.encode()))
    text = " ".join(words)
    found = read_ngrams(path, "here").perplexity(text, "spaces")
    sentences = [
        ["<s>", *("<unk>" if word in ("<s>", "</s>") else word for word in line.split()), "</s>"]
        for line in text.split("\n")
        if line.split()
    ]
    assert found == (pytest.approx(NaiveArpa(ARPA).perplexity(sentences), rel=1e-5) if sentences else None)


def test_a_value_of_the_hand_made_model_by_hand(tmp_path: Path) -> None:
    """`the dog`: <s> the is there; dog is unknown: weight of `<s> the`, of `the`, p(<unk>); then </s> alone."""
    path = tmp_path / "hand.arpa"
    path.write_text(ARPA)
    log10 = [-0.2, -0.15 - 0.2 - 1.0, -0.7]
    found = read_ngrams(path, "here").perplexity("the dog", "spaces")
    assert found == pytest.approx(10 ** -(sum(log10) / 3), rel=1e-6)


@given(st.lists(st.lists(st.integers(3, 8), min_size=1, max_size=8), min_size=1, max_size=12), st.integers(1, 4))
@settings(deadline=None)
def test_the_stored_form_has_the_same_probabilities(documents: list[list[int]], order: int) -> None:
    """Backing off in the stored model is interpolating in the counted one, also for words that never occurred."""
    made = [[0, *document, 1] for document in documents]
    tokens = np.array([token for document in made for token in document])
    depth = np.concatenate([np.arange(len(document)) for document in made])
    counted = NGramModel(tokens, depth, vocab_size=10, order=order)
    words = [START, END, UNKNOWN, *"abcdefg"]
    stored = backoff_of(counted, words, "words")
    asked = np.random.default_rng(len(tokens)).integers(0, 10, 60)
    asked[: len(tokens[:30])] = tokens[:30]
    visible = np.minimum(np.arange(60), 12)
    wanted = np.log10(counted.probabilities(asked, visible))
    assert np.allclose(stored.log_probabilities(asked, visible), wanted, atol=1e-5)


def test_both_files_of_a_model_say_the_same(corpus: Path, model: Path, tmp_path: Path) -> None:
    """The ARPA file, read naively, gives the perplexities of the rule; so does it, read again."""
    arpa = tmp_path / "m.arpa"
    trained(corpus, arpa, order=3)
    naive, again, own = NaiveArpa(arpa.read_text()), read_ngrams(arpa, "here"), read_ngrams(model, "here")
    for text in [*LINES, ODD, "\n".join(LINES), "The cat is 7."]:
        wanted = naive.perplexity(sentences_of(text, "words"))
        assert own.perplexity(text, "words") == pytest.approx(wanted, rel=1e-5)
        assert again.perplexity(text, "words") == pytest.approx(wanted, rel=1e-5)


def test_a_model_s_probabilities_sum_to_one(model: Path) -> None:
    stored = read_ngrams(model, "here")
    size = len(stored.words)
    for history in ([START], [START, "the"], ["the", "cat"], [UNKNOWN, "sat"]):
        numbers = [stored.numbers[word] for word in history]
        tokens = np.array([[*numbers, word] for word in range(size)]).reshape(-1)
        visible = np.tile(np.arange(len(history) + 1), size)
        found = stored.log_probabilities(tokens, visible)[visible == len(history)]
        assert (10**found).sum() == pytest.approx(1, abs=1e-4)


def test_training_is_deterministic_and_reports_held_out_documents(corpus: Path, tmp_path: Path) -> None:
    first, second = (trained(corpus, tmp_path / f"{name}.ngram", order=3) for name in "ab")
    assert (tmp_path / "a.ngram").read_bytes() == (tmp_path / "b.ngram").read_bytes()
    assert first.hash == second.hash == file_digest(tmp_path / "a.ngram")
    assert first.documents + first.held_out == 200 and len(first.ngrams) == 3
    values = [each.value for each in first.perplexities]
    assert values == sorted(values) and 1 < values[0] < values[-1] < 30


def test_the_rule_keeps_what_is_in_its_range(model: Path) -> None:
    own, odd = (score_by_perplexity(limits(model), [text], "text", 1).documents[0].value for text in (LINES[0], ODD))
    assert own is not None and odd is not None and own < 10 < odd
    rules = pinned([CleanStep.model_validate({"perplexity": {"model": str(model), "max": 10.0}})])
    assert contents_of(rules) == {"clean.0.perplexity": file_digest(model)}
    assert clean(LINES[0], rules) == LINES[0]
    assert clean(ODD, rules) == Rejection("perplexity", "too high", evidence=f"perplexity {odd:.1f}")
    rules = pinned([CleanStep.model_validate({"perplexity": {"model": str(model), "min": 10.0}})])
    assert clean(ODD, rules) == ODD
    assert clean(LINES[0], rules) == Rejection("perplexity", "too low", evidence=f"perplexity {own:.1f}")


def test_words_are_lower_case_with_digits_as_zero() -> None:
    assert sentences_of("It's 1,234 Möbel\n\n  \n_x", "words") == [
        [START, "it", "'", "s", "0", ",", "000", "möbel", END],
        [START, "_", "x", END],
    ]
    assert sentences_of("A <s> b-c\td\n \n", "spaces") == [[START, "A", UNKNOWN, "b-c", "d", END]]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("\\end\\", ""), "it ends before its"),
        (("ngram 2=4", "ngram 2=5"), "4 2-grams of 5"),
        (("the süß\n", "the dog\n"), "'dog' is no unigram"),
        (("-0.2	<s> the", "x	<s> the"), "could not convert"),
        (("-0.2	<s> the", "nan	<s> the"), "no number"),
        (("-0.3	the cat	-0.05", "-0.3	cat the"), "without the shorter one"),
        (("-0.8	cat", "-0.8	the"), "there twice"),
        (("\\2-grams:", "\\3-grams:"), "in place of the 2-grams"),
        (("-0.5	the süß", "-0.3	the cat"), "not in order"),
        (("<s>", "<x>"), "<s>"),
    ],
)
def test_a_damaged_arpa_file_is_refused(tmp_path: Path, change: tuple[str, str], found: str) -> None:
    path = tmp_path / "x.arpa"
    path.write_text(ARPA.replace(*change))
    with pytest.raises(BigtrainError) as raised:
        pinned([CleanStep.model_validate({"perplexity": {"model": str(path), "max": 1.0}})])
    assert_refused(raised, str(path), "not a whole n-gram model", found=found)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_damaged_ngram_file_is_refused_or_still_consistent(model: Path, data: st.DataObject) -> None:
    """Cut anywhere it is refused; with other bytes it is, or gives a number."""
    content = model.read_bytes()
    path = model.parent / "damaged.ngram"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(BigtrainError):
        read_ngrams(path, "here")
    at = data.draw(st.integers(0, len(content) - 8))
    path.write_bytes(content[:at] + data.draw(st.binary(min_size=8, max_size=8)) + content[at + 8 :])
    try:
        found = read_ngrams(path, "here").perplexity("the cat\nsat", "words")
    except BigtrainError as error:
        assert_refused(error, str(path), "not a whole n-gram model")
    else:
        assert found is not None and not math.isnan(found)


def test_a_rule_without_a_limit_or_of_other_tokens_is_refused(model: Path) -> None:
    for wrong in ({}, {"max": 3.0, "min": 4.0}, {"max": -1.0}):
        with pytest.raises(ValidationError):
            CleanStep.model_validate({"perplexity": {"model": str(model), **wrong}})
    spaces = CleanStep.model_validate({"perplexity": {"model": str(model), "max": 9.0, "tokens": "spaces"}})
    with pytest.raises(BigtrainError) as raised:
        pinned([spaces])
    assert_refused(raised, "counts other tokens", wanted="tokens: words", fix="set tokens: words")
