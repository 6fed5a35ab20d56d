"""From a YAML file and overrides to settings, or to one error that names everything that is wrong.

    file --read_document--> tree and places --apply_overrides--> tree --pydantic--> Settings
                                  \\______________ problems _______________/

A path in the settings stays as it was typed, except for a leading ~. It is relative to the current working directory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigtrain.config.allow_change import problems_of_allow_change
from bigtrain.config.data_settings import TokenizerSettings
from bigtrain.config.document import read_document
from bigtrain.config.overrides import apply_overrides
from bigtrain.config.problems import problems_of, raise_all
from bigtrain.config.settings import Settings

VOCABULARY_MULTIPLE = 64
"""A trained vocabulary is padded to a multiple of this, which makes matrix products faster."""


def load_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read a configuration.

    Args:
        path: a YAML file.
        overrides: `key=value` for any leaf, applied in order; the values are YAML.

    Raises:
        BigtrainError: the file cannot be read, or keys or values in it are wrong. One error names all of them, in the
            order of the file.
    """
    document = read_document(path)
    apply_overrides(document, list(overrides))
    _fill_in_vocab_size(document.tree)
    problems = document.problems
    settings = None
    try:
        # As JSON, pydantic's strict mode takes text for a path and a list for a tuple, and coerces nothing else.
        settings = Settings.model_validate_json(json.dumps(document.tree), strict=True)
        problems = problems + problems_of_allow_change(settings, document)
    except ValidationError as error:
        problems = problems + problems_of(error, document)
    raise_all(problems, document.file)
    assert settings is not None
    return settings


def _fill_in_vocab_size(tree: Any) -> None:
    """Fill in model.vocab_size, where it is missing, from the size of the tokenizer that will be trained."""
    match tree:
        case {"model": {"vocab_size": _}} | {"data": {"tokenizer": {"path": str()}}}:
            return
        case {"model": dict(model), "data": dict(data)}:
            match data.get("tokenizer", {}):
                case {"vocab_size": int(size)}:
                    pass
                case _:
                    size = TokenizerSettings().vocab_size
            model["vocab_size"] = -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
