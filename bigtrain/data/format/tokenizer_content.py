"""What a `tokenizer.json` says beside its vocabulary, and what that means here.

Such a file also holds what a fine-tuning script left in it. This table is the only place that decides:

    in the file               documents              prompts of a run, exports      prompts of another's folder
    padding, truncation       off                    off, not exported              off, as in transformers
    BPE dropout               off                    off, not exported              off
    text of a special token   characters             the token                      the token
    tokens around a text      `BeginOfText`          `BeginOfText`                  those of the file
      that an encoder reads   and the end of text    as documents have them         those of the file
    other added tokens        as the file has them   as the file has them           as the file has them
    chat template beside it   conversations alone    not used, exported             not used

A special token is one that the file marks as special, and each that ends or begins a text. Special tokens may be
pieces of the model's vocabulary, as in Unigram files. There a text could spell the token, so documents are
encoded with a copy of the vocabulary in which these pieces have names that no text contains.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from tokenizers import Tokenizer

from bigtrain.base import STRICT, BigtrainError, as_record, parse_json, read_json, read_regular
from bigtrain.data.format.hashing import canonical_json

TOKENIZER_BYTES = 512 << 20
"""Limit on a tokenizer.json; those of the largest vocabularies have about 35 MB."""

CHAT_TEMPLATE = "chat_template.jinja"
"""A chat template beside a tokenizer.json, as transformers writes it."""

CHAT_TEMPLATE_BYTES = 4 << 20

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")

Content = dict[str, Any]


@dataclass(frozen=True)
class BeginOfText:
    """What documents begin with, so that something predicts their first token. Without ids: nothing."""

    __pydantic_config__ = STRICT

    ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    before_prompts: bool = False
    """Whether every text begins so, prompts too, as for Llama 3. False: documents only, as GPT-2 was trained, whose
    documents follow the end-of-text of the one before."""

    def to_json(self) -> dict[str, Any] | None:
        """This as JSON types; None where documents begin with nothing, as in datasets that have no record of it."""
        return {"ids": list(self.ids), "before_prompts": self.before_prompts} if self.ids else None

    @classmethod
    def from_json(cls, value: Any, where: object) -> BeginOfText:
        """The inverse of `to_json`. Raises BigtrainError, which names the file `where`."""
        return cls() if value is None else as_record(cls, value, where)


class TokensAround(NamedTuple):
    """The ids that a tokenizer puts around one text."""

    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    between: tuple[int, ...] | None = None
    """Between two texts that are one document; None where each text is a document of its own."""
    second_type: int = 1
    """The type of the tokens of a second text."""


@contextmanager
def one_error(what: str, *, found: object = None, wanted: object = None, fix: str | None = None) -> Iterator[None]:
    """Make one BigtrainError of whatever the tokenizers library raises. A panic of it is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, BigtrainError):
        raise
    except BaseException as error:
        reason = f"{error}"[:300] or type(error).__name__
        raise BigtrainError(
            what, found=reason if found is None else f"{found}: {reason}", wanted=wanted, fix=fix
        ) from None


