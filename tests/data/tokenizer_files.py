"""Small tokenizers of each kind, with what other programs leave in a `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bigtrain.data.format.tokenizer_content import TokenizerContent
from tests.data.helpers import sentences

END, BEGIN, PAD, UNKNOWN, TOOL = "</s>", "<s>", "<pad>", "<unk>", "<tool>"
SPECIAL = [PAD, END, UNKNOWN, BEGIN]


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(50, 0), trainer)
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    texts = [*sentences(50, 0), "< / s > a b c <p ad> un k t o l 0 1 2"] * 2
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token=UNKNOWN, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=60, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(sentences(50, 0), trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {"byte_level": _byte_level, "unigram": _unigram, "words": _words}


@cache
def tokenizer_of(kind: str) -> str:
    """The file of a tokenizer as it was trained: its special tokens are pieces of the vocabulary, too."""
    return KINDS[kind]().to_str()


def template(begin: list[str], end: list[str], ids: dict[str, int]) -> dict[str, Any]:
    """A post-processor as published files have it."""
    pieces = [{"SpecialToken": {"id": token, "type_id": 0}} for token in begin]
    after = [{"SpecialToken": {"id": token, "type_id": 0}} for token in end]
    single = [*pieces, {"Sequence": {"id": "A", "type_id": 0}}, *after]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in {*begin, *end}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def changed(
    kind: str,
    *,
    padding: bool = False,
    truncation: bool = False,
    dropout: float | None = None,
    begin: list[str] | None = None,
    end: list[str] | None = None,
    nested: bool = False,
    end_is: str = "special",
    tool: dict[str, bool] | None = None,
) -> TokenizerContent:
    """A tokenizer with what is named.

    Args:
        end_is: `special`; `marked` as an added token that is not special; `piece` of the vocabulary alone.
        tool: an added token beyond the vocabulary, with these flags; there is a gap before its id.
    """
    tokenizer = Tokenizer.from_str(tokenizer_of(kind))
    if padding:
        tokenizer.enable_padding(direction="left", pad_id=tokenizer.token_to_id(PAD), pad_token=PAD, length=24)
    if truncation:
        tokenizer.enable_truncation(2)
    content = json.loads(tokenizer.to_str())
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    if dropout is not None and kind == "byte_level":
        content["model"]["dropout"] = dropout
    if begin or end:
        content["post_processor"] = template(begin or [], end or [], ids)
        if nested:
            steps = [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}]
            content["post_processor"] = {"type": "Sequence", "processors": [*steps, content["post_processor"]]}
    added = content["added_tokens"]
    if end_is == "marked":
        added[:] = [{**token, "special": token["special"] and token["content"] != END} for token in added]
    if end_is == "piece":
        added[:] = [token for token in added if token["content"] != END]
    if tool is not None:
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        added.append({"id": tokenizer.get_vocab_size(), "content": TOOL, **plain, **tool})
    return TokenizerContent.parse(json.dumps(content), "tokenizer.json")


FLAGS = st.fixed_dictionaries({name: st.booleans() for name in ("single_word", "lstrip", "rstrip", "special")})
BEGINS = st.sampled_from([None, [BEGIN], [BEGIN, PAD], [END]])


@st.composite
def contents(draw: st.DrawFn) -> TokenizerContent:
    """Tokenizers of all kinds, with everything that other programs leave in them."""
    return changed(
        draw(st.sampled_from(list(KINDS))),
        padding=draw(st.booleans()),
        truncation=draw(st.booleans()),
        dropout=draw(st.sampled_from([None, 0.3, 1.0])),
        begin=draw(BEGINS),
        end=draw(st.sampled_from([None, [END]])),
        nested=draw(st.booleans()),
        end_is=draw(st.sampled_from(["special", "marked", "piece"])),
        tool=draw(st.none() | FLAGS),
    )


TEXTS = st.lists(
    st.sampled_from([*SPECIAL, TOOL, " ", "  ", "the", " quick", "brown fox", "é", "<0x0A>", "\n", "s", "<", "x"]),
    max_size=9,
).map("".join)
