"""Decontamination: what is found, against a plain search in sets of words; what is read; and whole builds."""

from __future__ import annotations

import gzip
import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import DataSettings, DecontaminateSettings
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data import build_datasets, open_datasets, read_funnels
from bigtrain.data.build.corpus import read_documents
from bigtrain.data.build.decontaminate import EvaluationNgrams, evaluation_ngrams
from bigtrain.data.build.filters import Filters
from bigtrain.data.build.shingles import words_of
from bigtrain.data.format.documents import Document
from tests.data.helpers import contents, data_settings, jsonl_source, write_jsonl

VOCABULARY = 512


def ngrams_of(directory: Path, *texts: str, ngram: int = 13) -> EvaluationNgrams:
    directory.mkdir(exist_ok=True, parents=True)
    write_jsonl(directory / "evaluation.jsonl", texts)
    settings = DecontaminateSettings(paths=(str(directory / "evaluation.jsonl"),), ngram=ngram)
    return evaluation_ngrams(settings, directory, lambda line: None)


def plain_search(text: str, evaluation: list[str], ngram: int) -> str | None:
    """The first n-gram of the text that an evaluation text has too; of several that begin there the shortest."""
    wanted = set()
    for words in map(words_of, evaluation):
        if len(words) >= min(5, ngram):
            wanted |= {tuple(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1))}
    words = words_of(text)
    for start in range(len(words)):
        for length in range(1, ngram + 1):
            if tuple(words[start : start + length]) in wanted and start + length <= len(words):
                return " ".join(words[start : start + length])
    return None


def test_real_text_with_planted_questions_as_a_plain_search_finds_them(tmp_path: Path) -> None:
    source = SourceSettings(name="docs", kind="python_stdlib", content="documentation")
    texts = [document.text for document in islice(read_documents(source), 300) if len(document.text) > 500]
    chance = random.Random(2)
    questions = []
    for text in texts[::5]:
        words = text.split()
        start = chance.randrange(max(1, len(words) - 30))
        questions.append(" ".join(words[start : start + chance.choice([3, 6, 12, 30])]).upper())
    for index in range(2, len(texts), 9):
        at = chance.randrange(len(texts[index]))
        question = chance.choice(questions).replace(" ", chance.choice([" ", ",\n", " -- "]))
        texts[index] = f"{texts[index][:at]} {question}? {texts[index][at:]}"
    found = 0
    ngrams = ngrams_of(tmp_path, *questions)
    for text in texts:
        rejection, wanted = ngrams.rejection(text), plain_search(text, questions, 13)
        assert (rejection and rejection.evidence) == wanted
        found += wanted is not None
    assert 30 < found < len(texts) - 30


few_words = st.lists(st.sampled_from("abc"), max_size=30).map(" ".join)


@hypothesis_settings(max_examples=60)
@given(st.lists(few_words, min_size=1, max_size=5), st.lists(few_words, max_size=10), st.integers(1, 9))
def test_what_is_removed_is_what_a_plain_search_finds(
    tmp_path_factory: pytest.TempPathFactory, evaluation: list[str], texts: list[str], ngram: int
) -> None:
    folder = tmp_path_factory.mktemp("some")
    if max(len(words_of(text)) for text in evaluation) < min(5, ngram):
        with pytest.raises(BigtrainError, match="too short"):
            ngrams_of(folder, *evaluation, ngram=ngram)
        return
    ngrams = ngrams_of(folder, *evaluation, ngram=ngram)
    for text in texts:
        rejection = ngrams.rejection(text)
        assert (rejection and rejection.evidence) == plain_search(text, evaluation, ngram)


def test_a_short_answer_removes_nothing_and_five_words_do(tmp_path: Path) -> None:
    """A shorter answer removes nothing, and a text of five words removes the documents that hold it."""
    ngrams = ngrams_of(tmp_path, "Paris", "Yes, it is.", "What does the fox say?")
    assert ngrams.rejection("Paris? Yes, it is.") is None
    assert ngrams.rejection("what does the fox") is None
    rejection = ngrams.rejection("He asked: 'What does the FOX say'!")
    assert rejection is not None and rejection.evidence == "what does the fox say"


def test_every_format_is_read_and_the_file_that_matched_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    (folder / "b").mkdir(parents=True)
    said = {name: f"this very sentence stands in {name} alone" for name in ("text", "line", "gz", "zst", "row", "list")}
    (folder / "a.txt").write_text(said["text"] + "\n")
    (folder / "b" / "b.jsonl").write_text(json.dumps({"question": said["line"], "id": 4}) + '\n\n{"other": 1}\n')
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps({"answer": said["gz"]}).encode()))
    (folder / "d.jsonl.zst").write_bytes(zstandard.compress(json.dumps({"question": said["zst"]}).encode()))
    rows = {"question": [said["row"], None], "choices": [["no", said["list"]], []], "image": [b"", b""]}
    pq.write_table(pa.table(rows), folder / "e.parquet")
    fields = ("question", "answer", "choices")
    ngrams = evaluation_ngrams(DecontaminateSettings(paths=(str(folder),), text_fields=fields), tmp_path, print)
    files = {
        "text": "a.txt",
        "line": "b/b.jsonl",
        "gz": "c.jsonl.gz",
        "zst": "d.jsonl.zst",
        "row": "e.parquet",
        "list": "e.parquet",
    }
    for name, text in said.items():
        rejection = ngrams.rejection(f"Somebody wrote: {text}!")
        assert rejection is not None and rejection.reason == f"an n-gram of {files[name]}"
        assert rejection.evidence == text
    assert ngrams.rejection("this very sentence stands in none of them") is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b"[]", "is a JSON document, which is not read"),
        ("x.jsonl", b'{"question": "a b c d e"}', r"(?s)no text in any of its text_fields.*question"),
        ("x.jsonl", b"{'text': 1}", r"x\.jsonl:1 is not JSON"),
        ("x.txt", b"\xff\xfe", "is UTF-16 text"),
        ("x.txt", b"Paris", "too short to be searched for"),
    ],
)
def test_what_cannot_be_searched_for_is_reported(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BigtrainError, match=message):
        evaluation_ngrams(DecontaminateSettings(paths=(str(tmp_path / name),)), tmp_path, print)
    with pytest.raises(BigtrainError, match=r"data\.decontaminate finds no files"):
        evaluation_ngrams(DecontaminateSettings(paths=(str(tmp_path / "none"),)), tmp_path, print)


