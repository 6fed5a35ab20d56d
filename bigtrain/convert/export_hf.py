"""Export to a Hugging Face folder, which transformers loads without network: a decoder by `AutoModelForCausalLM`, an
encoder by `AutoModelForMaskedLM`, both by `AutoModelForSeq2SeqLM`, a model with the head of a task by the class of
that task, such as `AutoModelForSequenceClassification`, the tokenizer by `AutoTokenizer`.

    weights (our names) --weight_maps--> their names and layout --> .safetensors, one tensor at a time
    settings            --config_of-->  config.json; of what has a decoder generation_config.json
    tokenizer.json      -->  as the model was trained with it, with tokenizer_config.json and special_tokens_map.json,
                        and the chat template that lies beside it
    documents           -->  such as README.md, as they are

`transformers` is not needed to write it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bigtrain.base import BigtrainError, __version__, parse_json, read_regular
from bigtrain.config import ModelSettings
from bigtrain.convert.config_json import config_of
from bigtrain.convert.config_keys import named_labels
from bigtrain.convert.out_folder import out_folder, refuse_foreign_folder
from bigtrain.convert.shards import SHARD_BYTES, StoredTensor, write_safetensors
from bigtrain.convert.weights import FOR_TRAINING_ONLY, WeightMap, our_shapes, their_shapes, weight_maps
from bigtrain.data import CHAT_TEMPLATE, BeginOfText, TokenizerContent, read_chat_template

_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
"""Names of padding tokens."""
_MARK = "bigtrain_version"
"""The key in config.json by which a folder is known as one of ours, and may be replaced."""
_NAMES = re.compile(
    r"(model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|(config|generation_config|tokenizer)\.json"
    r"|(special_tokens_map|tokenizer_config)\.json|README\.md|chat_template\.jinja|data-card\.(md|json))"
)
"""The files of an export. A folder with others is not replaced."""


def export_hf(
    weights: Mapping[str, Tensor],
    settings: ModelSettings,
    tokenizer_file: Path,
    out: Path,
    *,
    end_of_text: str,
    begin_of_text: BeginOfText | None = None,
    mask_token: str | None = None,
    decoder_start: str | None = None,
    label_names: Sequence[str] | None = None,
    separator: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
    documents: Mapping[str, str] = MappingProxyType({}),
    check: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write the folder under a temporary name, then move it to `out` in one step.

    Args:
        weights: whole parameters by the names of `Transformer.named_parameters()`. Each is asked for once, and no more
            are held than one tensor there is made of.
        settings: the model's shape.
        tokenizer_file: a `tokenizer.json`.
        out: the folder to make. An earlier export there is replaced.
        end_of_text: the token that ends a document.
        begin_of_text: what documents begin with. Default: what the tokenizer puts before a text.
        mask_token: the token that stood for hidden ones in the training of an encoder.
        decoder_start: the token that a document of an encoder-decoder's decoder starts with. Default: `end_of_text`.
        label_names: of the classes of a model with a task_head, in their order. Default: LABEL_0, LABEL_1, ...
        separator: the token between the two texts of a document. Default: texts are documents of their own.
        dtype: of the weights written; rounded to it from what `weights` has.
        shard_bytes: limit on one weights file.
        documents: texts to lay beside the model, by the names of their files.
        check: called with the whole folder before it becomes `out`; where it raises, nothing is left of it.

    Raises:
        BigtrainError: `out` holds something else, a weight is missing, unknown or misshapen, the tokenizer does not
            know `end_of_text`, `decoder_start` or `separator`, or has no padding token where the family counts
            positions from it, the family cannot express such a model, or there is not one label name for each class.
    """
    refuse_foreign_folder(out, _is_ours, _NAMES, "export")
    config = config_of(settings) | _labels(settings, label_names)
    shapes = our_shapes(settings)
    _check_names(weights, shapes)
    maps = weight_maps(settings, shapes)
    tokenizer = TokenizerContent.read(tokenizer_file)
    end_of_text_id = _token_id(tokenizer, end_of_text)
    decoder_start_id = end_of_text_id if decoder_start is None else _token_id(tokenizer, decoder_start)
    begin = begin_of_text or BeginOfText(tokenizer.around.begin, before_prompts=True)
    bos_token_id = begin.ids[0] if begin.ids else None
    if (found := padding_obstacle(settings, tokenizer, {end_of_text_id, *begin.ids})) is not None:
        raise BigtrainError(
            f"transformers would count the positions of this {settings.family} model in another way",
            found=f"{found}, in {tokenizer.where}",
            wanted=f"a padding token, marked as special, with the id {settings.position_offset - 1}",
            fix="train with such a tokenizer, or as family bert, whose positions do not depend on tokens",
        )
    classifies = settings.task_head != "none"
    read_whole = classifies or settings.architecture == "encoder_decoder"
    as_trained = tokenizer.as_trained(
        end_of_text,
        begin,
        read_whole=read_whole,
        separator=None if separator is None else _token_id(tokenizer, separator),
        second_type=int(settings.type_vocab_size > 1),
    )
    named = {"eos_token": end_of_text} | ({"bos_token": tokenizer.texts(begin.ids)[0]} if begin.ids else {})
    if settings.architecture == "encoder":
        named |= _roles_in_an_encoder(named, tokenizer, mask_token)
    if separator is not None:
        named["sep_token"] = separator
    entries = [StoredTensor(name, dtype, shape) for name, shape in their_shapes(maps, shapes).items()]
    with out_folder(out) as partial:
        write_safetensors(entries, _theirs(weights, maps, shapes, dtype), partial, shard_bytes)
        tokens = _about_tokens(bos_token_id, end_of_text_id)
        tokens_of_decoder = {}
        if settings.architecture == "encoder_decoder":
            tokens_of_decoder["decoder_start_token_id"] = decoder_start_id
            if decoder_start_id != end_of_text_id:  # T5 pads with it; were it end_of_text, see `_about_tokens`
                tokens_of_decoder["pad_token_id"] = decoder_start_id
        tokens |= tokens_of_decoder
        if classifies and settings.architecture != "encoder" and tokens["pad_token_id"] is None:
            tokens["pad_token_id"] = _padding_of_texts(settings, tokenizer, end_of_text_id)
        _write_json(partial / "config.json", config | tokens | _padding(config) | _about_files(dtype))
        about_begin = {} if bos_token_id is None else {"bos_token_id": bos_token_id}
        if settings.architecture != "encoder" and not classifies:
            padded = {"eos_token_id": end_of_text_id, "pad_token_id": end_of_text_id}
            _write_json(partial / "generation_config.json", {**about_begin, **padded, **tokens_of_decoder})
        if as_trained.content == tokenizer.content:
            shutil.copyfile(tokenizer_file, partial / "tokenizer.json")
        else:
            (partial / "tokenizer.json").write_bytes(as_trained.to_bytes())
        _write_json(partial / "special_tokens_map.json", named)
        template = read_chat_template(tokenizer_file.parent)
        if template is not None:
            (partial / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        _write_json(
            partial / "tokenizer_config.json",
            {
                **named,
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": settings.max_position_embeddings,
                "clean_up_tokenization_spaces": False,
                **({"model_input_names": _inputs(settings)} if classifies else {}),
            },
        )
        for name, text in documents.items():
            (partial / name).write_text(text, encoding="utf-8")
        check(partial)


def _roles_in_an_encoder(
    named: Mapping[str, str], tokenizer: TokenizerContent, mask_token: str | None
) -> dict[str, str]:
    """What transformers calls the tokens of an encoder's texts, for its fill-mask pipeline and classifiers."""
    special = tokenizer.special_tokens.values()
    pads = [token for token in _PADS if token in special]
    roles = {"sep_token": named["eos_token"], "pad_token": (*pads, named["eos_token"])[0]}
    roles |= {"cls_token": named["bos_token"]} if "bos_token" in named else {}
    return roles | ({} if mask_token is None else {"mask_token": mask_token})


def _padding_of_texts(settings: ModelSettings, tokenizer: TokenizerContent, end_of_text_id: int) -> int | None:
    """The padding token of a decoder that classifies texts: transformers takes the last token before it.

    It may not be the token that ends a text, which is the one to take. An encoder-decoder is asked for one in any case,
    and takes the token that ends a text. Without one, transformers classifies one text at a time.
    """
    own = [number for number, token in tokenizer.special_tokens.items() if token in _PADS]
    of_both = settings.architecture == "encoder_decoder"
    return own[0] if own else end_of_text_id if of_both else None


def _inputs(settings: ModelSettings) -> list[str]:
    """What the tokenizer gives the model: the types of tokens only where it has several."""
    types = ["token_type_ids"] if settings.type_vocab_size > 1 else []
    return ["input_ids", *types, "attention_mask"]


def _labels(settings: ModelSettings, names: Sequence[str] | None) -> dict[str, Any]:
    """What config.json says about the names of classes, where they are given."""
    if names is None:
        return {}
    if len(names) != settings.num_labels or len(set(names)) != len(names):
        raise BigtrainError(
            "the names of the classes are not one for each",
            found=f"{len(names)}: {', '.join(names)[:200]}",
            wanted=f"{settings.num_labels} different ones, as model.num_labels says",
            fix="correct the names in the manifest of the data, or model.num_labels",
        )
    return named_labels(names)


def padding_obstacle(settings: ModelSettings, tokenizer: TokenizerContent, used: Collection[int]) -> str | None:
    """What of a tokenizer keeps a model whose positions have an offset from being exported; None where nothing does.

    transformers gives no position to the token with the id before the offset, and does not count it for the others.

    Args:
        settings: the model's shape.
        tokenizer: that it is trained with.
        used: ids of the tokens around documents.
    """
    padding = settings.position_offset - 1
    token = None if padding < 0 else tokenizer.library.id_to_token(padding)
    if token is None:
        return None
    added = tokenizer.library.get_added_tokens_decoder().get(padding)
    if added is not None and added.special and padding not in used:
        return None
    return f"{token!r}, the token with the id position_offset - 1 = {padding}, is one of texts"


def _theirs(
    weights: Mapping[str, Tensor], maps: Sequence[WeightMap], shapes: Mapping[str, torch.Size], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    for each in maps:
        ours = {}
        for name in each.ours:
            ours[name] = weights[name].detach().to("cpu", dtype)
            _check_shape(name, ours[name], shapes[name])
        yield from ((name, tensor.to(dtype)) for name, tensor in each.to_theirs(ours).items())


def _check_names(weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    given = {name for name in weights if not name.startswith(FOR_TRAINING_ONLY)}
    if missing := sorted(shapes.keys() - given):
        raise BigtrainError(
            f"{len(missing)} of {len(shapes)} weights are missing",
            found=", ".join(missing[:10]) + (", ..." if len(missing) > 10 else ""),
            fix="export from a complete checkpoint (`bigtrain checkpoint verify RUN`)",
        )
    for name in sorted(given - shapes.keys()):
        _check_shape(name, weights[name], None)


def _check_shape(name: str, weight: Tensor, wanted: torch.Size | None) -> None:
    if weight.shape != wanted:
        raise BigtrainError(
            f"weight {name!r} does not belong to a model of these settings",
            found=tuple(weight.shape),
            wanted="no such weight" if wanted is None else tuple(wanted),
            fix="export with the settings that the checkpoint was trained with",
        )


def _about_tokens(bos_token_id: int | None, end_of_text_id: int) -> dict[str, Any]:
    return {
        "bos_token_id": bos_token_id,
        "eos_token_id": end_of_text_id,
        "pad_token_id": None,  # were it end_of_text, transformers would cut that embedding off from training
    }


def _padding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The padding token of a family whose positions depend on it."""
    return {name: config[name] for name in ("pad_token_id",) if name in config}


def _about_files(dtype: torch.dtype) -> dict[str, Any]:
    dtype_name = str(dtype).removeprefix("torch.")
    # torch_dtype: its name before transformers 5, which many tools still read
    return {"dtype": dtype_name, "torch_dtype": dtype_name, _MARK: __version__}


def _token_id(tokenizer: TokenizerContent, token: str) -> int:
    found = tokenizer.library.token_to_id(token)
    if found is None:
        raise BigtrainError(
            f"the tokenizer has no token {token!r}",
            found=tokenizer.where,
            fix="set data.tokenizer.end_of_text, or what a decoder starts with, to a token that it has",
        )
    return int(found)


def _is_ours(folder: Path) -> bool:
    try:
        return _MARK in parse_json(read_regular(folder / "config.json"), folder / "config.json")
    except (FileNotFoundError, BigtrainError, TypeError):
        return False


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
