"""Promises of sources of pairs: the label of each token, format 2 beside format 1, and catalogues of messages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data import DataTokenizer, open_datasets, verify
from bigtrain.data.build.corpus import read_documents
from bigtrain.data.format.manifest import DatasetManifest
from tests.data.helpers import VOCABULARY, contents, data_settings, make, sentences

CATALOGUE = """
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "Save"
msgstr "{save}"

#, fuzzy
msgid "Guess"
msgstr "?"

msgid "Later"
msgstr ""

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "{file}"
msgstr[1] "{files}"
"""


def pairs_source(path: Path, count: int = 200) -> SourceSettings:
    texts = sentences(count, 3)
    with path.open("w") as file:
        for text in texts:
            words = text.split()[:20]
            record = {"text": " ".join(words), "other": " ".join(reversed(words))}
            file.write(json.dumps(record) + "\n")
    return SourceSettings(name="pairs", kind="jsonl", path=str(path), target_field="other")


def test_each_token_is_labelled_with_the_part_it_is_in(tmp_path: Path) -> None:
    """The tokens labelled 0 are those of the source alone, those labelled 1 those of the target, with its end."""
    source = pairs_source(tmp_path / "pairs.jsonl")
    settings = data_settings(tmp_path / "data", source, packing="best_fit", sequence_length=64)
    make(settings)
    tokenizer = DataTokenizer.open(settings.dir)
    encode = tokenizer.for_documents().encode
    wanted = {document.position: document.texts for document in read_documents(source)}
    seen = 0
    for split in ("train", "validation"):
        (dataset,) = open_datasets(settings, model_vocab_size=VOCABULARY, split=split)
        assert dataset.manifest.format == 2 and dataset.manifest.labels == "parts"
        for shard in dataset.shards:
            for number, position in enumerate(shard.documents.position.tolist()):
                first, end = shard.documents.offset[number : number + 2].tolist()
                ids, labels = shard.tokens[first:end], shard.labels[first:end]
                begin, one = list(tokenizer.begin_of_text.ids), wanted[position]
                assert ids[labels == 0].tolist() == begin + encode(one[0], add_special_tokens=False).ids
                assert ids[labels == 1].tolist() == [*encode(one[1], add_special_tokens=False).ids, tokenizer.end_id]
                seen += 1
    assert seen == 200
    assert not verify(settings.dir).problems


def test_labels_do_not_depend_on_workers_and_are_verified(tmp_path: Path) -> None:
    source = pairs_source(tmp_path / "pairs.jsonl")
    for workers in (1, 2):
        make(data_settings(tmp_path / f"{workers}", source, packing="best_fit", sequence_length=64, workers=workers))
    one, other = (contents(tmp_path / f"{workers}") for workers in (1, 2))
    assert {name for name in one if name.endswith(".lab")} == {"pairs/train/00000.lab", "pairs/validation/00000.lab"}
    assert {name: data for name, data in one.items() if ".build" not in name} == {
        name: data for name, data in other.items() if ".build" not in name
    }
    changed = tmp_path / "1" / "pairs" / "train" / "00000.lab"
    data = bytearray(changed.read_bytes())
    data[7] ^= 1
    changed.write_bytes(data)
    assert any("00000.lab" in problem for problem in verify(tmp_path / "1").problems)


def test_a_source_without_labels_is_written_in_format_1(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(50, 1)))
    make(data_settings(tmp_path / "data", SourceSettings(name="texts", kind="jsonl", path=str(path))))
    written = json.loads((tmp_path / "data" / "texts" / "train" / "manifest.json").read_text())
    assert written["format"] == 1 and "labels" not in written and len(written["shards"][0]["files"]) == 2


@pytest.mark.parametrize(
    "change",
    [{"format": 1}, {"labels": None}, {"labels": "words"}, {"format": 3}],
    ids=["format 1 with labels", "format 2 without", "unknown labels", "format 3"],
)
def test_a_manifest_of_labels_that_are_not_there_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    from bigtrain.data.format.hashing import canonical_json, identity

    settings = data_settings(tmp_path / "data", pairs_source(tmp_path / "pairs.jsonl"), packing="best_fit")
    make(settings)
    path = tmp_path / "data" / "pairs" / "train" / "manifest.json"
    value = json.loads(path.read_text()) | change
    value = {key: part for key, part in value.items() if part is not None}
    totals = {key: value.pop(key) for key in ("tokens", "documents")}
    del value["dataset_id"]
    path.write_bytes(canonical_json({**value, "dataset_id": identity(value), **totals}))
    with pytest.raises(BigtrainError):
        DatasetManifest.read(path.parent)


def catalogues(folder: Path) -> None:
    for language, words in {
        "de": ("Speichern", "%d Datei", "%d Dateien"),
        "fr": ("Enregistrer", "%d f", "%d ff"),
    }.items():
        path = folder / "app" / "locale" / language / "LC_MESSAGES" / "django.po"
        path.parent.mkdir(parents=True)
        path.write_text(CATALOGUE.format(save=words[0], file=words[1], files=words[2]))


def test_catalogues_give_translated_messages_and_their_languages(tmp_path: Path) -> None:
    catalogues(tmp_path)
    every = list(read_documents(SourceSettings(name="all", kind="gettext", path=str(tmp_path))))
    assert [document.texts for document in every] == [
        (">>de<< Save", "Speichern"), (">>de<< %d file", "%d Datei"), (">>de<< %d files", "%d Dateien"),
        (">>fr<< Save", "Enregistrer"), (">>fr<< %d file", "%d f"), (">>fr<< %d files", "%d ff"),
    ]  # fmt: skip
    assert every[0].group == every[3].group == "Save"
    one = list(read_documents(SourceSettings(name="one", kind="gettext", path=str(tmp_path), languages=("fr",))))
    assert one[0].texts == ("Save", "Enregistrer")


def test_a_message_is_held_out_in_all_languages_or_in_none(tmp_path: Path) -> None:
    source = SourceSettings(name="django", kind="gettext", package="django", languages=("de", "fr", "es"))
    settings = data_settings(tmp_path / "data", source, packing="best_fit", sequence_length=256)
    make(settings)
    messages = []
    for split in ("train", "validation"):
        (dataset,) = open_datasets(settings, model_vocab_size=VOCABULARY, split=split)
        decode = DataTokenizer.open(settings.dir).for_reading().decode
        own = set()
        for shard in dataset.shards:
            for first, end in zip(shard.documents.offset[:-1], shard.documents.offset[1:], strict=True):
                ids = shard.tokens[first:end][shard.labels[first:end] == 0]
                own.add(decode(ids.astype(np.int64).tolist()).split("<< ", 1)[1])
        messages.append(own)
    assert len(messages[0]) > 500 and len(messages[1]) > 50
    assert not messages[0] & messages[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"package": "no_such_package"}, ["no_such_package", "not installed", "pip install"]),
        ({"package": "django", "languages": ("xx",)}, ["xx", "languages"]),
    ],
)
def test_what_catalogues_lack_is_one_message(changes: dict[str, object], words: list[str]) -> None:
    with pytest.raises(BigtrainError) as error:
        list(read_documents(SourceSettings.model_validate({"name": "messages", "kind": "gettext", **changes})))
    for word in words:
        assert word in str(error.value)


def test_what_is_no_catalogue_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "de.po").write_bytes(b"no catalogue\n")
    with pytest.raises(BigtrainError, match="no message catalogue"):
        list(read_documents(SourceSettings(name="messages", kind="gettext", path=str(tmp_path))))