def encode_text(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """The ids of a text. Raises BigtrainError where the tokenizer cannot encode it."""
    with one_error(
        "the tokenizer cannot encode a text",
        found=ascii(text[:80]),
        fix="change the text, or use a tokenizer that has a token for unknown characters",
    ):
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    return ids


def decode_ids(tokenizer: Tokenizer, ids: Sequence[int], *, special: bool = False) -> str:
    """The text of ids, with special tokens or without. Raises BigtrainError where the tokenizer cannot decode them."""
    with one_error("the tokenizer cannot decode token ids", found=str(list(ids[:20]))):
        text: str = tokenizer.decode(ids, skip_special_tokens=not special)
    return text


def read_chat_template(folder: Path) -> str | None:
    """The chat template in the folder of a tokenizer; None without one. Raises BigtrainError if it cannot be read.

    It is how conversations become text. A build keeps it for sources of these, and for exports.
    """
    try:
        return read_regular(folder / CHAT_TEMPLATE, CHAT_TEMPLATE_BYTES).decode(errors="replace")
    except FileNotFoundError:
        pass
    try:
        configuration = read_json(folder / "tokenizer_config.json")
    except FileNotFoundError:
        return None
    template = configuration.get("chat_template") if isinstance(configuration, dict) else None
    if isinstance(template, list):  # several, by their names
        named = [item.get("template") for item in template if isinstance(item, dict) and item.get("name") == "default"]
        template = named[0] if named else None
    return template if isinstance(template, str) else None


@dataclass(frozen=True)
class TokenizerContent:
    """The content of a `tokenizer.json`."""

    content: Content
    where: str
    """The file that it came from, for messages."""
    around: TokensAround
    """What the file puts around a text. As in transformers, no tokenizer_config.json outranks it."""

    @classmethod
    def parse(cls, text: str | bytes, where: object, fix: str | None = None) -> TokenizerContent:
        """The content of a file. Raises BigtrainError if the tokenizers library does not load it."""
        content = parse_json(text, where)
        with _not_a_tokenizer(where, fix):
            Tokenizer.from_str(text if isinstance(text, str) else text.decode())
            return cls(content, str(where), _tokens_around(content.get("post_processor")))

    @classmethod
    def read(cls, path: Path, fix: str | None = None) -> TokenizerContent:
        """The content of a file. Raises BigtrainError."""
        try:
            return cls.parse(read_regular(path, TOKENIZER_BYTES), path, fix)
        except FileNotFoundError:
            raise _no_tokenizer(path, "no file", fix) from None

    @cached_property
    def library(self) -> Tokenizer:
        """The tokenizer as it is in the file, with all that is saved in it. Do not change it."""
        return _library(self.content, self.where)

    def for_reading(self, special: Collection[str] = ()) -> Tokenizer:
        """The tokenizer that decodes documents. A text that spells a special token is no such token to it."""
        tokenizer = _library(self._plain(special, self.content.get("post_processor")), self.where)
        tokenizer.encode_special_tokens = True
        return tokenizer

    def for_documents(self, special: Collection[str] = ()) -> Tokenizer:
        """The tokenizer of documents: no text has the id of a special token.

        Args:
            special: tokens that count as special whatever the file says.
        """
        tokens = {token["content"] for token in _added(self.content) if token.get("special")} | set(special)
        if _model(self.content).get("byte_fallback"):  # those stand for characters
            tokens = {token for token in tokens if not _BYTE_PIECE.fullmatch(token)}
        original = self.library
        tokens = {token for token in tokens if token and original.token_to_id(token) is not None}
        plain = self._plain(tokens, post_processor=None)
        nonce = secrets.token_hex(16)  # no text can spell what nobody knows
        names = {token: f"\ufdd0{nonce}{number}\ufdd0" for number, token in enumerate(sorted(tokens))}
        tokenizer = _library(_renamed(plain, names), self.where)
        for token, name in names.items():
            if tokenizer.token_to_id(name) != original.token_to_id(token):
                raise _no_tokenizer(self.where, f"the id of {token!r} depends on its text", None)
        tokenizer.encode_special_tokens = True
        return tokenizer

    def for_prompts(self, hidden: Collection[int] | None = None) -> Tokenizer:
        """The tokenizer of prompts: a special token that is written out is that token, as in transformers.

        Args:
            hidden: ids that texts are shown without. Default: those of all special tokens.
        """
        content = self._plain((), self._post_processor(self.around))
        if hidden is not None:
            added = [{**token, "special": token["id"] in hidden} for token in _added(content)]
            content = {**content, "added_tokens": added}
        return _library(content, self.where)

    def as_trained(
        self,
        end_of_text: str,
        begin: BeginOfText,
        *,
        read_whole: bool = False,
        separator: int | None = None,
        second_type: int = 1,
    ) -> TokenizerContent:
        """The tokenizer that belongs to a model trained on documents of this tokenizer.

        Args:
            end_of_text: the token that ends a document.
            begin: what its documents begin with.
            read_whole: a text is a whole document, as an encoder-decoder reads it, and no start of one.
            separator: the id of the token between the two texts of one document.
            second_type: the type of the tokens after it.

        Returns:
            Content that gives a text the same ids in every program. Where nothing is to change it is equal to this.
        """
        around = TokensAround(begin.ids if begin.before_prompts else ())
        if read_whole:
            end: int | None = self.library.token_to_id(end_of_text)
            around = TokensAround(begin.ids, () if end is None else (end,))
        special = {end_of_text, *self.texts(begin.ids)}
        if separator is not None:
            special.update(self.texts((separator,)))
            around = around._replace(between=(separator,), second_type=second_type)
        content = self._plain(special, self._post_processor(around))
        return TokenizerContent(content, self.where, around)

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The tokens of ids. Raises BigtrainError for an id that the vocabulary lacks."""
        found = []
        for number in ids:
            of_the_library = 0 <= number < 2**32  # it takes no other numbers
            token: str | None = self.library.id_to_token(number) if of_the_library else None
            if token is None:
                raise BigtrainError(
                    f"{self.where}: a token that begins or ends a text is not in the vocabulary",
                    found=f"id {number}",
                    fix="correct the post_processor of the tokenizer, or set data.tokenizer.begin_of_text",
                )
            found.append(token)
        return found

    @property
    def special_tokens(self) -> dict[int, str]:
        """The special tokens that the file names, by their ids."""
        return {token["id"]: token["content"] for token in _added(self.content) if token.get("special")}

    def with_special_tokens(self, tokens: Sequence[str]) -> TokenizerContent:
        """The same with these special tokens, of which those that the vocabulary lacks get ids after its last one."""
        vocabulary = self.library.get_vocab(with_added_tokens=True)
        missing = [token for token in dict.fromkeys(tokens) if token not in vocabulary]
        if set(tokens) <= set(self.special_tokens.values()):
            return self
        content = self._plain(set(tokens) - set(missing), self.content.get("post_processor"))
        first = max(vocabulary.values()) + 1
        added = [{"id": first + number, "content": token, **_FLAGS} for number, token in enumerate(missing)]
        return replace(self, content={**content, "added_tokens": [*content["added_tokens"], *added]})

    def begins_word(self, token: str) -> bool:
        """Whether a token begins a word: by its blank, its missing `##`, or as a punctuation mark of its own."""
        if _model(self.content).get("type") == "WordPiece":
            return not token.startswith(_model(self.content).get("continuing_subword_prefix") or "##")
        first = token[:1]
        return first in _BLANKS or (first.isascii() and not first.isalnum())

    def to_bytes(self) -> bytes:
        """The file in canonical form."""
        return canonical_json(self.content)

    def _plain(self, special: Collection[str], post_processor: Content | None) -> Content:
        """The content without what is not the tokenizer, in which `special` tokens are special ones."""
        model = {key: value for key, value in _model(self.content).items() if key not in _RANDOM or value is None}
        content = {**self.content, "model": model, "padding": None, "truncation": None}
        content["post_processor"] = post_processor
        added = [{**token, "special": True} if token["content"] in special else token for token in _added(self.content)]
        have = {token["content"] for token in added}
        for token in sorted(set(special) - have):
            number = self.library.token_to_id(token)
            if number is not None:
                added.append({"id": number, "content": token, **_FLAGS})
        content["added_tokens"] = added
        return {key: value for key, value in content.items() if value is not None or key in self.content}

    def _post_processor(self, around: TokensAround) -> Content | None:
        """The post-processor that puts these ids around a text; the file's own if it does."""
        own: Content | None = self.content.get("post_processor")
        if _tokens_around(own) == around:
            return own
        steps = [step for step in _steps(own) if step.get("type") == "ByteLevel"]
        if around != TokensAround():
            steps.append(_template(around, self.texts))
        return {"type": "Sequence", "processors": steps} if len(steps) > 1 else steps[0] if steps else None


def ends_sentence_with(token: str) -> bool:
    """Whether a sentence ends with a token: it has a full stop, a question or exclamation mark, or a line break."""
    return token == "<0x0A>" or any(mark in token for mark in _SENTENCE_MARKS)


_SENTENCE_MARKS = ".!?\n\u010a"
"""The last one is what byte-level BPE writes for a line break; SentencePiece's byte for it is <0x0A>."""

_BLANKS = {chr(code) for code in range(0x100, 0x122)} | {"\u2581"}
"""What byte-level BPE writes for control characters and blanks (Radford et al., 2019), and SentencePiece's blank."""

_RANDOM = ("dropout", "alpha", "nbest_size")
"""What makes two encodings of one text differ."""

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
"""Those that transformers gives to a special token that only a configuration names."""


def _library(content: Content, where: object) -> Tokenizer:
    with _not_a_tokenizer(where):
        tokenizer = Tokenizer.from_str(canonical_json(content).decode())
        if not tokenizer.get_vocab(with_added_tokens=True):
            raise ValueError("its vocabulary is empty")
        return tokenizer


def _not_a_tokenizer(where: object, fix: str | None = None) -> Any:
    return one_error(
        f"no tokenizer can be read from {where}",
        wanted="a tokenizer.json of the tokenizers library",
        fix=fix or "load it with transformers' AutoTokenizer and save it again",
    )


def _no_tokenizer(where: object, found: str, fix: str | None) -> BigtrainError:
    return BigtrainError(
        f"no tokenizer can be read from {where}",
        found=found,
        wanted="a tokenizer.json of the tokenizers library",
        fix=fix or "load it with transformers' AutoTokenizer and save it again",
    )


def _model(content: Content) -> Content:
    model: Content = content["model"]
    return model


def _added(content: Content) -> list[Content]:
    return content.get("added_tokens") or []


def _renamed(content: Content, names: Mapping[str, str]) -> Content:
    """The content with other names for tokens, and without merges that would make one of them."""

    def rename(token: Any) -> Any:
        return names.get(token, token) if isinstance(token, str) else token

    model = dict(_model(content))
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {rename(token): number for token, number in vocabulary.items()}
    else:  # Unigram: pairs of piece and score
        model["vocab"] = [[rename(piece), score] for piece, score in vocabulary]
    if "unk_token" in model:
        model["unk_token"] = rename(model["unk_token"])
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if names.keys().isdisjoint(_merged(merge, model))]
    added = [{**token, "content": rename(token["content"])} for token in _added(content)]
    return {**content, "model": model, "added_tokens": added}


