"""A document that a command printed, against the JSON schema of the command."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

from bigtrain.cli.json_schemas import json_schema


def check(command: str, document: Any) -> None:
    """Raise jsonschema's ValidationError where a document is not what `bigtrain COMMAND --json` prints."""
    Draft202012Validator(json_schema(command)).validate(document)
