"""Import of a Hugging Face folder: everything is checked before anything is written, then tensors go one by one.

config.json       --settings_of-->  model.yaml
*.safetensors     --weight_maps-->  our names and layout --> .safetensors, in the types they have
tokenizer.json    -->  the same bytes
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor

from bigtrain.base import BigtrainError, __version__, as_record, read_json
from bigtrain.config import ModelSettings
from bigtrain.convert.config_json import CONFIG_BYTES, read_config, settings_of
from bigtrain.convert.config_keys import label_names
from bigtrain.convert.families import family_of
from bigtrain.convert.family import Family
from bigtrain.convert.imported import FORMAT, MANIFEST, MODEL, file_digest, write_model
from bigtrain.convert.out_folder import out_folder, refuse_foreign_folder
from bigtrain.convert.shards import DTYPES, SHARD_BYTES, StoredTensor, TensorFolder, tensor_digest, write_safetensors
from bigtrain.convert.weights import WeightMap, our_shapes, their_shapes, weight_maps
from bigtrain.data import CHAT_TEMPLATE, TOKENIZER_FILE, TokenizerContent, vocabulary_size

_NAMES = re.compile(
    r"(model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|model\.yaml|manifest\.json"
    r"|(tokenizer|special_tokens_map|tokenizer_config)\.json|chat_template\.jinja)"
)
"""The files of an import. A folder with others is not replaced."""
GENERATION = "generation_config.json"
_BESIDE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", CHAT_TEMPLATE)


@dataclass(frozen=True)
class Found:
    """A Hugging Face folder that was understood."""

    settings: ModelSettings
    notes: list[str]
    """What the user ought to know."""
    end_of_text: str
    """The token that ends a document."""
    ignored: dict[str, Any] = field(default_factory=dict)
    """Keys of config.json that the user had ignored, with their values."""


def import_hf(
    folder: Path,
    out: Path,
    *,
    end_of_text: str | None = None,
    ignored: Collection[str] = (),
    shard_bytes: int = SHARD_BYTES,
    check: Callable[[Found, Path], None] = lambda found, folder: None,
) -> Found:
    """Write a folder for `model.init_from` under a temporary name, then move it to `out` in one step.

    Args:
        folder: config.json, *.safetensors, tokenizer.json.
        out: the folder to make. An earlier import there is replaced.
        end_of_text: the token that ends a document. Default: the one that config.json names.
        ignored: keys of config.json to ignore; they are recorded in the manifest.
        shard_bytes: limit on one weights file.
        check: called with the whole folder before it becomes `out`; where it raises, nothing is left of it.

    Raises:
        BigtrainError: `out` holds something else, the model is none that we compute, tensors are missing, surplus or
            misshapen, or the token that ends a document is not clear.
    """
    refuse_foreign_folder(out, _is_ours, _NAMES, "import")
    config = read_config(folder)
    settings, notes = settings_of(config, ignored)
    files, maps, shapes, stored_as = _weights(folder, settings)
    token = _end_of_text(folder, config, settings, end_of_text)
    heads = family_of(settings).other_heads
    if other := [name for name in files.names() if name not in stored_as.values() and re.search(heads, name)]:
        notes.append(f"left out: {_listed(other)}, which belong to heads that the language model does not have")

    found = Found(settings, notes, token, {key: config[key] for key in sorted(set(ignored))})
    with out_folder(out) as partial:
        digests: dict[str, str] = {}
        entries = _entries(files, stored_as, maps, shapes)
        write_safetensors(entries, _ours(files, stored_as, maps, shapes, digests), partial, shard_bytes)
        comment = (
            f"Imported by bigtrain {__version__} from {folder.resolve().name}. To go on training it, take this section",
            f"with `init_from: {out}` in it, and the tokenizer it was trained with:",
            f"data.tokenizer.path: {out / TOKENIZER_FILE}, data.tokenizer.end_of_text: {json.dumps(token)}",
        )
        write_model(partial / MODEL, settings, comment)
        for name in (TOKENIZER_FILE, *_BESIDE_TOKENIZER):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        manifest = {
            "format": FORMAT,
            "bigtrain_version": __version__,
            "source": str(folder.resolve()),
            "end_of_text": token,
            **_decoder_start(folder, settings),
            **_label_names(config, settings),
            "ignored_keys": found.ignored,
            "files": {name: file_digest(partial / name) for name in (MODEL, TOKENIZER_FILE)},
            "tensors": digests,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        check(found, partial)
    return found


def _decoder_start(folder: Path, settings: ModelSettings) -> dict[str, int]:
    """The id that the decoder's texts start with, of an encoder-decoder whose folder names one."""
    starts = read_special_ids(folder).decoder_starts if settings.architecture == "encoder_decoder" else ()
    return {"decoder_start_id": starts[0]} if starts else {}


