"""Settings written as YAML read back as the same settings, whatever they hold."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base.version import __version__
from bigtrain.config import Settings, dump_settings, load_settings
from bigtrain.config.yaml12 import to_yaml_line

# Text as a configuration may hold it: no surrogates, no control characters, and words that YAML likes to reinterpret.
TRICKY = [
    "no",
    "null",
    "~",
    "1e-4",
    "1_0",
    ".5",
    "0x1f",
    "2024-11-01",
    "1:30",
    "",
    " ",
    "- a",
    "a: b",
    "#",
    "<<",
    "=",
    "é\n\t",
]
text = st.sampled_from(TRICKY) | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
path = text.map(lambda name: f"folder/{name}")
corpus_path = text.filter(lambda name: name and (name == "~" or name[0] != "~"))
"""The home of a user whom the machine does not know is refused, and test_errors.py says how."""
count = st.integers(1, 10**15)


def url(scheme: str) -> st.SearchStrategy[str]:
    return text.map(lambda name: f"{scheme}://bucket//{name}")


positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
unit = st.floats(0, 1)
open_unit = st.floats(0, 1, exclude_max=True)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


keys_of_the_kind = {
    "python_stdlib": {"content": st.sampled_from(["source", "documentation"])},
    "text": {"path": corpus_path},
    "jsonl": {"path": corpus_path, "text_field": text},
    "parquet": {"path": corpus_path, "text_field": text},
    "huggingface": {"path": corpus_path, "text_field": text, "subset": st.none() | text, "split": text},
}

rule = st.sampled_from(
    ["c4", "fix_encoding", {"fineweb": None}, {"language": {"languages": ["en", "de"]}}]
) | st.one_of(
    st.fixed_dictionaries({"gopher_quality": st.fixed_dictionaries({"min_words": count, "max_bullet_lines": unit})}),
    st.fixed_dictionaries(
        {"gopher_repetition": st.fixed_dictionaries({"max_top_ngram_characters": st.just([0, 1, 0.5])})}
    ),
    st.fixed_dictionaries({"classifier": st.fixed_dictionaries({"model": path, "threshold": unit})}),
    st.fixed_dictionaries({"perplexity": st.fixed_dictionaries({"model": path, "max": positive})}),
    st.just({"python": {"function": "own.rules:keep", "hash": "0" * 32}}),
    st.fixed_dictionaries({"pii": st.fixed_dictionaries({"emails": st.booleans(), "email_mask": text})}),
)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """A valid configuration with any value that the tree admits in nearly every leaf."""
    heads, groups, width = draw(st.integers(1, 8)), draw(st.integers(1, 4)), draw(st.integers(1, 8))
    weighted = draw(st.booleans())
    kinds = draw(st.lists(st.sampled_from(list(keys_of_the_kind)), min_size=1, max_size=3))
    sources = [
        {
            "name": f"s{number}",
            "kind": kind,
            "weight": draw(positive) if weighted else None,
            "clean": draw(st.lists(rule, max_size=3)),
            **draw(st.fixed_dictionaries(keys_of_the_kind[kind])),
        }
        for number, kind in enumerate(kinds)
    ]
    length, micro, accumulation = draw(st.integers(1, 64)), draw(st.integers(1, 64)), draw(st.integers(1, 8))
    tokenizer_path, vocab_size = draw(st.none() | path), draw(count)
    steps, in_tokens = draw(st.integers(1, 10**11)), draw(st.booleans())  # as tokens, still at most 2^53
    schedule = draw(st.sampled_from(["constant", "wsd"]))
    decay = draw(st.none() | st.integers(1, steps)) if schedule == "wsd" else None
    return {
        "run_dir": draw(path),
        "model": {
            "hidden_size": draw(count),
            "num_hidden_layers": draw(st.integers(1, 10_000)),
            "num_attention_heads": heads * groups,
            "num_key_value_heads": heads,
            "head_dim": 2 * width,
            "intermediate_size": draw(count),
            "vocab_size": vocab_size,
            "max_position_embeddings": length + draw(st.integers(0, 100)),
            "rope_theta": draw(positive),
            "norm_eps": draw(positive),
            "tie_word_embeddings": draw(st.booleans()),
        },
        "data": {
            "dir": draw(path),
            "remote": draw(st.none() | st.sampled_from(["s3", "gs", "https"]).flatmap(url)),
            "cache_bytes": draw(count),
            "tokenizer": {
                "path": tokenizer_path,
                "vocab_size": draw(count if tokenizer_path else st.integers(1, vocab_size)),
                "end_of_text": draw(text),
            },
            "sources": sources,
            "sequence_length": length,
            "dedup": draw(st.sampled_from(["none", "exact"])),
            "validation": {"fraction": draw(open_unit)},
            "workers": draw(st.none() | count),
        },
        "train": {
            **({"tokens": steps * accumulation * micro * length} if in_tokens else {"steps": steps}),
            "global_batch_size": accumulation * micro,
            "micro_batch_size": micro,
            "seed": draw(st.integers(0, 2**64 - 1)),
            "stop_after": draw(st.none() | st.integers(1, steps)),
        },
        "optimizer": {"learning_rate": draw(positive), "betas": [draw(open_unit), draw(open_unit)]},
        "schedule": {
            "name": schedule,
            "warmup_steps": draw(st.integers(0, steps - (decay or 0))),
            "decay_steps": decay,
            "min_lr_ratio": draw(unit),
        },
        "engine": {
            "zero_stage": draw(st.integers(1, 3)),
            "compile": draw(st.booleans()),
            "deepspeed": draw(st.dictionaries(text, json_value, max_size=3)),
        },
        "checkpoint": {"every_steps": draw(st.none() | count), "every_minutes": draw(st.none() | positive)},
        "tracking": {"project": draw(text), "name": draw(st.none() | text)},
        "evaluate": {"max_sequences": draw(st.none() | count)},
    }


@settings(max_examples=80, deadline=None)
@given(trees())
def test_what_is_dumped_loads_as_the_same_settings(tree: dict[str, Any]) -> None:
    original = Settings.model_validate(tree)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(dump_settings(original), encoding="utf-8")
        assert load_settings(file) == original


@settings(max_examples=50, deadline=None)
@given(text)
def test_text_in_a_dump_is_text_to_a_yaml_1_1_reader_too(name: str) -> None:
    tree = {
        "run_dir": "x",
        "model": dict.fromkeys(
            ["hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "max_position_embeddings"], 8
        )
        | {"num_attention_heads": 1},
        "data": {
            "dir": "x",
            "tokenizer": {"vocab_size": 8},
            "sources": [{"name": "a", "kind": "python_stdlib"}],
            "sequence_length": 1,
        },
        "train": {"steps": 1, "global_batch_size": 1},
        "tracking": {"name": name},
    }
    assert yaml.safe_load(dump_settings(Settings.model_validate(tree)))["tracking"]["name"] == name


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (None, "null"),
        (True, "true"),
        ("null", "'null'"),
        ("a word", "a word"),
        (0.3, "0.3"),
        ([0.9, 0.95], "[0.9, 0.95]"),
        ({}, "{}"),
        ({"a": [1, None]}, "{a: [1, null]}"),
        ("x" * 200 + " y", "x" * 200 + " y"),
    ],
)
def test_a_value_is_shown_in_one_line_as_it_would_be_typed(value: object, line: str) -> None:
    assert to_yaml_line(value) == line
    assert yaml.safe_load(line) == value


def test_the_first_line_names_the_version_and_every_leaf_is_written(good: str, write) -> None:
    settings = load_settings(write(good))
    dumped = dump_settings(settings)
    assert dumped.splitlines()[0] == f"# The effective settings of a run, written by bigtrain {__version__}."
    assert dumped.endswith("\n")
    assert yaml.safe_load(dumped) == settings.model_dump(mode="json")
