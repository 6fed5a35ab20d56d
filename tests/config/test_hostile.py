"""A configuration that a stranger wrote is settings or one message, in bounded time and memory."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigtrain.base import BigtrainError
from bigtrain.config import load_settings
from tests.hostile import leaves
from tests.refusals import assert_refused

ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
STRANGE: list[Any] = [
    None, True, -1, 0, 1.5, 2**63, 10**30, -(10**4000), 1e302, float("nan"), float("inf"), "", "yes", "a\0b", "\ud800",
    "../" * 50, "x" * 5000, "\x1b[31m", [], [[]], {}, {"a": {"b": []}}, [{"name": "x"}], "exat",
]  # fmt: skip


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        (ALIASES, "more than 300,000 values"),
        ("engine: " + "{deepspeed: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
        ("x: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("x: " + "9" * 5000, "at most 100 characters"),
        ("x: &x [*x]", "holds itself"),
    ],
    ids=["aliases", "mappings", "lists", "digits", "circle"],
)
def test_what_would_take_all_memory_is_refused(
    good: str, refusal: Callable[..., str], addition: str, message: str
) -> None:
    assert message in refusal(good + addition + "\n")


@pytest.mark.parametrize(
    ("line", "replacement", "message"),
    [
        ("  sequence_length: 128", "  sequence_length: 128\n  dedup: exat", "write dedup: exact"),
        ("run_dir: runs/x", 'run_dir: "runs\\0x"', "NUL"),
    ],
)
def test_a_strange_value_is_named(
    good: str, refusal: Callable[..., str], line: str, replacement: str, message: str
) -> None:
    assert message in refusal(good.replace(line, replacement))


def test_more_layers_than_any_model_has_are_refused(good: str, refusal: Callable[..., str]) -> None:
    """Each is Python objects, which would fill the memory before anything else is checked."""
    answer = refusal(re.sub(r"num_hidden_layers: \d+", "num_hidden_layers: 100000000", good))
    assert "model.num_hidden_layers cannot be 100000000" in answer and "at most 10000" in answer


def test_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    """Nobody may write into it, and a reader would wait for ever."""
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(BigtrainError) as refusal:
        load_settings(tmp_path / "config.yaml")
    assert_refused(refusal, str(tmp_path), found="a pipe", wanted="a regular file")


def test_a_configuration_from_a_command_is_read(good: str) -> None:
    """`bigtrain config show <(command)` reads what a shell calls /dev/fd/63."""
    reader, writer = os.pipe()
    with open(writer, "w") as file:  # noqa: PTH123
        file.write(good)
    assert load_settings(Path(f"/dev/fd/{reader}")).train.steps == 10
    os.close(reader)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(seed=st.randoms(use_true_random=False), number=st.integers(1, 3))
def test_any_value_anywhere_is_settings_or_a_message(
    good: str, write: Callable[[str], Path], seed: random.Random, number: int
) -> None:
    tree = yaml.safe_load(good)
    for _ in range(number):
        *around, last = seed.choice(leaves(tree)[1:])
        holder = tree
        for part in around:
            holder = holder[part]
        holder[last] = seed.choice(STRANGE)
    text = json.dumps(tree)  # JSON is YAML
    try:
        load_settings(write(text))
    except BigtrainError as refusal:
        assert_refused(refusal)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(cut=st.integers(0, 600), inserted=st.binary(max_size=6), removed=st.integers(0, 9))
def test_any_bytes_are_settings_or_a_message(
    good: str, write: Callable[[str], Path], cut: int, inserted: bytes, removed: int
) -> None:
    path = write(good)
    data = good.encode()
    path.write_bytes(data[:cut] + inserted + data[cut + removed :])
    try:
        load_settings(path)
    except BigtrainError as refusal:
        assert_refused(refusal)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(["tracking.name", "run_dir"]), text=st.text(min_size=1, max_size=12))
def test_text_on_the_command_line_arrives_as_typed_or_is_refused(
    good: str, write: Callable[[str], Path], key: str, text: str
) -> None:
    try:
        chosen = load_settings(write(good), [f"{key}={text}"])
    except BigtrainError as refusal:
        assert_refused(refusal, key)
        return
    found = chosen.tracking.name if key == "tracking.name" else str(chosen.run_dir)
    typed = text.strip()
    if typed in ("", "~", "null", "Null", "NULL"):
        assert found in (None, text)
    elif key == "run_dir":
        assert Path(str(found)) in (Path(text), Path(typed), Path(typed[1:-1]), Path(os.path.expanduser(typed)))  # noqa: PTH111 - raises nothing
    else:
        assert found in (text, typed, typed[1:-1])