def _label_names(config: Mapping[str, Any], settings: ModelSettings) -> dict[str, list[str]]:
    """The names of the classes of a model with a task_head whose config.json has any."""
    names = label_names(config) if settings.num_labels else None
    return {} if names is None else {"label_names": names}


class HuggingFaceWeights:
    """The weights of a Hugging Face folder by our names, read one map at a time."""

    def __init__(self, folder: Path, settings: ModelSettings) -> None:
        self._files, self._maps, self._shapes, self._stored_as = _weights(folder, settings)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The types that they have in the files."""
        return {DTYPES[self._files.dtype_name(name)] for name in self._stored_as.values()}

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors."""
        return _ours(self._files, self._stored_as, self._maps, self._shapes, {})


def read_hf(folder: Path) -> tuple[ModelSettings, HuggingFaceWeights]:
    """The section model of a Hugging Face folder, and its weights by our names.

    Raises:
        BigtrainError: the model is none that we compute, or tensors are missing, surplus or misshapen.
    """
    settings, _ = settings_of(read_config(folder))
    return settings, HuggingFaceWeights(folder, settings)


@dataclass(frozen=True)
class SpecialIds:
    """The tokens around a text that transformers generates with the model of a folder."""

    begins: tuple[int, ...]
    """The first stands for an empty prompt. Where a folder has none, those that end a text begin one."""
    ends: tuple[int, ...]
    """None where text goes on to the length that is asked for."""
    decoder_starts: tuple[int, ...]
    """The first is what an encoder-decoder's decoder starts a text with."""
    notes: list[str]
    """What was skipped, with the reason."""


def read_special_ids(folder: Path) -> SpecialIds:
    """The tokens around a text, by generation_config.json.

    Where that is not there or cannot be read, they stand in config.json, as for transformers. Negative ids, which some
    published files have in place of none, are skipped.

    Raises:
        BigtrainError: there is no config.json, or an id is no integer.
    """
    config = read_config(folder)
    generation, notes = _generation(folder, config)

    def ids(source: Mapping[str, Any], key: str) -> tuple[int, ...]:
        found = source.get(key)
        listed = found if isinstance(found, list) else [] if found is None else [found]
        given = as_record(tuple[Annotated[int, Field(strict=True)], ...], listed, f"{key} in {folder}")
        if any(each < 0 for each in given):
            notes.append(f"{folder}: {key} {json.dumps(found)[:100]} is skipped: no token has a negative id")
        return tuple(each for each in given if each >= 0)

    ends = ids(generation, "eos_token_id")
    begins = ids(config, "bos_token_id") or ids(generation, "bos_token_id") or ends
    starts = ids(generation, "decoder_start_token_id") or ids(config, "decoder_start_token_id") or begins
    return SpecialIds(begins, ends, starts, notes)