def test_token_ids_pass(tmp_path: Path) -> None:
    document = Document("", "x.bin", 0, b"\1\0\0\0")
    assert Filters((), ngrams_of(tmp_path, "What does the fox say?"))(document) == document


QUESTION = "Which of these planets has the most moons of all in the solar system we know"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two corpora. In the first, two documents hold the question, one of which the second has almost alike."""
    folder = tmp_path_factory.mktemp("corpora")
    texts = [f"{i} " + " ".join(f"w{i}x{j}" for j in range(100)) + "." for i in range(60)]
    first = [
        *texts[:30],
        f"{texts[30]} {QUESTION}?",
        texts[31].replace("w31x50", QUESTION.lower()),
        "This line has a {curly} bracket.",
    ]
    return write_jsonl(folder / "first.jsonl", first), write_jsonl(folder / "second.jsonl", texts[28:])


def settings_for(directory: Path, files: tuple[Path, Path], **changes: Any) -> DataSettings:
    sources = [jsonl_source(file, file.stem, clean=[{"c4": {"min_sentences": 0}}]) for file in files]
    evaluation = directory.parent / "evaluation" / "quiz.jsonl"
    evaluation.parent.mkdir(exist_ok=True, parents=True)
    if not evaluation.exists():
        write_jsonl(evaluation, [QUESTION, "Jupiter"])
    decontaminate = {"paths": [str(evaluation)]}
    return data_settings(directory, *sources, **{"dedup": "near", "decontaminate": decontaminate, **changes})


def make(settings: DataSettings) -> list[str]:
    lines: list[str] = []
    build_datasets(settings, vocab_size=VOCABULARY, report=lines.append)
    return lines


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, corpora: tuple[Path, Path]) -> DataSettings:
    settings = settings_for(tmp_path_factory.mktemp("built") / "data", corpora)
    assert make(settings)[0] == "decontaminate: 2 evaluation texts in 1 files, 4 n-grams"
    return settings


def test_the_funnel_names_the_evaluation_file_and_shows_the_words(built: DataSettings) -> None:
    funnel = read_funnels(built.dir)["first"]
    assert [(r.rule, r.documents) for r in funnel.removed] == [("c4", 1), ("decontaminate", 2)]
    removal = funnel.removed[1]
    assert removal.reason == "an n-gram of quiz.jsonl"
    assert [example["position"] for example in removal.examples] == [30, 31]
    assert {example["evidence"] for example in removal.examples} == {" ".join(QUESTION.lower().split()[:13])}


def test_a_removed_document_does_not_remove_its_near_duplicates(built: DataSettings) -> None:
    """The second source has documents 28 to 59: 28 and 29 are in the first, 30 and 31 there only with the question."""
    funnel = read_funnels(built.dir)["second"]
    assert [(r.rule, r.documents) for r in funnel.removed] == [("dedup", 2)]
    assert [example["position"] for example in funnel.removed[0].examples] == [0, 1]


def test_decontaminated_bytes_do_not_depend_on_the_number_of_workers(
    built: DataSettings, tmp_path: Path, corpora: tuple[Path, Path]
) -> None:
    make(settings_for(tmp_path / "data", corpora, workers=3))
    assert contents(tmp_path / "data") == contents(built.dir)


def test_other_evaluation_texts_for_finished_data_are_refused(tmp_path: Path, corpora: tuple[Path, Path]) -> None:
    """Finished data refuse other evaluation texts in a build; training does not need them."""
    settings = settings_for(tmp_path / "data", corpora, dedup="none")
    make(settings)
    assert make(settings)[1:] == ["tokenizer: already there", "first: already there", "second: already there"]
    before = contents(settings.dir / "first")
    write_jsonl(tmp_path / "evaluation" / "quiz.jsonl", [QUESTION, "Jupiter has the most moons of all."])
    with pytest.raises(BigtrainError, match="another evaluation_texts"):
        make(settings)
    (tmp_path / "evaluation" / "quiz.jsonl").unlink()
    assert open_datasets(settings, model_vocab_size=VOCABULARY)
    assert contents(settings.dir / "first") == before
    with pytest.raises(BigtrainError, match="another decontaminate"):
        open_datasets(settings.model_copy(update={"decontaminate": None}), model_vocab_size=VOCABULARY)
