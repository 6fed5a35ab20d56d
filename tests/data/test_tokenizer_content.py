"""What a tokenizer file says beside its vocabulary means one thing for documents, prompts and exports."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import TokenizerSettings
from bigtrain.data import Dataset, build_datasets, open_datasets, verify
from bigtrain.data.build.execute import Inline
from bigtrain.data.build.pack.build_pack import build_packs
from bigtrain.data.format.tokenizer import DataTokenizer, begin_of_text, vocabulary_size
from bigtrain.data.format.tokenizer_content import BeginOfText, TokenizerContent, TokensAround, encode_text
from tests.data.helpers import data_settings, jsonl_source, make, plan_over, sentences, write_jsonl
from tests.data.test_loader import rows, take
from tests.data.tokenizer_files import (
    BEGIN,
    END,
    KINDS,
    PAD,
    SPECIAL,
    TEXTS,
    TOOL,
    UNKNOWN,
    changed,
    contents,
    tokenizer_of,
)


def ids_of(content: TokenizerContent, *tokens: str) -> tuple[int, ...]:
    return tuple(content.library.token_to_id(token) for token in tokens)


@given(content=contents(), text=TEXTS)
@example(content=changed("unigram"), text=f"how a page of HTML ends: {END} is a tag {END} and goes on")
@example(content=changed("words", end_is="piece"), text=f"the {END} fox {PAD}")
@example(content=changed("byte_level", end_is="marked"), text=f"the {END}")
def test_no_text_of_a_document_has_the_id_of_a_special_token(content: TokenizerContent, text: str) -> None:
    """Whether the token is marked as special or is a piece of the vocabulary. UNKNOWN stands for unknown characters."""
    special = {token["content"] for token in content.content["added_tokens"] if token["special"]} | {END}
    tokenizer = content.for_documents([END])
    ids = encode_text(tokenizer, text)
    assert not set(ids) & set(ids_of(content, *(special - {UNKNOWN})))
    assert all(encode_text(tokenizer, text) == ids for _ in range(3))
    assert encode_text(content.for_documents([END]), text) == ids
    assert max(ids, default=0) < vocabulary_size(content.library)


@given(text=st.text(alphabet="the quickbrownfx.é😀\n", max_size=30), kind=st.sampled_from(list(KINDS)))
def test_text_without_special_tokens_has_the_ids_of_the_library(text: str, kind: str) -> None:
    """Padding, truncation, dropout and tokens around a text change nothing in a document."""
    content = changed(kind, padding=True, truncation=True, dropout=0.5, begin=[BEGIN], end=[END], end_is="marked")
    library = Tokenizer.from_str(tokenizer_of(kind))
    assert encode_text(content.for_documents([END]), text) == library.encode(text, add_special_tokens=False).ids


@given(text=TEXTS, end_is=st.sampled_from(["special", "marked", "piece"]))
def test_a_special_token_in_text_comes_back_as_the_text(text: str, end_is: str) -> None:
    """Byte-level BPE has tokens for every character, so that the text of a document is never lost."""
    content = changed("byte_level", dropout=0.5, begin=[BEGIN], end_is=end_is)
    ids = encode_text(content.for_documents([END]), text)
    assert content.library.decode(ids, skip_special_tokens=False) == text


@given(content=contents())
def test_the_tokens_around_a_text_are_read_as_the_library_puts_them(content: TokenizerContent) -> None:
    tokenizer = Tokenizer.from_str(json.dumps({**content.content, "truncation": None, "padding": None}))
    whole, inside = (tokenizer.encode("the fox", add_special_tokens=each).ids for each in (True, False))
    assert whole == [*content.around.begin, *inside, *content.around.end] or content.content["model"].get("dropout")


STARTS = st.sampled_from([(), (BEGIN,), (END,), (BEGIN, PAD)])


@given(content=contents(), text=TEXTS, start=STARTS, before_prompts=st.booleans())
def test_an_export_gives_prompts_the_ids_that_we_give_them(
    content: TokenizerContent, text: str, start: tuple[str, ...], before_prompts: bool
) -> None:
    """Any program that loads the exported file, with its defaults: no padding, no truncation, no chance."""
    begin = BeginOfText(ids_of(content, *start), before_prompts)
    exported = content.as_trained(END, begin)
    ours = encode_text(exported.for_prompts(), text, add_special_tokens=True)
    theirs = Tokenizer.from_str(exported.to_bytes().decode())
    assert all(theirs.encode(text).ids == ours for _ in range(3))
    assert exported.around == TokensAround(begin.ids if before_prompts else ())
    assert vocabulary_size(theirs) == vocabulary_size(content.library)
    if not any(token in text for token in (*SPECIAL, TOOL)):
        documents = encode_text(content.for_documents([END]), text)
        assert ours == [*exported.around.begin, *documents]


def test_a_tokenizer_that_says_nothing_else_is_exported_as_it_is() -> None:
    for kind in KINDS:
        content = changed(kind)
        assert content.as_trained(END, BeginOfText(ids_of(content, END))).content == content.content
    llama = changed("byte_level", begin=[BEGIN], nested=True)
    assert llama.as_trained(END, BeginOfText(ids_of(llama, BEGIN), before_prompts=True)).content == llama.content


@pytest.mark.parametrize(
    ("choice", "own", "wanted"),
    [
        ("auto", None, BeginOfText((1,), before_prompts=False)),
        ("auto", [BEGIN], BeginOfText((3,), before_prompts=True)),
        ("auto", [BEGIN, PAD], BeginOfText((3, 0), before_prompts=True)),
        ("none", [BEGIN], BeginOfText()),
        (PAD, [BEGIN], BeginOfText((0,), before_prompts=True)),
        (END, None, BeginOfText((1,), before_prompts=True)),
    ],
)
def test_documents_begin_as_the_setting_and_the_tokenizer_say(
    choice: str, own: list[str] | None, wanted: BeginOfText
) -> None:
    settings = TokenizerSettings(end_of_text=END, begin_of_text=choice)
    assert begin_of_text(settings, changed("unigram", begin=own)) == wanted


def test_a_begin_that_the_tokenizer_lacks_is_named() -> None:
    with pytest.raises(BigtrainError, match=r"(?s)begin_of_text.*<bos>.*</s>"):
        begin_of_text(TokenizerSettings(end_of_text=END, begin_of_text="<bos>"), changed("unigram"))
    beyond = changed("unigram", begin=[BEGIN]).content
    beyond["post_processor"]["special_tokens"][BEGIN]["ids"] = [9999]
    with pytest.raises(BigtrainError, match=r"(?s)not in the vocabulary.*id 9999"):
        begin_of_text(TokenizerSettings(end_of_text=END), TokenizerContent.parse(json.dumps(beyond), "a"))


def without(content: dict[str, Any], **changes: Any) -> str:
    return json.dumps({**content, **changes})


PLAIN = json.loads(tokenizer_of("words"))
BROKEN = {
    "no object": "[]",
    "no JSON": "{",
    "deep": "[" * 100_000,
    "empty": "{}",
    "no vocabulary": without(PLAIN, model={"type": "WordLevel", "vocab": {}, "unk_token": "a"}, added_tokens=[]),
    "panics: prefix": without(
        PLAIN,
        model={"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
               "continuing_subword_prefix": "####"},
    ),
    "panics: charsmap": without(PLAIN, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "panics: template": without(
        PLAIN,
        post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
                        "pair": [], "special_tokens": {}},
    ),
    "score": without(PLAIN, model={"type": "Unigram", "unk_id": 0, "vocab": [["a", float("nan")]]}),
    "surrogate": '{"version": "\\ud800"}',
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_malformed_tokenizer_is_one_error_that_names_the_file(text: str, tmp_path: Path) -> None:
    """Also where the library panics, which is no Exception."""
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BigtrainError, match=r"tokenizer\.json"):
        TokenizerContent.read(tmp_path / "tokenizer.json").for_documents([END])


def test_a_text_that_the_library_does_not_encode_is_one_error(tmp_path: Path) -> None:
    """A word level tokenizer without a token for unknown words; a lone surrogate, which is no text."""
    content = json.loads(tokenizer_of("words"))
    content["model"]["unk_token"] = "missing"
    (tmp_path / "words.json").write_text(json.dumps(content))
    words = TokenizerContent.read(tmp_path / "words.json")
    for text in ("neverseen", "\ud800"):
        with pytest.raises(BigtrainError, match="cannot encode a text"):
            encode_text(words.for_prompts(), text)
    settings = data_settings(
        tmp_path / "data",
        jsonl_source(write_jsonl(tmp_path / "a.jsonl", [*sentences(9, 0), "neverseen"])),
        tokenizer={"path": str(tmp_path / "words.json"), "end_of_text": END},
    )
    with pytest.raises(BigtrainError, match=r"document \d+ of a\.jsonl cannot be encoded"):
        make(settings)


# Builds


def built(folder: Path, content: TokenizerContent | None, texts: list[str], **tokenizer: Any) -> Dataset:
    """The only dataset of a build, with nothing held out."""
    folder.mkdir()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content.to_bytes())
        tokenizer |= {"path": str(folder / "tokenizer.json"), "end_of_text": END}
    settings = data_settings(
        folder / "data",
        jsonl_source(write_jsonl(folder / "a.jsonl", texts)),
        tokenizer={"vocab_size": 300, **tokenizer},
        validation={"fraction": 0.0},
    )
    make(settings)
    (dataset,) = open_datasets(settings, model_vocab_size=512)
    assert verify(settings.dir).ok
    return dataset


def documents_of(dataset: Dataset) -> list[list[int]]:
    (shard,) = dataset.shards
    offset = shard.documents.offset
    return [shard.tokens[a:b].tolist() for a, b in pairwise(offset)]


SPELLED = ["the fox", f"ends with {END} and {PAD} or {BEGIN}{END}", END]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end_is", ["special", "marked", "piece"])
def test_shards_have_the_begin_and_the_end_at_the_ends_alone(kind: str, end_is: str, tmp_path: Path) -> None:
    """With all that a file may hold; and a second build of it writes the same."""
    content = changed(
        kind, padding=True, truncation=True, dropout=0.5, begin=[BEGIN], end=[END], end_is=end_is, tool={"lstrip": True}
    )
    begin, end = ids_of(content, BEGIN, END)
    first = built(tmp_path / "one", content, SPELLED)
    for document in documents_of(first):
        assert (document[0], document[-1]) == (begin, end)
        assert not {begin, end} & set(document[1:-1])
        assert len(document) > 3 or kind == "words"
    assert first.manifest.begin_of_text == {"ids": [begin], "before_prompts": True}
    assert built(tmp_path / "two", content, SPELLED).dataset_id == first.dataset_id


def test_without_a_begin_of_its_own_documents_follow_the_end_of_text(tmp_path: Path) -> None:
    """As GPT-2 was trained: something predicts the first token of a document, and prompts stay as they are."""
    dataset = built(tmp_path / "auto", None, sentences(20, 0))
    tokenizer = DataTokenizer.open(tmp_path / "auto" / "data")
    for text, document in zip(sentences(20, 0), documents_of(dataset), strict=True):
        assert document == [0, *encode_text(tokenizer.for_prompts(), text, add_special_tokens=True), 0]
    assert dataset.manifest.begin_of_text == {"ids": [0], "before_prompts": False}


def test_a_begin_that_is_named_is_trained_with_the_tokenizer(tmp_path: Path) -> None:
    dataset = built(tmp_path / "named", None, sentences(20, 0), begin_of_text="<|begin|>")
    tokenizer = DataTokenizer.open(tmp_path / "named" / "data")
    assert {document[0] for document in documents_of(dataset)} == {1}
    assert encode_text(tokenizer.for_prompts(), "", add_special_tokens=True) == [1]


def test_data_of_the_first_versions_stay_as_they_are(tmp_path: Path) -> None:
    """Their records say nothing of a begin. `auto` takes them and goes on with them, another choice is refused."""
    old = built(tmp_path / "old", None, sentences(20, 0), begin_of_text="none")
    directory = tmp_path / "old" / "data"
    assert "begin_of_text" not in json.loads((directory / "build.json").read_bytes())
    assert b"begin_of_text" not in (directory / "lines" / "train" / "manifest.json").read_bytes()
    settings = data_settings(directory, jsonl_source(tmp_path / "old" / "a.jsonl"), validation={"fraction": 0.0})
    (same,) = open_datasets(settings, model_vocab_size=512)
    assert same.dataset_id == old.dataset_id
    more = jsonl_source(write_jsonl(tmp_path / "more.jsonl", sentences(5, 1)), name="more")
    both = settings.model_copy(update={"sources": [*settings.sources, more]})
    build_datasets(both, vocab_size=512, report=lambda line: None, on="inline")
    assert all(d.manifest.begin_of_text is None for d in open_datasets(both, model_vocab_size=512))
    named = TokenizerSettings(vocab_size=300, begin_of_text="<|endoftext|>")
    for refusing in (open_datasets, build_datasets):
        with pytest.raises(BigtrainError, match=r"(?s)begin_of_text.*first token.*<\|endoftext\|>"):
            _call(refusing, settings.model_copy(update={"tokenizer": named}))


def _call(function: Any, settings: Any) -> None:
    if function is open_datasets:
        open_datasets(settings, model_vocab_size=512)
    else:
        build_datasets(settings, vocab_size=512, report=lambda line: None, on="inline")


def test_an_end_of_text_that_stands_for_unknown_words_is_refused(tmp_path: Path) -> None:
    content = json.loads(tokenizer_of("words"))
    content["model"]["unk_token"] = END
    with pytest.raises(BigtrainError, match=r"(?s)document 1 of a\.jsonl has the end-of-text token inside"):
        built(tmp_path / "a", TokenizerContent.parse(json.dumps(content), "a"), ["the fox", "the unheard fox"])


def test_the_first_token_of_each_document_is_a_label(tmp_path: Path) -> None:
    """Every token but the begin is a label once in an epoch, in each way to make sequences."""
    dataset = built(tmp_path / "a", None, sentences(40, 0))
    firsts = [document[1] for document in documents_of(dataset)]
    for packing in ("concat", "best_fit"):
        if packing != "concat":
            with Inline() as executor:
                build_packs(dataset.directory, packing, 16, executor, lambda line: None)
        planned = plan_over([dataset], [1], length=16, batch=1, packing=packing)
        batches = take(planned, planned[0].sources[0].sequences, micro_batch_size=1)
        inputs, labels, positions = (rows(batches, name) for name in ("input_ids", "labels", "position_ids"))
        starts = ((inputs == 0) & (positions == 0) & (labels >= 0)).numpy()
        assert sorted(labels.numpy()[starts].tolist()) == sorted(firsts)
        assert sum(batch.label_tokens for batch in batches) == dataset.tokens - len(firsts)
        assert np.count_nonzero(labels.numpy() == 0) == len(firsts)


@pytest.mark.parametrize("number", [-1, 10**6, 2**32, 2**64])
def test_an_id_that_no_vocabulary_can_have_is_refused_by_its_number(number: int) -> None:
    """A record that was changed may hold any number; the library takes those of 32 bits alone."""
    with pytest.raises(BigtrainError, match=f"id {number}"):
        changed("byte_level").texts((number,))
