"""Promises of labelled documents: what each token's label is, what fits into a row, and which labels there are."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base import IGNORE_INDEX, BigtrainError
from bigtrain.config import DataSettings, SourceSettings
from bigtrain.data import common_labels, open_datasets, read_documents, verify
from bigtrain.data.build.examples import EncodedText, ExampleRules, LabelledTokens, shortened
from bigtrain.data.format.documents import LabelledSpan, Segment
from bigtrain.data.format.labels import FIXED_NAMES, LabelScheme
from bigtrain.data.format.manifest import DatasetManifest
from bigtrain.data.store.store import Dataset
from tests.data.helpers import VOCABULARY, contents, data_settings, make, sentences
from tests.data.labelled import SEPARATOR, built, labelled_settings, names_of, source_of, stored, tokenizer_of

BEGIN, BETWEEN, END = (np.array([number], np.uint16) for number in (1, 2, 3))


def rules(kind: Any, names: tuple[str, ...] = (), row: int | None = 20, **changes: int) -> ExampleRules:
    limits = {"doc_stride": 5, "max_query_length": 6, **changes}
    return ExampleRules(LabelScheme(kind, names or FIXED_NAMES[kind]), row, SEPARATOR, **limits)


def classified_lines(path: Path, count: int = 120, **record: Any) -> SourceSettings:
    texts = [" ".join(text.split()[: 3 + number % 40]) for number, text in enumerate(sentences(count, 5))]
    with path.open("w") as file:
        for number, text in enumerate(texts):
            value = {"text": text, "second": text.upper(), "label": ["no", "maybe", "yes"][number % 3], **record}
            file.write(json.dumps(value) + "\n")
    return source_of("jsonl", path, label_field="label", text_pair_field="second")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    """Data of two texts with a class, in rows of 48 tokens."""
    folder = tmp_path_factory.mktemp("classes")
    return built(folder / "data", classified_lines(folder / "lines.jsonl"), length=48)


def test_every_token_of_a_document_has_its_class(classes: DataSettings) -> None:
    """Begin, separator and end too; the labels are in order in the manifest, and a document is no longer than a row."""
    settings = classes
    tokenizer = tokenizer_of(settings)
    (separator,) = [tokenizer.content.library.token_to_id(SEPARATOR)]
    encode = tokenizer.for_documents().encode
    records = [json.loads(line) for line in (settings.dir.parent / "lines.jsonl").read_text().splitlines()]
    assert names_of(settings) == ("maybe", "no", "yes")
    seen = cut = 0
    for split, _, position, ids, labels in stored(settings):
        record = records[position]
        assert set(labels.tolist()) == {names_of(settings).index(record["label"])}
        one, two = (encode(record[field], add_special_tokens=False).ids for field in ("text", "second"))
        place = ids.tolist().index(separator)
        begin = len(tokenizer.begin_of_text.ids)
        assert tuple(ids[:begin].tolist()) == tokenizer.begin_of_text.ids and ids[-1] == tokenizer.end_id
        kept = shortened([len(one), len(two)], 48 - begin - 2) if len(one) + len(two) + begin + 2 > 48 else None
        lengths = kept or [len(one), len(two)]
        assert ids[begin:place].tolist() == one[: lengths[0]] and ids[place + 1 : -1].tolist() == two[: lengths[1]]
        assert split in ("train", "validation") and len(ids) <= 48
        seen, cut = seen + 1, cut + (kept is not None)
    assert seen == 120 and 0 < cut < 120
    assert json.loads((settings.dir / "made" / "funnel.json").read_text())["cut"] == cut
    assert not verify(settings.dir).problems


def test_rows_hold_whole_documents(classes: DataSettings) -> None:
    """No document is in two rows, in training and in validation."""
    from bigtrain.data.batch.packing import held_out_packing, open_packings

    settings = classes
    for split in ("train", "validation"):
        datasets = open_datasets(settings, model_vocab_size=VOCABULARY, split=split)
        (packing,) = (
            open_packings(settings, datasets) if split == "train" else [held_out_packing(settings, datasets[0])]
        )
        spans = packing.spans(np.arange(packing.rows))
        offsets = datasets[0].shards[0].documents.offset
        assert sorted(spans.start.tolist()) == offsets[:-1].tolist()
        assert np.array_equal(np.sort(spans.start + spans.length), offsets[1:])


def test_the_bytes_of_labels_do_not_depend_on_workers(tmp_path: Path) -> None:
    source = classified_lines(tmp_path / "lines.jsonl")
    for workers in (1, 2):
        built(tmp_path / f"{workers}", source, workers=workers)
    one, other = (
        {name: data for name, data in contents(tmp_path / f"{workers}").items() if ".build" not in name}
        for workers in (1, 2)
    )
    assert one == other and any(name.endswith(".lab") for name in one)


def test_many_labels_take_two_bytes_each(tmp_path: Path) -> None:
    """More than 128 names need int16; whole numbers are in the order of their values."""
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {n}", "label": n}) + "\n" for n in range(200)))
    settings = built(tmp_path / "data", source_of("jsonl", path, label_field="label"))
    assert names_of(settings) == tuple(str(number) for number in range(200))
    for _, _, position, _, labels in stored(settings):
        assert set(labels.tolist()) == {position}
    assert not verify(settings.dir).problems
    manifest = DatasetManifest.read(settings.dir / "made" / "train")
    assert manifest.shards[0].files[2].size == 2 * manifest.tokens


def test_given_names_say_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": "a b", "label": n % 2 == 0}) + "\n" for n in range(40)))
    settings = built(tmp_path / "data", source_of("jsonl", path, label_field="label", label_names=("true", "false")))
    assert names_of(settings) == ("true", "false")
    assert all(set(labels.tolist()) == {position % 2} for _, _, position, _, labels in stored(settings))


def test_files_that_are_held_out_are_the_validation(tmp_path: Path) -> None:
    """With held_out_path, all of its documents are held out, and none of the others."""
    for name, count in (("train", 30), ("dev", 9)):
        (tmp_path / name).mkdir()
        classified_lines(tmp_path / name / "part.jsonl", count)
    source = source_of("jsonl", tmp_path / "train" / "part.jsonl", label_field="label")
    source = source.model_copy(update={"held_out_path": str(tmp_path / "dev" / "part.jsonl")})
    settings = built(tmp_path / "data", source)
    found = [(split, file) for split, file, *_ in stored(settings)]
    assert found.count(("train", "part.jsonl")) == 30 and found.count(("validation", "held_out/part.jsonl")) == 9
    assert len(found) == 39


def test_sources_with_other_labels_have_no_common_numbers(tmp_path: Path) -> None:
    """Names that are found source by source may differ; the same ones are shared."""
    sources = []
    for name, labels in (("one", "ab"), ("two", "bc"), ("three", "ba")):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": "fox", "label": labels[n % 2]}) + "\n" for n in range(30)))
        sources.append(SourceSettings(name=name, kind="jsonl", path=str(path), label_field="label"))
    settings = data_settings(tmp_path / "data", *sources, packing="best_fit")
    make(settings)
    one, two, three = open_datasets(settings, model_vocab_size=VOCABULARY)
    assert common_labels([one, three]) == LabelScheme("classes", ("a", "b")) and common_labels([]) is None
    with pytest.raises(BigtrainError, match=r"(?s)'one' and 'two' have other labels.*one: a, b; two: b, c"):
        common_labels([one, three, two])


def test_data_for_rows_of_another_length_are_refused(classes: DataSettings) -> None:
    with pytest.raises(BigtrainError, match="sequence_length"):
        open_datasets(classes.model_copy(update={"sequence_length": 32}), model_vocab_size=VOCABULARY)


def test_words_have_their_tag_at_their_first_token(tmp_path: Path) -> None:
    """The tokens library itself says which token has the first character of a word."""
    path = tmp_path / "lines.jsonl"
    words = [text.split()[: 2 + number % 9] for number, text in enumerate(sentences(60, 8))]
    tags = [[f"T{len(word) % 4}" for word in some] for some in words]
    lines = (json.dumps({"w": some, "t": own}) + "\n" for some, own in zip(words, tags, strict=True))
    path.write_text("".join(lines))
    settings = built(tmp_path / "data", source_of("jsonl", path, tokens_field="w", tags_field="t"), length=512)
    tokenizer, names = tokenizer_of(settings), names_of(settings)
    encode, begin = tokenizer.for_documents().encode, len(tokenizer.begin_of_text.ids)
    for _, _, position, ids, labels in stored(settings):
        encoding = encode(" ".join(words[position]), add_special_tokens=False)
        wanted, start = np.full(len(encoding.ids), IGNORE_INDEX), 0
        for word, tag in zip(words[position], tags[position], strict=True):
            wanted[encoding.char_to_token(start)] = names.index(tag)
            start += len(word) + 1
        assert ids[begin:-1].tolist() == encoding.ids
        assert labels.tolist() == [IGNORE_INDEX] * begin + wanted.tolist() + [IGNORE_INDEX]


def test_spans_become_tags_of_the_words_in_them(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    spans = [{"start": 7, "end": 15, "label": "city"}, {"start": 0, "end": 2, "label": "who"}]
    path.write_text((json.dumps({"text": "He saw New York, twice", "spans": spans}) + "\n") * 30)
    settings = built(tmp_path / "data", source_of("jsonl", path, spans_field="spans"))
    names = names_of(settings)
    assert names == ("B-city", "B-who", "I-city", "O")
    for *_, labels in stored(settings):
        found = [names[label] for label in labels.tolist() if label != IGNORE_INDEX]
        assert found == ["B-who", "O", "B-city", "I-city", "O", "O"]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=3), st.integers(1, 40))
def test_the_longest_text_is_cut_first(lengths: list[int], room: int) -> None:
    """As if the longest text lost one token at a time; of equal ones, the first."""
    if sum(lengths) <= room:
        return
    wanted = list(lengths)
    while sum(wanted) > room:
        wanted[wanted.index(max(wanted))] -= 1
    found = shortened(lengths, room)
    assert sum(found) == room and sorted(found) == sorted(wanted)
    assert all(short <= length for short, length in zip(found, lengths, strict=True))


def tokens_of(count: int, first: int, labels: list[int] | None = None, outside: int = 0) -> LabelledTokens:
    own = np.full(count, outside, np.int32) if labels is None else np.array(labels, np.int32)
    return LabelledTokens(np.arange(first, first + count, dtype=np.uint32), own, outside)


@given(st.integers(1, 9), st.integers(1, 40), st.data(), st.integers(1, 12))
def test_windows_hold_every_token_and_whole_answers(question: int, context: int, data: Any, stride: int) -> None:
    """A window has the question, a separator and part of the context; an answer that it has in part is none there."""
    start = data.draw(st.integers(0, context - 1))
    end = data.draw(st.integers(start + 1, context))
    labels = [2 if start <= place < end else 1 for place in range(context)]
    segments = [tokens_of(question, 1000), tokens_of(context, 2000, labels, outside=1)]
    own = rules("answers", doc_stride=stride)
    documents, _ = own.documents(segments, BEGIN, BETWEEN, END)
    asked = min(question, 6)
    before, room = 1 + asked + 1, 20 - 1 - asked - 2
    covered: set[int] = set()
    for number, (ids, found, *_) in enumerate(documents):
        first = number * min(stride, room)
        assert ids[:before].tolist() == [1, *range(1000, 1000 + asked), 2] and ids[-1] == 3 and len(ids) <= 20
        shown = ids[before:-1].tolist()
        assert shown == list(range(2000 + first, 2000 + min(first + room, context)))
        assert found[[0, before - 1, -1]].tolist() == [IGNORE_INDEX] * 3
        whole = first <= start and end <= first + room
        answer = [2000 + place for place in range(start, end)] if whole else []
        assert [token for token, label in zip(shown, found[before:-1].tolist(), strict=True) if label == 2] == answer
        assert set(found[1 : before - 1].tolist()) == {0} and set(found[before:-1].tolist()) <= {1, 2}
        covered |= set(shown)
    assert covered == set(range(2000, 2000 + context))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=8), st.integers(2, 30))
def test_a_conversation_ends_with_the_last_answer_that_fits(turns: list[tuple[int, int]], row: int) -> None:
    labels = [label for asked, answered in turns for label in [0] * asked + [1] * answered]
    ends = tuple(np.cumsum([asked + answered for asked, answered in turns]).tolist())
    text = LabelledTokens(np.arange(10, 10 + len(labels), dtype=np.uint32), np.array(labels, np.int32), 0, ends)
    documents, cut = rules("turns", row=row).documents([text], BEGIN, BETWEEN, END)
    fitting = [end for end in (len(labels), *reversed(ends)) if end + 1 <= row]
    assert cut == bool(fitting and fitting[0] < len(labels))
    assert [document.ids.tolist() for document in documents] == [[*range(10, 10 + end), 3] for end in fitting[:1]]
    for document in documents:
        assert document.labels.tolist() == [*labels[: len(document.ids) - 1], 0]


@given(st.data())
def test_a_token_has_the_label_of_the_span_it_overlaps(data: Any) -> None:
    """As in transformers' mask of assistants' tokens, which goes through the tokens one by one."""
    bounds = sorted(data.draw(st.lists(st.integers(0, 30), min_size=2, max_size=8, unique=True)))
    spans = [(bounds[i], bounds[i + 1]) for i in range(0, len(bounds) - 1, 2)]
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, 29), max_size=12))), 30]
    offsets = np.array(list(pairwise(cuts)), np.int64)
    segment = Segment("x" * 30, "other", tuple(LabelledSpan(*span, "assistant") for span in spans))
    text = EncodedText(np.arange(len(offsets), dtype=np.uint32), offsets)
    found = rules("turns").labelled(segment, text).labels.tolist()
    assert found == [int(any(start < end and stop > first for first, end in spans)) for start, stop in offsets.tolist()]


def line(**record: Any) -> str:
    return json.dumps(record) + "\n"


@pytest.mark.parametrize(
    ("lines", "changes", "words"),
    [
        (line(text="a", label="x"), {"label_field": "kind"}, [":1", "'kind'", "label"]),
        (line(text="a", label=None), {"label_field": "label"}, [":1 has no label", "None"]),
        (line(text="a", label="x") * 3, {"label_field": "label"}, ["no labels that could be learned", "1 labels: x"]),
        (
            line(text="a", label="x") + line(text="b", label="z"),
            {"label_field": "label", "label_names": ("x", "y")},
            [":2 has a label that the source does not name", "z", "x, y"],
        ),
        (
            line(w=["a", "b"], t=["X"]),
            {"tokens_field": "w", "tags_field": "t"},
            [":1 has not one tag for each word", "2 words", "1 tags"],
        ),
        (
            line(text="abc", spans=[{"start": 1, "end": 4, "label": "x"}]),
            {"spans_field": "spans"},
            [":1 has a span outside its text", "between 0 and 3"],
        ),
        (
            line(text="abc", spans=[{"start": 0, "end": 2, "label": "x"}, {"start": 1, "end": 3, "label": "x"}]),
            {"spans_field": "spans"},
            [":1 has a span outside its text, or inside another one"],
        ),
        (line(text="abc", spans="no"), {"spans_field": "spans"}, [":1 has a span outside its text"]),
    ],
)
def test_wrong_labels_are_one_message(lines: str, changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(lines)
    source = source_of("jsonl", path, **changes)
    with pytest.raises(BigtrainError) as error:
        list(read_documents(source))
        built(tmp_path / "data", source)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("kind", "changes", "word"),
    [
        ("jsonl", {"label_field": "a", "spans_field": "b"}, "keep one"),
        ("jsonl", {"tokens_field": "a"}, "tokens_field and tags_field"),
        ("jsonl", {"text_pair_field": "a"}, "no label_field"),
        ("jsonl", {"label_names": ("a", "b")}, "no labels"),
        ("jsonl", {"label_field": "a", "label_names": ("b", "b")}, "twice"),
        ("jsonl", {"label_field": "a", "clean": ["gopher_quality"]}, "remove clean"),
        ("text_lines", {}, "labels_path"),
        ("glue", {"task": "stsb"}, "regression"),
        ("super_glue", {"task": "copa"}, "several texts"),
        ("glue", {}, "task among"),
        ("text", {"label_field": "a"}, "label_field is for jsonl, csv"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind: str, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        source_of(kind, Path("x"), **changes)


def test_labels_need_whole_documents_and_two_texts_a_separator(tmp_path: Path) -> None:
    source = source_of("jsonl", tmp_path, label_field="a", text_pair_field="b")
    with pytest.raises(ValueError, match="packing to best_fit"):
        labelled_settings(tmp_path, source, packing="concat")
    with pytest.raises(ValueError, match=r"tokenizer.separator"):
        labelled_settings(tmp_path, source, tokenizer={"vocab_size": 300})


def test_questions_that_leave_no_room_for_contexts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_query_length 64.*128 or more"):
        labelled_settings(tmp_path, source_of("squad", tmp_path), length=100)


def test_a_separator_that_the_tokenizer_lacks_is_one_message(tmp_path: Path) -> None:
    source = classified_lines(tmp_path / "lines.jsonl", 30)
    with pytest.raises(BigtrainError, match=r"data.tokenizer.separator: the tokenizer has no special token '<sep>'"):
        built(tmp_path / "data", source, tokenizer={"vocab_size": 300, "separator": "<sep>"})


@pytest.mark.parametrize("change", [{"label_names": None}, {"labels": "turns"}, {"label_names": []}])
def test_a_manifest_whose_names_do_not_fit_is_refused(
    tmp_path: Path, classes: DataSettings, change: dict[str, object]
) -> None:
    from bigtrain.data.format.hashing import canonical_json, identity

    path = Path(shutil.copytree(classes.dir / "made" / "train", tmp_path / "train")) / "manifest.json"
    value = json.loads(path.read_text()) | change
    value = {key: part for key, part in value.items() if part is not None}
    totals = {key: value.pop(key) for key in ("tokens", "documents")}
    del value["dataset_id"]
    path.write_bytes(canonical_json({**value, "dataset_id": identity(value), **totals}))
    with pytest.raises(BigtrainError):
        Dataset(path.parent)
