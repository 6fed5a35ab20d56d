"""Promises of the kinds of labelled sources: files in their published layouts become documents with their labels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigtrain.base import IGNORE_INDEX, BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus import open_corpus, read_documents
from bigtrain.data.build.corpus.conll import as_bio
from bigtrain.data.format.documents import Document
from tests.data.labelled import SEPARATOR, built, names_of, source_of, stored, tokenizer_of

Made = list[tuple[tuple[str, ...], str | None, int]]
"""Texts, class and position of documents."""


def made(source: SourceSettings) -> Made:
    return [(document.texts, document.segments[0].label, document.position) for document in read_documents(source)]


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def table(*rows: str) -> str:
    """Rows of cells with bars between them, as tab-separated lines."""
    return "".join("\t".join(row.split("|")) + "\n" for row in rows)


GLUE_FILES: dict[str, tuple[str, Made]] = {
    "cola": (
        table("gj04|1||Our friends won't buy this.", 'gj04|0|*|The "car honked.'),
        [
            (("Our friends won't buy this.",), "acceptable", 0),
            (('The "car honked.',), "unacceptable", 1),
        ],
    ),
    "sst2": (
        table("sentence|label", "hide new secretions |0", "a joy |1"),
        [(("hide new secretions ",), "negative", 1), (("a joy ",), "positive", 2)],
    ),
    "mrpc": (
        table(
            "Quality|#1 ID|#2 ID|#1 String|#2 String",
            '1|702876|702977|Amrozi accused " the witness " .|Referring to " the witness " .',
            "0|21|22|One .|Two .",
        ),
        [
            (('Amrozi accused " the witness " .', 'Referring to " the witness " .'), "equivalent", 1),
            (("One .", "Two ."), "not_equivalent", 2),
        ],
    ),
    "qqp": (
        table("id|qid1|qid2|question1|question2|is_duplicate", "0|1|2|How?|Why?|0", "1|3|4|Who?|Who is?|1"),
        [(("How?", "Why?"), "not_duplicate", 1), (("Who?", "Who is?"), "duplicate", 2)],
    ),
    "mnli": (
        table(
            "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|"
            "sentence2_parse|sentence1|sentence2|label1|gold_label",
            "0|31193|31193n|government|( x )|( y )|(ROOT x)|(ROOT y)|A skims.|Both are.|neutral|neutral",
            "1|31194|31194c|fiction|( x )|( y )|(ROOT x)|(ROOT y)|He is.|He is not.|contradiction|contradiction",
            "2|31195|31195e|fiction|( x )|( y )|(ROOT x)|(ROOT y)|It is.|It is so.|entailment|entailment",
        ),
        [
            (("A skims.", "Both are."), "neutral", 1),
            (("He is.", "He is not."), "contradiction", 2),
            (("It is.", "It is so."), "entailment", 3),
        ],
    ),
    "qnli": (
        table("index|question|sentence|label", "0|When?|In 1990.|entailment", "1|Where?|Now.|not_entailment"),
        [(("When?", "In 1990."), "entailment", 1), (("Where?", "Now."), "not_entailment", 2)],
    ),
    "rte": (
        table("index|sentence1|sentence2|label", "0|No weapons.|Weapons found.|not_entailment", "1|A.|B.|entailment"),
        [(("No weapons.", "Weapons found."), "not_entailment", 1), (("A.", "B."), "entailment", 2)],
    ),
    "wnli": (
        table("index|sentence1|sentence2|label", "0|I stuck a pin.|The pin was.|1", "1|C.|D.|0"),
        [(("I stuck a pin.", "The pin was."), "entailment", 1), (("C.", "D."), "not_entailment", 2)],
    ),
}
"""Small files in the layout of the GLUE download, and what becomes of them."""


@pytest.mark.parametrize("task", GLUE_FILES)
def test_the_files_of_glue_tasks_are_read(task: str, tmp_path: Path) -> None:
    text, wanted = GLUE_FILES[task]
    assert made(source_of("glue", written(tmp_path / "train.tsv", text), task=task)) == wanted


def test_incomplete_rows_of_glue_are_left_out_where_the_source_says_so(tmp_path: Path) -> None:
    """QQP's file has some; `on_null: skip` counts them in the funnel."""
    rows = [f"{n}|1|2|How {n}?|Why {n}?|{n % 2}" for n in range(30)]
    text = table("id|qid1|qid2|question1|question2|is_duplicate", *rows, "99|5|6|Broken")
    path = written(tmp_path / "train.tsv", text)
    with pytest.raises(BigtrainError, match=r"(?s)train.tsv:32 .*on_null: skip"):
        made(source_of("glue", path, task="qqp"))
    settings = built(tmp_path / "data", source_of("glue", path, task="qqp", on_null="skip"))
    funnel = json.loads((settings.dir / "made" / "funnel.json").read_text())
    assert [(removed["rule"], removed["documents"]) for removed in funnel["removed"]] == [("on_null", 1)]
    assert len(list(stored(settings))) == 30