def _merged(merge: str | Sequence[str], model: Content) -> tuple[str, str, str]:
    """The two parts of a merge, and what they become."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    prefix = model.get("continuing_subword_prefix") or ""
    return left, right, left + right.removeprefix(prefix)


def _steps(post_processor: Content | None) -> list[Content]:
    if post_processor is None:
        return []
    if post_processor.get("type") == "Sequence":
        return [step for inner in post_processor["processors"] for step in _steps(inner)]
    return [post_processor]


def _tokens_around(post_processor: Content | None) -> TokensAround:
    """The ids that a post-processor puts around one text. Each step of a sequence puts its own outside."""
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    for step in _steps(post_processor):
        if step.get("type") == "TemplateProcessing":
            ids = [_ids_of_piece(piece, step["special_tokens"]) for piece in step["single"]]
            text = ids.index(None) if None in ids else len(ids)
            begin = (*(each for piece in ids[:text] for each in piece or ()), *begin)
            end = (*end, *(each for piece in ids[text + 1 :] for each in piece or ()))
        elif step.get("type") in ("BertProcessing", "RobertaProcessing"):
            begin, end = (step["cls"][1], *begin), (*end, step["sep"][1])
    return TokensAround(begin, end)


def _ids_of_piece(piece: Content, special_tokens: Content) -> list[int] | None:
    """The ids of a piece of a template; None for the text."""
    if "SpecialToken" not in piece:
        return None
    ids: list[int] = special_tokens[piece["SpecialToken"]["id"]]["ids"]
    return ids


def _template(around: TokensAround, texts: Callable[[Sequence[int]], list[str]]) -> Content:
    begin, end, between = texts(around.begin), texts(around.end), texts(around.between or ())

    def piece(token: str, text: int) -> Content:
        return {"SpecialToken": {"id": token, "type_id": text}}

    def of_text(name: str, text: int, before: Sequence[str], after: Sequence[str]) -> list[Content]:
        around_it = [piece(token, text) for token in before], [piece(token, text) for token in after]
        return [*around_it[0], {"Sequence": {"id": name, "type_id": text}}, *around_it[1]]

    joined = around.between is not None
    numbers = (*around.begin, *(around.between or ()), *around.end)
    return {
        "type": "TemplateProcessing",
        "single": of_text("A", 0, begin, end),
        "pair": [
            *of_text("A", 0, begin, between if joined else end),
            *of_text("B", around.second_type, () if joined else begin, end),
        ],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in zip([*begin, *between, *end], numbers, strict=True)
        },
    }
