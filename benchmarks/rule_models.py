"""How well the models of the rules `classifier` and `perplexity` tell two kinds of text apart.

    PYTHONPATH=. python benchmarks/rule_models.py [--out FOLDER]

It takes a few minutes on one core. The texts are those of the standard library of the running Python, of which a tenth
of the files is held out:

    documentation or source      the documentation strings of a file, or the file; documents of thousands of words
    docstrings or comments       one documentation string, or one block of comment lines, both of 10 words or more

A classifier is compared with scikit-learn's logistic regression over counts of words and pairs of words. Its scores are
those that fastText's library gives its file. The n-gram model counts the first kind of text, and its perplexity orders
held-out texts of both kinds: a low one should mean the first kind.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import normalize

from bigtrain.config import ClassifierSettings, PerplexitySettings
from bigtrain.data import ClassifierOptions, NGramOptions, train_classifier, train_ngrams
from bigtrain.data.build.clean.classifier import pin_classifier, score_of
from bigtrain.data.build.clean.perplexity import perplexity_of, pin_perplexity
from bigtrain.data.build.corpus.python_stdlib import NOT_STANDARD, documentation
from bigtrain.data.build.rule_models.fasttext_features import one_line
from bigtrain.data.format.documents import is_held_out

WORDS = 10
COMMENTS = re.compile(r"(?:^[ \t]*#(?!!)[^\n]*\n)+", re.MULTILINE)
HELD_OUT = 0.1
Texts = list[tuple[str, bool]]
"""Each text, and whether it is held out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    args = parser.parse_args()
    files = dict(sources())
    cases = {
        "documentation or source": (
            texts({name: [documentation(source, name)] for name, source in files.items()}),
            texts({name: [source] for name, source in files.items()}),
        ),
        "docstrings or comments": (
            texts({name: list(docstrings(source)) for name, source in files.items()}),
            texts({name: list(comments(source)) for name, source in files.items()}),
        ),
    }
    rows = {name: compared(positive, negative) for name, (positive, negative) in cases.items()}
    print(json.dumps(rows, indent=2))
    write_result("rule_models", {"texts": rows}, args.out)


def sources() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if not NOT_STANDARD & set(path.parts) and "test" not in path.relative_to(root).parts:
            try:
                yield path.relative_to(root).as_posix(), path.read_bytes().decode()
            except UnicodeDecodeError:
                continue


def docstrings(source: str) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except SyntaxError:
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def comments(source: str) -> Iterator[str]:
    for block in COMMENTS.findall(source):
        yield "\n".join(line.strip().lstrip("#").strip() for line in block.splitlines())


def texts(of_files: dict[str, list[str]]) -> Texts:
    """The distinct texts that are long enough. A file, and not a text, is held out: what it repeats stays with it."""
    found: dict[str, bool] = {}
    for name, own in of_files.items():
        for text in own:
            if len(text.split()) >= WORDS:
                found.setdefault(text, is_held_out(name, 0, HELD_OUT))
    return list(found.items())


def compared(positive: Texts, negative: Texts) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {True: folder / "positive.jsonl", False: folder / "negative.jsonl"}
        for kind, of_kind in ((True, positive), (False, negative)):
            lines = [json.dumps({"text": text}) for text, held_out in of_kind if not held_out]
            paths[kind].write_text("\n".join(lines) + "\n")
        trained = train_classifier(
            [str(paths[True])],
            [str(paths[False])],
            folder / "model.bin",
            text_field="text",
            options=ClassifierOptions(),
            report=print,
        )
        tried = [
            (text, kind) for kind, of_kind in ((True, positive), (False, negative)) for text, out in of_kind if out
        ]
        truth = np.array([kind for _, kind in tried])
        limits = pin_classifier(ClassifierSettings(model=folder / "model.bin"))
        scores = np.array([score_of(text, limits) for text, _ in tried])
        ngrams = train_ngrams(
            [str(paths[True])], folder / "m.ngram", text_field="text", options=NGramOptions(), report=print
        )
        asked = pin_perplexity(PerplexitySettings(model=folder / "m.ngram", min=1.0))
        perplexities = np.array([perplexity_of(text, asked) or np.inf for text, _ in tried])
        return {
            "documents": {"positive": len(positive), "negative": len(negative), "held_out": len(tried)},
            "positive_share": float(truth.mean()),
            "classifier": measures(scores, truth) | {"features": trained.features},
            "scikit_learn": measures(peer_scores(positive, negative, [text for text, _ in tried]), truth),
            "perplexity": {
                "auc": float(roc_auc_score(truth, -perplexities)),
                "median_positive": float(np.median(perplexities[truth])),
                "median_negative": float(np.median(perplexities[~truth])),
                "ngrams": ngrams.ngrams,
            },
        }


def measures(scores: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> dict[str, float]:
    kept = scores >= 0.5
    safe = np.clip(scores, 1e-12, 1 - 1e-12)
    return {
        "accuracy": float((kept == truth).mean()),
        "precision": float(truth[kept].mean()),
        "recall": float(kept[truth].mean()),
        "auc": float(roc_auc_score(truth, scores)),
        "log_loss": float(-np.where(truth, np.log(safe), np.log1p(-safe)).mean()),
    }


def peer_scores(positive: Texts, negative: Texts, tried: list[str]) -> np.ndarray[Any, Any]:
    """scikit-learn's probabilities: words and pairs of words that occur twice, with the same penalty."""
    learned = [(text, kind) for kind, of in ((True, positive), (False, negative)) for text, out in of if not out]
    counts = CountVectorizer(token_pattern=r"[^ ]+", ngram_range=(1, 2), lowercase=False, min_df=2)
    rows = normalize(counts.fit_transform(one_line(text) for text, _ in learned).astype(float), "l1")
    model = LogisticRegression(C=1 / (ClassifierOptions().l2 * len(learned)), max_iter=2000)
    model.fit(rows, [kind for _, kind in learned])
    found = model.predict_proba(normalize(counts.transform(one_line(text) for text in tried).astype(float), "l1"))
    return np.asarray(found[:, 1])


if __name__ == "__main__":
    main()