def test_a_glue_task_has_the_numbers_of_its_labels(tmp_path: Path) -> None:
    """Names and numbers are those of the datasets library, also where a label is not in the files."""
    lines = table("sentence|label", *(f"sentence {number}|{number % 2}" for number in range(30)))
    held_out = written(tmp_path / "dev.tsv", table("sentence|label", "a joy|1"))
    source = source_of("glue", written(tmp_path / "train.tsv", lines), task="sst2", held_out_path=str(held_out))
    settings = built(tmp_path / "data", source)
    assert names_of(settings) == ("negative", "positive")
    found = list(stored(settings))
    assert all(set(one.labels.tolist()) == {(one.position - 1) % 2} for one in found if one.split == "train")
    assert [(one.file, set(one.labels.tolist())) for one in found if one.split == "validation"] == [
        ("held_out/dev.tsv", {1})
    ]


SUPER_GLUE_RECORDS: dict[str, tuple[dict[str, Any], tuple[tuple[str, str], str]]] = {
    "boolq": (
        {"question": "is it", "passage": "It is.", "idx": 0, "label": True},
        (("is it", "It is."), "True"),
    ),
    "cb": (
        {"premise": "It was.", "hypothesis": "It is.", "label": "neutral", "idx": 0},
        (("It was.", "It is."), "neutral"),
    ),
    "rte": (
        {"premise": "A.", "hypothesis": "B.", "label": "not_entailment", "idx": 0},
        (("A.", "B."), "not_entailment"),
    ),
    "wic": (
        {
            "word": "place", "sentence1": "Want to come?", "sentence2": "A place.", "idx": 0, "label": False,
            "start1": 0, "start2": 2, "end1": 4, "end2": 7, "version": 1.1,
        },
        (("place: Want to come?", "A place."), "False"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", SUPER_GLUE_RECORDS)
def test_the_files_of_super_glue_tasks_are_read(task: str, tmp_path: Path) -> None:
    record, wanted = SUPER_GLUE_RECORDS[task]
    path = written(tmp_path / "train.jsonl", json.dumps(record) + "\n")
    assert made(source_of("super_glue", path, task=task)) == [(*wanted, 0)]


CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
call NN I-NP O
. . O O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""


def test_columns_of_conll_become_sentences_with_tags(tmp_path: Path) -> None:
    """Each word's tag is at its first token, in BIO, and a document's position is the line of its first word."""
    path = written(tmp_path / "eng.train", CONLL)
    one, two = read_documents(source_of("conll", path))
    assert (one.text, one.position, two.text, two.position) == ("EU rejects German call .", 2, "Peter Blackburn", 8)
    (segment,) = one.segments
    assert [(one.text[span.start : span.end], span.label) for span in segment.spans] == [
        ("EU", "B-ORG"), ("rejects", "O"), ("German", "B-MISC"), ("call", "O"), (".", "O"),
    ]  # fmt: skip
    assert [span.label for span in two.segments[0].spans] == ["B-PER", "I-PER"]
    settings = built(tmp_path / "data", source_of("conll", written(tmp_path / "more", CONLL * 20)))
    names = names_of(settings)
    assert names == ("B-MISC", "B-ORG", "B-PER", "I-PER", "O")
    sentences = [[names[label] for label in one.labels if label != IGNORE_INDEX] for one in stored(settings)]
    assert sorted(sentences) == [["B-ORG", "O", "B-MISC", "O", "O"]] * 20 + [["B-PER", "I-PER"]] * 20


def test_iob1_becomes_bio() -> None:
    """The first tag of an entity is B-; what is BIO already stays as it is."""
    one = ["I-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-LOC", "I-ORG", "O"]
    bio = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-LOC", "B-ORG", "O"]
    assert as_bio(one) == bio == as_bio(bio)
    assert as_bio(["NNP", "I", "B"]) == ["NNP", "I", "B"]


CONTEXT = "Beyonc\u00e9 Giselle rose to fame in the late 1990s as lead singer of the group Destiny's Child."


def squad_file(path: Path, *questions: dict[str, Any]) -> Path:
    about = {"title": "Beyonc\u00e9", "paragraphs": [{"context": CONTEXT, "qas": list(questions)}]}
    return written(path, json.dumps({"version": "v2.0", "data": [about]}))


def question(text: str, *answers: str, **others: Any) -> dict[str, Any]:
    found = [{"text": answer, "answer_start": CONTEXT.index(answer)} for answer in answers]
    return {"id": f"id {text}", "question": text, "answers": found, **others}


def test_squad_becomes_windows_with_the_tokens_of_the_answer(tmp_path: Path) -> None:
    """Every window has the question; the answer's tokens are labelled in the windows that have all of them."""
    questions = [
        question("When?", "in the late 1990s", "late 1990s"),
        question("Which year?", is_impossible=True, plausible_answers=[{"text": "1990s", "answer_start": 41}]),
        question("Who?", "Beyonc\u00e9 Giselle"),
    ] * 8
    path = squad_file(tmp_path / "train-v2.0.json", *questions)
    source = source_of("squad", path, doc_stride=12, max_query_length=8)
    documents = list(read_documents(source))
    assert [document.references for document in documents[:3]] == [
        ("in the late 1990s", "late 1990s"), (), ("Beyonc\u00e9 Giselle",),
    ]  # fmt: skip
    settings = built(tmp_path / "data", source, length=32)
    tokenizer = tokenizer_of(settings)
    encode, decode = tokenizer.for_documents().encode, tokenizer.for_reading().decode
    separator, begin = tokenizer.special_id(SEPARATOR), len(tokenizer.begin_of_text.ids)
    context = encode(CONTEXT, add_special_tokens=False).ids
    windows: dict[int, list[Any]] = {}
    for one in stored(settings):
        windows.setdefault(one.position, []).append(one)
    assert sorted(windows) == list(range(24))
    assert sum(piece.extent for piece in open_corpus(source).pieces()) == path.stat().st_size
    for position, some in windows.items():
        asked = encode(questions[position]["question"], add_special_tokens=False).ids[:8]
        answer = questions[position]["answers"]
        shown, answered = set(), 0
        for number, one in enumerate(some):
            place = one.ids.tolist().index(separator)
            assert one.ids[begin:place].tolist() == asked and len(one.ids) <= 32
            part = one.ids[place + 1 : -1].tolist()
            assert part == context[number * 12 : number * 12 + len(part)]
            shown |= set(range(number * 12, number * 12 + len(part)))
            if (found := one.ids[one.labels == 2]).size:
                assert decode(found.tolist()).strip() == answer[0]["text"]
                answered += 1
        assert shown == set(range(len(context))) and len(some) > 1
        assert (answered > 0) == bool(answer)


def test_reviews_of_imdb_have_the_class_of_their_folder(tmp_path: Path) -> None:
    for name in ("pos/0_9.txt", "pos/1_7.txt", "neg/0_3.txt", "unsup/0_0.txt"):
        written(tmp_path / "train" / name, f"A review, {name}.<br />")
    written(tmp_path / "train" / "labeledBow.feat", "9 0:9")
    written(tmp_path / "train" / "urls_pos.txt", "http://www.imdb.com/title/tt0453418/usercomments")
    source = source_of("imdb", tmp_path / "train")
    documents = list(read_documents(source))
    assert [(document.file, document.segments[0].label) for document in documents] == [
        ("neg/0_3.txt", "neg"), ("pos/0_9.txt", "pos"), ("pos/1_7.txt", "pos"),
    ]  # fmt: skip
    assert open_corpus(source).skipped == {".feat": 1, ".txt": 2}
    with pytest.raises(BigtrainError, match="no reviews in a folder 'neg'"):
        open_corpus(source_of("imdb", tmp_path / "train" / "pos"))


def test_tables_have_quoted_cells_of_several_lines(tmp_path: Path) -> None:
    """A position is the index of a row's first line; .tsv files have tabs, and may be compressed."""
    text = 'label,text,other\r\nyes,"two\nlines, ""quoted""",x\r\nno,plain,y\r\n'
    path = written(tmp_path / "a.csv", "")
    path.write_bytes(text.encode())
    wanted: Made = [(('two\nlines, "quoted"',), "yes", 1), (("plain",), "no", 3)]
    assert made(source_of("csv", path, label_field="label")) == wanted
    with gzip.open(tmp_path / "b.tsv.gz", "wt", newline="") as file:
        file.write("label\ttext\tother\nyes\tone, two\tthree\n")
    source = source_of("csv", tmp_path / "b.tsv.gz", label_field="label", text_pair_field="other")
    assert made(source) == [(("one, two", "three"), "yes", 1)]
    (plain,) = read_documents(source_of("csv", tmp_path / "b.tsv.gz", text_field="other"))
    assert plain == Document("three", "b.tsv.gz", 1)


def test_lines_have_the_labels_of_another_file(tmp_path: Path) -> None:
    texts = written(tmp_path / "texts.txt", "one\ntwo\nthree\n")
    labels = written(tmp_path / "labels.txt", "a\nb\na\n")
    source = source_of("text_lines", texts, labels_path=str(labels))
    assert made(source) == [(("one",), "a", 0), (("two",), "b", 1), (("three",), "a", 2)]
    before = open_corpus(source).stamp
    written(labels, "a\nb\na\nb\n")
    assert open_corpus(source).stamp != before
    with pytest.raises(BigtrainError, match="4 labels for 3 texts"):
        made(source)


def test_many_records_are_read_in_several_pieces(tmp_path: Path) -> None:
    """About a megabyte each, with the same documents."""
    from bigtrain.data.build.corpus.corpus import PIECE_BYTES

    text = "word " * 200
    path = written(tmp_path / "train.tsv", table("sentence|label", *(f"{text}{n}|{n % 2}" for n in range(4000))))
    source = source_of("glue", path, task="sst2")
    pieces = list(open_corpus(source).pieces())
    assert len(pieces) == 4 and all(piece.extent < 2 * PIECE_BYTES for piece in pieces)
    documents = [document for piece in pieces for document in piece.documents()]
    assert [document.position for document in documents] == list(range(1, 4001))
    assert np.isclose(sum(piece.extent for piece in pieces), path.stat().st_size, rtol=0.01)


@pytest.mark.parametrize(
    ("kind", "text", "changes", "words"),
    [
        ("glue", table("a|b", "x|1"), {"task": "sst2"}, ["f.tsv:1", "columns a, b", "sentence, label"]),
        ("glue", table("sentence|label", "x|2"), {"task": "sst2"}, ["f.tsv:2", "0 or 1", "dev.tsv"]),
        ("glue", table("sentence|label", "x"), {"task": "sst2"}, ["f.tsv:2", "none for 'label'"]),
        ("super_glue", '{"premise": "a", "hypothesis": "b"}\n', {"task": "rte"}, ["f.jsonl:1", "no field 'label'"]),
        ("super_glue", '{"premise": "a"}\n', {"task": "rte"}, ["f.jsonl:1", "no field 'hypothesis'"]),
        ("conll", "EU NNP B-ORG\nrejects\n", {}, ["f:2 has no tag", "rejects"]),
        ("conll", "EU B-ORG\n", {"label_names": ("O", "B-PER")}, ["f:1 has a label", "B-ORG"]),
        ("csv", "label,text\na,b,c\n", {"label_field": "label"}, ["f.csv:2 has not one cell", "a | b | c"]),
        ("csv", 'label,text\na,"b\n', {"label_field": "label"}, ["f.csv:2 is no row of a table"]),
        ("csv", "label,words\na,b\n", {"label_field": "label"}, ["f.csv:2", "no field 'text'"]),
        ("csv", "label,text\n,b\n", {"label_field": "label"}, ["f.csv:2 has no label"]),
        ("squad", "[1]", {}, ["f.json is not a file of SQuAD", "paragraphs"]),
        ("squad", "{", {}, ["f.json is not a file of SQuAD"]),
    ],
)
def test_files_of_another_layout_are_one_message(
    kind: str, text: str, changes: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    suffix = {"glue": ".tsv", "super_glue": ".jsonl", "csv": ".csv", "squad": ".json"}.get(kind, "")
    path = written(tmp_path / f"f{suffix}", text)
    with pytest.raises(BigtrainError) as error:
        made(source_of(kind, path, **changes))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"text": "1990s", "answer_start": 3}, ["'id When?'", "outside its context", "'1990s'"]),
        ({"text": "1990s", "answer_start": 4000}, ["outside its context", "character 4,000"]),
        ({"text": "1990s", "answer_start": -1}, ["outside its context"]),
        ({"text": "1990s"}, ["without a text or its start"]),
    ],
)
def test_an_answer_outside_its_context_is_one_message(answer: Any, words: list[str], tmp_path: Path) -> None:
    path = squad_file(tmp_path / "f.json", {**question("When?"), "answers": [answer]})
    with pytest.raises(BigtrainError) as error:
        made(source_of("squad", path))
    for word in words:
        assert word in str(error.value)


def test_bytes_that_are_not_text_are_reported_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_bytes(b"sentence\tlabel\ngood\t1\nbad \xff\t0\n")
    with pytest.raises(BigtrainError, match=r"train.tsv:3 is not UTF-8"):
        made(source_of("glue", path, task="sst2"))
