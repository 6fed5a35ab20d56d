"""Promises of the tokenizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import TokenizerSettings
from bigtrain.data.format.tokenizer import (
    canonical_form,
    check_vocabulary,
    end_of_text_id,
    load_tokenizer,
    parse_tokenizer,
    read_content,
    tokenizer_hash,
    train_tokenizer,
    vocabulary_size,
)
from bigtrain.data.format.tokenizer_content import ends_sentence_with
from tests.data.helpers import sentences

SETTINGS = TokenizerSettings(vocab_size=300)
FILE = train_tokenizer(SETTINGS, iter(sentences(50, 0)))
TOKENIZER = parse_tokenizer(FILE)


@given(st.text() | st.text(alphabet="a <|endoftext|>\n\t\r 'é😀"))
def test_any_text_comes_back_unchanged(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert end_of_text_id(TOKENIZER, SETTINGS.end_of_text) not in ids


def test_text_that_spells_end_of_text_is_ordinary_text() -> None:
    ids = TOKENIZER.encode("a<|endoftext|>b", add_special_tokens=False).ids
    assert end_of_text_id(TOKENIZER, "<|endoftext|>") == 0
    assert 0 not in ids


def test_training_gives_the_same_bytes_whatever_the_threads() -> None:
    code = (
        "import sys; from tests.data.helpers import sentences;"
        "from bigtrain.config.data_settings import TokenizerSettings;"
        "from bigtrain.data.format.tokenizer import train_tokenizer;"
        "sys.stdout.buffer.write(train_tokenizer(TokenizerSettings(vocab_size=300), iter(sentences(50, 0))))"
    )
    for threads in ("1", "2"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
        assert done.stdout == FILE


def test_its_size_is_what_was_asked_for_or_less() -> None:
    assert vocabulary_size(TOKENIZER) == 300
    few = parse_tokenizer(train_tokenizer(SETTINGS, iter(["abc"])))
    assert vocabulary_size(few) == 257  # the bytes and end-of-text


def test_the_hash_does_not_depend_on_how_the_file_was_written(tmp_path: Path) -> None:
    TOKENIZER.save(str(tmp_path / "tokenizer.json"), pretty=True)
    assert (tmp_path / "tokenizer.json").read_bytes() != FILE
    plain = json.dumps(json.loads(FILE), indent=3)
    assert canonical_form(plain) == FILE
    assert tokenizer_hash(read_content(tmp_path).to_bytes()) == tokenizer_hash(
        read_content(tmp_path / "tokenizer.json").to_bytes()
    )


def test_truncation_and_padding_of_a_given_tokenizer_are_turned_off() -> None:
    given_one = Tokenizer.from_str(FILE.decode())
    given_one.enable_truncation(4)
    given_one.enable_padding(length=8)
    tokenizer = parse_tokenizer(given_one.to_str().encode())
    assert len(tokenizer.encode("a b c d e f g h i j k l m n").ids) > 8
    assert len(tokenizer.encode("a").ids) == 1


def test_a_vocabulary_larger_than_the_embedding_is_refused_with_numbers() -> None:
    check_vocabulary(256, 256)
    with pytest.raises(BigtrainError) as error:
        check_vocabulary(8193, 8192)
    for part in ("model.vocab_size 8192", "8193", "8256"):
        assert part in str(error.value)


def test_a_missing_end_of_text_token_is_named_with_those_there_are() -> None:
    with pytest.raises(BigtrainError, match=r"(?s)<\|im_end\|>.*<\|endoftext\|>"):
        end_of_text_id(TOKENIZER, "<|im_end|>")


def test_missing_or_broken_files_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(BigtrainError, match="bigtrain data build"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    for path in (tmp_path, tmp_path / "nothing.json"):
        with pytest.raises(BigtrainError, match=r"data\.tokenizer\.path"):
            read_content(path).to_bytes()


@pytest.mark.parametrize("token", [".", "?\u0120", "...", "\u010a\u010a", "<0x0A>", "end!"])
def test_tokens_with_a_sentence_mark_end_sentences(token: str) -> None:
    assert ends_sentence_with(token)
    assert not any(ends_sentence_with(other) for other in ("\u0120the", ",", "\u2581a", "<0x0B>", ":"))