def _generation(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What generation_config.json says, or config.json in its place, with the reason."""
    file = folder / GENERATION
    try:
        content = read_json(file, CONFIG_BYTES)
    except FileNotFoundError:
        return config, []
    except BigtrainError as error:
        return config, [f"{file} is skipped, and config.json is read: {error.found}"]
    if not isinstance(content, dict):
        return config, [f"{file} is skipped, and config.json is read: it is no JSON object"]
    return content, []


def _weights(
    folder: Path, settings: ModelSettings
) -> tuple[TensorFolder, list[WeightMap], dict[str, torch.Size], dict[str, str]]:
    """The tensors of a folder, how they become ours, the shapes of ours, and the names of theirs in the files.

    Raises:
        BigtrainError: they are not those of the model.
    """
    files = TensorFolder(folder)
    layers = settings.distinct_layers + (settings.num_decoder_layers or 0)
    if layers > (there := len(files.names())):
        # Before the model is laid out, which takes a millisecond a layer.
        raise BigtrainError(
            f"the tensors in {folder} are not those of its config.json",
            found=f"{there:,} tensors for {layers:,} layers",
            wanted="several tensors for each layer",
            fix="fetch the folder again, or correct config.json",
        )
    shapes = our_shapes(settings)
    maps = weight_maps(settings, shapes)
    return files, maps, shapes, _stored_as(files, settings, their_shapes(maps, shapes))


def _entries(
    files: TensorFolder, stored_as: Mapping[str, str], maps: Sequence[WeightMap], shapes: Mapping[str, torch.Size]
) -> list[StoredTensor]:
    entries = []
    for each in maps:
        theirs = {
            name: torch.empty(shape, dtype=DTYPES[files.dtype_name(stored_as[name])], device="meta")
            for name in each.theirs
            for shape in [files.shape(stored_as[name])]
        }
        entries += [
            StoredTensor(name, tensor.dtype, tensor.shape) for name, tensor in each.to_ours(theirs, shapes).items()
        ]
    return entries


def _ours(
    files: TensorFolder,
    stored_as: Mapping[str, str],
    maps: Sequence[WeightMap],
    shapes: Mapping[str, torch.Size],
    digests: dict[str, str],
) -> Iterator[tuple[str, Tensor]]:
    for each in maps:
        theirs = {name: files.read(stored_as[name]) for name in each.theirs}
        for name, tensor in each.to_ours(theirs, shapes).items():
            digests[name] = tensor_digest(tensor)
            yield name, tensor


def _stored_as(files: TensorFolder, settings: ModelSettings, wanted: Mapping[str, torch.Size]) -> dict[str, str]:
    """For every tensor that is wanted its name in the files.

    Raises:
        BigtrainError: any is missing or misshapen or of a type that weights cannot have, or there are others.
    """
    family = family_of(settings)
    stored_as: dict[str, str] = {}
    surplus, copies, twice = [], [], {}
    for name in files.names():
        if (known := _known_as(name, family, wanted)) and known not in stored_as:
            stored_as[known] = name
        elif known is None and settings.task_head == "none" and settings.tie_word_embeddings and _is_head(name, family):
            copies.append(name)
        elif known is not None and not {name, stored_as[known]}.isdisjoint(family.renamed):
            twice[name] = stored_as[known]
        elif known is not None or not re.search(f"{family.buffers}|{family.other_heads}", name):
            surplus.append(name)
    problems = {
        "missing": sorted(wanted.keys() - stored_as.keys()),
        "surplus": sorted(surplus),
        "misshapen": [
            f"{stored} {list(files.shape(stored))} instead of {list(wanted[name])}"
            for name, stored in stored_as.items()
            if files.shape(stored) != wanted[name]
        ],
        f"not of a type among {', '.join(DTYPES)}": [
            f"{stored} {files.dtype_name(stored)}"
            for stored in stored_as.values()
            if files.dtype_name(stored) not in DTYPES
        ],
    }
    if not any(problems.values()):
        embedding = stored_as[next(iter(wanted))]
        problems["unlike the embedding, though tied to it"] = [
            name for name in copies if not torch.equal(files.read(name), files.read(embedding))
        ]
        problems["unlike the tensor that they are a copy of"] = [
            name for name, other in twice.items() if not torch.equal(files.read(name), files.read(other))
        ]
    if any(problems.values()):
        raise BigtrainError(
            f"the tensors in {files.folder} are not those of its config.json",
            found="; ".join(f"{len(names)} {what}: {_listed(names)}" for what, names in problems.items() if names),
            wanted=f"the {len(wanted):,} of a {settings.family} model of this shape",
            fix="fetch the folder again, or correct config.json",
        )
    return stored_as


def _known_as(name: str, family: Family, wanted: Mapping[str, torch.Size]) -> str | None:
    for end, today in family.older_ends.items():
        if name.endswith(end):
            name = name.removesuffix(end) + today
    candidates = (name, family.renamed.get(name, name), family.prefix + name)
    return next((candidate for candidate in candidates if candidate in wanted), None)


def _is_head(name: str, family: Family) -> bool:
    return family.renamed.get(name, name) == family.modules[-1].theirs + ".weight"


def read_tokenizer(folder: Path) -> TokenizerContent:
    """The tokenizer of a Hugging Face folder, or of one written by `import`.

    Raises:
        BigtrainError: there is none.
    """
    return TokenizerContent.read(folder / TOKENIZER_FILE)


def _end_of_text(folder: Path, config: Mapping[str, Any], settings: ModelSettings, chosen: str | None) -> str:
    tokenizer = read_tokenizer(folder).library
    if vocabulary_size(tokenizer) > settings.vocab_size:
        raise BigtrainError(
            f"{folder}: the tokenizer has more tokens than the model has embeddings",
            found=vocabulary_size(tokenizer),
            wanted=f"at most {settings.vocab_size}",
            fix="fetch model and tokenizer together",
        )
    if chosen is not None:
        if tokenizer.token_to_id(chosen) is None:
            raise BigtrainError(
                f"{folder / TOKENIZER_FILE} has no token {chosen!r}", fix="give --end-of-text a token that it has"
            )
        return chosen
    ids = config.get("eos_token_id")
    named = [_token(tokenizer, each) for each in (ids if isinstance(ids, list) else [ids]) if each is not None]
    if len(named) != 1 or named[0] is None:
        raise BigtrainError(
            f"{folder}: config.json does not say which one token ends a document",
            found=f"eos_token_id {json.dumps(ids)[:200]}"
            + (f", in the tokenizer {', '.join(map(str, named))}" if named else ""),
            fix="say it: --end-of-text TOKEN",
        )
    return str(named[0])


def _token(tokenizer: Tokenizer, number: Any) -> str | None:
    """The token of an id; None for what is no id of the vocabulary."""
    is_id = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < vocabulary_size(tokenizer)
    return tokenizer.id_to_token(number) if is_id else None


def _is_ours(folder: Path) -> bool:
    try:
        return bool(read_json(folder / MANIFEST)["format"] == FORMAT)
    except (OSError, BigtrainError, KeyError, TypeError):
        return False


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f", and {len(names) - 20:,} more" if len(names) > 20 else "")
