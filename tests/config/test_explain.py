"""Every key can be explained, from the docstrings that define it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.config import Settings, diff, explain, load_settings, schema
from bigtrain.config.keys import all_keys
from bigtrain.config.reference import reference


def test_a_key_is_explained_with_meaning_type_default_and_resume() -> None:
    """An explanation has the meaning, the type, the default, and whether the key may change on resume."""
    assert str(explain("engine.precision")) == (
        "engine.precision\n"
        "  `bf16`: compute in bfloat16 with float32 master weights and accumulation; `fp16`: the same in\n"
        "  float16, with loss scaling; `fp32`: all in float32.\n"
        "\n"
        "  type:      bf16, fp16 or fp32\n"
        "  default:   bf16\n"
        "  on resume: must stay the same"
    )
    assert explain("engine.precision").as_dict() == {
        "key": "engine.precision",
        "meaning": (
            "`bf16`: compute in bfloat16 with float32 master weights and accumulation; `fp16`: the same in float16, "
            "with loss scaling; `fp32`: all in float32."
        ),
        "type": "bf16, fp16 or fp32",
        "required": False,
        "default": "bf16",
        "on_resume": "must stay the same",
        "allowed": ["bf16", "fp16", "fp32"],
    }


def test_a_section_lists_its_keys_and_nothing_lists_the_sections() -> None:
    assert [key.name for key in explain("schedule").keys] == list(
        Settings.model_fields["schedule"].annotation.model_fields  # type: ignore[union-attr]
    )
    assert [key.path for key in explain("").keys] == list(Settings.model_fields)
    assert "zero_stage" in str(explain("engine"))


def test_an_item_of_a_list_is_explained_by_its_index() -> None:
    assert explain("data.sources.0.weight") == explain("data.sources.N.weight")
    assert [key.name for key in explain("data.sources").keys] == [key.name for key in explain("data.sources.0").keys]


@pytest.mark.parametrize("path", all_keys())
def test_every_key_has_a_meaning_and_can_be_explained_in_text_and_json(path: str) -> None:
    explanation = explain(path)
    assert len(explanation.key.meaning) > 5
    assert explanation.key.meaning.split()[0] in str(explanation)
    assert json.loads(json.dumps(explanation.as_dict()))["key"] == path


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("engine.zerostage", "engine.zero_stage"),
        ("learning_rate", "optimizer.learning_rate"),
        ("gradient_accumulation_steps", "train.global_batch_size / (number of processes * train.micro_batch_size)"),
        ("optimzer", "optimizer"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(asked: str, nearest: str) -> None:
    with pytest.raises(BigtrainError) as caught:
        explain(asked)
    assert caught.value.what.startswith(f"unknown key {asked}")
    assert caught.value.wanted == nearest


def test_the_schema_describes_every_key_and_admits_no_other() -> None:
    document = schema()
    sections = [document, *document["$defs"].values()]
    assert all(section["additionalProperties"] is False for section in sections)
    assert all("description" in inner for section in sections for inner in section["properties"].values())
    assert json.loads(json.dumps(document)) == document


def test_the_reference_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs/reference/config.md"
    assert page.read_text() == reference(), "run: python -m bigtrain.config.reference > docs/reference/config.md"


def test_the_reference_page_has_a_row_for_every_leaf() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) == sum(key.kind in ("value", "mapping") for key in all_keys().values())


def test_two_runs_differ_exactly_where_their_settings_do(good: str, write: Callable[[str], Path]) -> None:
    path = write(good)
    left = load_settings(path)
    assert diff(left, left) == []
    right = load_settings(path, ["data.sources.0.weight=0.5", "train.seed=3", "engine.deepspeed.aio.depth=4"])
    assert diff(left, right) == [
        ("data.sources.0.weight", 0.75, 0.5),
        ("train.seed", 0, 3),
        ("engine.deepspeed.aio.depth", None, 4),
    ]
