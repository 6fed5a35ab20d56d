"""`key=value` sets any leaf, and a wrong one is named as it was typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.config import load_settings
from bigtrain.config.flat import flat


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.steps=20", "train.steps", 20),
        ("run_dir=runs/y", "run_dir", "runs/y"),
        ("data.sources.0.weight=0.3", "data.sources.0.weight", 0.3),
        ("data.sources.1.content=documentation", "data.sources.1.content", "documentation"),
        ("optimizer.betas=[0.8, 0.99]", "optimizer.betas", [0.8, 0.99]),
        ("engine.compile=true", "engine.compile", True),
        ("evaluate.max_sequences=null", "evaluate.max_sequences", None),
        ("checkpoint.every_steps=", "checkpoint.every_steps", None),
        ("tracking.name=a=b", "tracking.name", "a=b"),
        ("run_dir=runs/exp #2", "run_dir", "runs/exp #2"),
        ("tracking.name=&x", "tracking.name", "&x"),
        ("tracking.name=*x", "tracking.name", "*x"),
        ("tracking.name=!x", "tracking.name", "!x"),
        ("tracking.name=no", "tracking.name", "no"),
        ("tracking.name=lr: 1e-4, try 2", "tracking.name", "lr: 1e-4, try 2"),
        ("tracking.name=- x", "tracking.name", "- x"),
        ("tracking.name=@home", "tracking.name", "@home"),
        ("tracking.name=%d\nsecond", "tracking.name", "%d\nsecond"),
        ("tracking.name='a #2'", "tracking.name", "a #2"),
        ("run_dir=runs/#2", "run_dir", "runs/#2"),
        ('tracking.name="10"', "tracking.name", "10"),
        ("data.tokenizer.vocab_size=300", "data.tokenizer.vocab_size", 300),
        ("engine.deepspeed.zero_optimization.overlap=1e-4", "engine.deepspeed.zero_optimization.overlap", 1e-4),
        ("engine.deepspeed={aio: {threads: 2}}", "engine.deepspeed.aio.threads", 2),
    ],
)
def test_an_override_sets_its_leaf_and_nothing_else(
    good: str, write: Callable[[str], Path], override: str, key: str, value: object
) -> None:
    path = write(good)
    assert flat(load_settings(path, [override])) == flat(load_settings(path)) | {key: value}


def test_the_last_override_wins(good: str, write: Callable[[str], Path]) -> None:
    assert load_settings(write(good), ["train.steps=20", "train.steps=30"]).train.steps == 30


def test_an_item_of_a_list_in_the_file_can_be_set(good: str, write: Callable[[str], Path]) -> None:
    path = write(good + "optimizer:\n  betas: [0.8, 0.9]\n")
    assert load_settings(path, ["optimizer.betas.1=0.99"]).optimizer.betas == (0.8, 0.99)


def test_an_override_repairs_a_wrong_value_in_the_file(good: str, write: Callable[[str], Path]) -> None:
    path = write(good.replace("steps: 10", "steps: ten"))
    assert load_settings(path, ["train.steps=20"]).train.steps == 20


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.stpes=20",
            "override train.stpes=20: unknown key train.stpes\n  wanted: train.steps\n  fix:    rename it to steps",
        ),
        (
            "train.lr=20",
            "override train.lr=20: unknown key train.lr\n  wanted: optimizer.learning_rate\n"
            "  fix:    rename it to learning_rate and move it to section optimizer",
        ),
        (
            "optimiser.eps=1",
            "override optimiser.eps=1: unknown key optimiser\n  wanted: optimizer\n  fix:    rename it to optimizer",
        ),
        (
            "train.steps=abc",
            "override train.steps=abc: train.steps cannot be 'abc'\n  found:  'abc', text\n"
            "  wanted: a whole number, at least 1, or null\n"
            "  fix:    change it; see: bigtrain config explain train.steps",
        ),
        (
            "tracking.name=10",
            "override tracking.name=10: tracking.name cannot be 10\n  found:  10, a whole number\n"
            "  wanted: text, or null\n  fix:    write 'tracking.name=\"10\"'",
        ),
        (
            "train.steps",
            "override train.steps: this is not key=value\n  found:  train.steps\n"
            "  wanted: key=value, such as train.steps=20\n  fix:    write key=value",
        ),
        ("=3", "override =3: this is not key=value"),
        ("train..steps=3", "override train..steps=3: this is not key=value"),
        (
            "engine={zero_stage: 2}",
            "override engine={zero_stage: 2}: engine is a section\n  wanted: one key of it\n"
            "  fix:    name the key: engine.KEY=VALUE; see: bigtrain config explain engine",
        ),
        (
            "data.sources.2.weight=1",
            "override data.sources.2.weight=1: data.sources has 2 items, and none is called 2\n  found:  2\n"
            "  wanted: an index from 0 to 1\n  fix:    count from 0",
        ),
        (
            "data.sources.web.weight=1",
            "override data.sources.web.weight=1: data.sources has 2 items, and none is called web",
        ),
        (
            "optimizer.betas.0=0.8",
            "override optimizer.betas.0=0.8: optimizer.betas is not given in the file, so it has no items to change\n"
            "  wanted: the whole list\n  fix:    write optimizer.betas=[..., ...]",
        ),
        (
            "train.steps.x=1",
            "override train.steps.x=1: train.steps is not a section in c.yaml\n  found:  10\n  wanted: a mapping\n"
            "  fix:    correct c.yaml:21",
        ),
        (
            "train.steps=20 #30",
            "override train.steps=20 #30: YAML would not read the value as it was typed: it has a comm",
        ),
        (
            "train.steps=&x",
            "override train.steps=&x: YAML would not read the value as it was typed: it has the anchor &x",
        ),
        (
            "engine.deepspeed={a: *x}",
            "override engine.deepspeed={a: *x}: YAML would not read the value as it was typed",
        ),
        ('tracking.name="a" #2', 'override tracking.name="a" #2: YAML would not read the value as it was typed'),
        ("data.dir=[a", "override data.dir=[a: the value is not YAML\n  found:  [a"),
        ("engine.deepspeed={a: 1, a: 2}", "override engine.deepspeed={a: 1, a: 2}: a is given twice"),
        (
            "train.steps=!!python/name:os.system",
            "override train.steps=!!python/name:os.system: the value cannot be read: the tag",
        ),
    ],
)
def test_a_wrong_override_is_named_as_typed(
    good: str, refusal: Callable[..., str], override: str, message: str
) -> None:
    answer = refusal(good, override)
    assert answer.startswith(message), answer
    assert "things are wrong" not in answer


def test_a_rule_broken_by_an_override_names_the_override_and_the_line(good: str, refusal: Callable[..., str]) -> None:
    assert refusal(good, "train.micro_batch_size=3") == (
        "override train.micro_batch_size=3: train.global_batch_size 8 is not a multiple of train.micro_batch_size 3\n"
        "  fix:    change train.global_batch_size (c.yaml:22) or "
        "train.micro_batch_size (override train.micro_batch_size=3)"
    )


@pytest.mark.parametrize("written", ["near", "{method: near}", "{method: near, bands: 9}"])
def test_a_section_written_as_one_word_can_be_overridden_like_any_other(
    good: str, write: Callable[[str], Path], written: str
) -> None:
    path = write(good.replace("  sequence_length", f"  dedup: {written}\n  sequence_length"))
    dedup = load_settings(path, ["data.dedup.bands=20"]).data.dedup
    assert (dedup.method, dedup.bands) == ("near", 20)
    assert load_settings(path, ["data.dedup=exact"]).data.dedup.method == "exact"


def test_a_section_written_as_one_word_is_reported_with_its_line(good: str, refusal: Callable[..., str]) -> None:
    text = good.replace("  sequence_length", "  dedup: nearly\n  sequence_length")
    assert refusal(text, "data.dedup.bands=20").startswith("c.yaml:19: data.dedup.method cannot be 'nearly'")
    assert refusal(good, "data.dedup=3").startswith("override data.dedup=3: data.dedup is a section")


def test_a_section_that_may_be_absent_can_be_taken_away(good: str, write: Callable[[str], Path]) -> None:
    path = write(good.replace("  sequence_length", "  decontaminate: {paths: [x]}\n  sequence_length"))
    assert load_settings(path).data.decontaminate is not None
    assert load_settings(path, ["data.decontaminate=null"]).data.decontaminate is None
