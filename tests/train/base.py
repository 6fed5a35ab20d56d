"""A base for adapters: a model as `bigtrain import` writes it, and a data folder with its tokenizer."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models

from bigtrain.convert import export_hf, import_hf
from bigtrain.model import build_model
from tests.train.parity import VOCABULARY, Case, settings

END = "<|endoftext|>"


def write_base(case: Case, folder: Path, seed: int = 11) -> Case:
    """The case, on a base in a new folder.

    Args:
        case: with an adapter.
        folder: to make.
        seed: of the base's weights.
    """
    folder.mkdir(parents=True)
    case = replace(case, base=str(folder))
    model = build_model(settings(case).model)
    model.init_weights(seed)
    words = {END: 0, **{f"word{number}": number for number in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="word1"))
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    file = folder / "tokenizer.json"
    export_hf(weights, model.settings, file, folder / "hf", end_of_text=END, dtype=torch.float32)
    import_hf(folder / "hf", folder / "weights", end_of_text=END)
    (folder / "data").mkdir()
    shutil.copyfile(folder / "weights/tokenizer.json", folder / "data/tokenizer.json")
    return case
