"""A `tokenizer.json` as llama.cpp's vocabulary: byte-level BPE, with a split into words that it has a name for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.data import BeginOfText, TokenizerContent, read_chat_template

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""llama.cpp's kinds of tokens."""

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs to cut text into the same tokens."""

    pre: str
    """Its name for how text is split into words before merging."""
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    end_of_text: int
    begin_of_text: int
    """What a text from nothing begins with: the end-of-text token where there is no other."""
    adds_begin: bool
    """Every text begins with it."""
    chat_template: str | None
    """How conversations become text, where the tokenizer came with it."""
    normalizes: bool
    """The tokenizer makes text canonical (NFC) first; llama.cpp does not."""


def read_vocabulary(
    tokenizer_file: Path, end_of_text: str, size: int, begin_of_text: BeginOfText | None = None
) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`, filled up to the model's `size` with tokens that never come.

    Args:
        tokenizer_file: the file.
        end_of_text: the token that ends a document.
        size: rows of the model's embedding.
        begin_of_text: what documents begin with. Default: what the tokenizer puts before a text.

    Raises:
        BigtrainError: it is not byte-level BPE, splits text in a way that llama.cpp has no name for, lacks
            `end_of_text`, or is larger than `size`.
    """
    given = TokenizerContent.read(tokenizer_file)
    begin = begin_of_text or BeginOfText(given.around.begin, before_prompts=True)
    tokenizer = given.as_trained(end_of_text, begin).content
    model = tokenizer["model"]
    _check_model(tokenizer)
    pre = _split_name(tokenizer.get("pre_tokenizer"), bool(model.get("ignore_merges")))
    library = given.library
    added = {
        number: token
        for token in tokenizer.get("added_tokens") or []
        if (number := library.token_to_id(token["content"])) is not None
    }
    for token in added.values():
        if flags := [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag) and not token["special"]]:
            raise _cannot(
                f"llama.cpp finds the token {token['content']!r} in other places", ", ".join(flags), "no such flag"
            )
    by_id = {number: text for text, number in model["vocab"].items()} | {key: t["content"] for key, t in added.items()}
    if max(by_id) >= size:
        raise _cannot("the tokenizer has more tokens than the model's vocabulary", max(by_id) + 1, f"at most {size}")
    ends = [number for number, text in by_id.items() if text == end_of_text]
    if not ends:
        raise BigtrainError(
            f"the tokenizer has no token {end_of_text!r}",
            found=tokenizer_file,
            fix="set data.tokenizer.end_of_text to the token that ends a document in it",
        )
    if len(begin.ids) > 1:
        raise _cannot("llama.cpp puts at most one token before a text", ", ".join(given.texts(begin.ids)), "one token")
    return Vocabulary(
        pre,
        tuple(by_id.get(number, f"[PAD{number}]") for number in range(size)),
        tuple(_kind(number, by_id, added) for number in range(size)),
        tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]),
        ends[0],
        begin.ids[0] if begin.ids else ends[0],  # without one llama.cpp takes token 11
        bool(begin.ids) and begin.before_prompts,
        read_chat_template(tokenizer_file.parent),
        tokenizer.get("normalizer") is not None,
    )


def add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Write the vocabulary to a `gguf.GGUFWriter`. No token is added after a text."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.begin_of_text)
    writer.add_eos_token_id(vocabulary.end_of_text)
    writer.add_add_bos_token(vocabulary.adds_begin)
    writer.add_add_eos_token(False)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _kind(number: int, by_id: dict[int, str], added: dict[int, dict[str, Any]]) -> int:
    if number not in by_id:
        return _UNUSED
    if number not in added:
        return _NORMAL
    return _CONTROL if added[number].get("special") else _USER_DEFINED


def _check_model(tokenizer: dict[str, Any]) -> None:
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = f"{model.get('type')} with byte fallback" if model.get("byte_fallback") else model.get("type")
        raise _cannot("only byte-level BPE tokenizers are exported to GGUF", kind, "BPE over bytes")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _cannot(f"llama.cpp has no {key} in byte-level BPE", model[key], "none")
    normalizer = tokenizer.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise _cannot("llama.cpp does not change text before it splits it", normalizer["type"], "no normalizer")


def _split_name(pre_tokenizer: dict[str, Any] | None, ignore_merges: bool) -> str:
    """llama.cpp's name for how text is split into words."""
    steps = _steps(pre_tokenizer)
    regex = _regex(steps)
    name = {(_LLAMA3, True): "llama-bpe", (_LLAMA3, False): "dbrx", (_QWEN2, False): "qwen2"}.get(
        (regex or "", ignore_merges)
    )
    if name is not None and _is_byte_level(steps[1], use_regex=False) and len(steps) == 2:
        return name
    if not ignore_merges and steps and _is_byte_level(steps[-1], use_regex=True):
        if len(steps) == 1:
            return "gpt-2"
        if len(steps) == 2 and steps[0] == {"type": "Digits", "individual_digits": True}:
            return "starcoder"
    raise _cannot(
        "llama.cpp has no name for how this tokenizer splits text into words",
        json.dumps(pre_tokenizer) + (", ignore_merges" if ignore_merges else ""),
        "the split of GPT-2 (that of trained tokenizers), Llama 3, Qwen 2 or StarCoder",
    )


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    steps: list[dict[str, Any]] = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return steps


def _regex(steps: list[dict[str, Any]]) -> str | None:
    """The pattern that the first step splits by, if the second one turns into bytes alone."""
    if len(steps) != 2 or steps[0].get("type") != "Split":
        return None
    isolated = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
    pattern: str | None = steps[0]["pattern"].get("Regex")
    return pattern if isolated else None


def _is_byte_level(step: dict[str, Any], *, use_regex: bool) -> bool:
    named = {key: value for key, value in step.items() if key in _BYTE_LEVEL}
    return named == _BYTE_LEVEL and step.get("use_regex", True) is use_regex


def _cannot(what: str, found: object, wanted: object) -> BigtrainError:
    return BigtrainError(what, found=found, wanted=wanted, fix="export to the Hugging Face format: --to hf")
