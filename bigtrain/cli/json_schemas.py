"""The JSON schemas of what commands print with `--json`, made from the types that they print."""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from textwrap import dedent
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import DataclassSchema

from bigtrain.cli import results
from bigtrain.config import Settings
from bigtrain.data import Funnel, ScoredDocuments, TrainedClassifier, TrainedNGrams
from bigtrain.estimate import LadderResult, PendingLadder, PlannedRun
from bigtrain.report import Summary
from bigtrain.rundir import DocumentsOfStep, PlanDifference, RunStatus, StepsOfDocument
from bigtrain.trained import (
    CheckpointDifference,
    CommittedCheckpoint,
    CompressedModel,
    Evaluation,
    GeneratedTexts,
    GgufExport,
    HuggingFaceExport,
    ImportedModel,
    KeptTeacher,
    PeftExport,
    PrunedCheckpoints,
    VerifiedCheckpoint,
)
from bigtrain.trials import Profile, Replay, ResumeTrial

RESULTS: Mapping[str, Any] = {
    "plan": PlannedRun,
    "doctor": results.DoctorResult,
    "profile": Profile,
    "ladder": LadderResult | PendingLadder,
    "verify-resume": ResumeTrial,
    "replay": Replay,
    "eval": Evaluation,
    "generate": GeneratedTexts,
    "export": HuggingFaceExport | GgufExport | PeftExport,
    "import": ImportedModel,
    "compress": CompressedModel,
    "keep-outputs": KeptTeacher,
    "report": Summary,
    "runs": list[RunStatus],
    "data build": results.BuiltData,
    "data funnel": dict[str, Funnel],
    "data verify": results.VerifiedData,
    "data where": DocumentsOfStep,
    "data when": StepsOfDocument,
    "data diff": PlanDifference,
    "data card": results.RunDataCard,
    "data index": list[str],
    "data classifier train": TrainedClassifier,
    "data classifier score": ScoredDocuments,
    "data ngram train": TrainedNGrams,
    "data ngram score": ScoredDocuments,
    "checkpoint list": list[CommittedCheckpoint],
    "checkpoint verify": list[VerifiedCheckpoint],
    "checkpoint diff": CheckpointDifference,
    "checkpoint prune": PrunedCheckpoints,
    "config show": Settings,
    "config explain": results.ExplainedSection | results.ExplainedKey,
    "config diff": list[results.KeyDifference],
    "submit slurm": results.SlurmSubmission,
    "submit kubernetes": results.KubernetesSubmission,
}
"""The type of what each command prints with `--json`."""


def json_schema(command: str) -> dict[str, Any]:
    """The JSON schema of what a command prints, a key of `RESULTS`."""
    schema = TypeAdapter(RESULTS[command]).json_schema(schema_generator=_Schemas)
    head = {"$schema": _Schemas.schema_dialect, "title": f"bigtrain {command} --json"}
    return {**head, **{key: value for key, value in schema.items() if key != "title"}}


class _Schemas(GenerateJsonSchema):
    """Dataclasses as `bigtrain.base.to_json` writes them, with the texts below their fields."""

    def dataclass_schema(self, schema: DataclassSchema) -> JsonSchemaValue:
        made = super().dataclass_schema(schema)
        cls = schema["cls"]
        optional = {field.name for field in fields(cls) if field.default is None}
        texts = {name: text for base in cls.__mro__[-2::-1] for name, text in docstrings(base).items()}
        keys = {field.name: list(made["properties"])[number] for number, field in enumerate(fields(cls))}
        for name, key in keys.items():
            described = made["properties"][key]
            described.pop("title", None)
            if described.get("default", "") is None:
                del described["default"]
            if name in optional:
                (kind,) = (kind for kind in described.pop("anyOf") if kind != {"type": "null"})
                described.update(kind)
            if name in texts:
                described["description"] = texts[name]
        made["required"] = [key for name, key in keys.items() if name not in optional]
        made["additionalProperties"] = False
        return made


def docstrings(of: types.ModuleType | type) -> Mapping[str, str]:
    """The text under each constant of a module, or field of a class, on one line."""
    tree: ast.Module | ast.ClassDef = ast.parse(dedent(inspect.getsource(of)))
    if isinstance(of, type):
        tree = next(statement for statement in tree.body if isinstance(statement, ast.ClassDef))
    found = {}
    for statement, below in pairwise(tree.body):
        if (
            isinstance(statement, ast.Assign | ast.AnnAssign)
            and isinstance(target := _target(statement), ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[target.id] = " ".join(below.value.value.split())
    return found


def _target(statement: ast.Assign | ast.AnnAssign) -> ast.expr:
    return statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
