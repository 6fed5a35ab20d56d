"""Whatever is wrong with a configuration is named with its line, both values and the fix."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.config import load_settings
from bigtrain.config.keys import find
from bigtrain.config.suggest import OTHER_TOOLS


@pytest.fixture
def refusal_of_line(good: str, refusal: Callable[..., str]) -> Callable[[str, str], str]:
    """The refusal of the good configuration with one line replaced; the message must name the last new line."""

    def replace_line(line: str, replacement: str) -> str:
        before, found, after = good.partition(line + "\n")
        assert found
        number = before.count("\n") + len(replacement.splitlines())
        answer = refusal(before + replacement + "\n" + after)
        place, _, message = answer.partition(": ")
        assert place == f"c.yaml:{number}", answer
        return message

    return replace_line


@pytest.mark.parametrize(
    ("line", "replacement", "message"),
    [
        (
            "run_dir: runs/x",
            "run_dri: runs/x",
            "unknown key run_dri\n  wanted: run_dir\n  fix:    rename it to run_dir",
        ),
        (
            "  vocab_size: 8192",
            "  vocab_sizes: 8192",
            "unknown key model.vocab_sizes\n  wanted: model.vocab_size\n  fix:    rename it to vocab_size",
        ),
        (
            "      weight: 0.25",
            "      wieght: 0.25",
            "unknown key data.sources.1.wieght\n  wanted: data.sources.1.weight\n  fix:    rename it to weight",
        ),
        (
            "  sequence_length: 128",
            "  sequence_length: 128\n  tokenizer:\n    vocabsize: 300",
            "unknown key data.tokenizer.vocabsize\n  wanted: data.tokenizer.vocab_size\n"
            "  fix:    rename it to vocab_size",
        ),
        (
            "  sequence_length: 128",
            "  sequence_length: 128\n  phases:\n    - from_tokens: 9\n      weight: {web: 1}",
            "unknown key data.phases.0.weight\n  wanted: data.phases.0.weights\n  fix:    rename it to weights",
        ),
    ],
)
def test_a_misspelt_key_is_answered_with_the_right_one(
    refusal_of_line: Callable[[str, str], str], line: str, replacement: str, message: str
) -> None:
    assert refusal_of_line(line, replacement) == message


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "learning_rate: 1e-3",
            "unknown key train.learning_rate\n  wanted: optimizer.learning_rate\n"
            "  fix:    move it to section optimizer",
        ),
        (
            "learnin_rate: 1e-3",
            "unknown key train.learnin_rate\n  wanted: optimizer.learning_rate\n"
            "  fix:    rename it to learning_rate and move it to section optimizer",
        ),
        ("run_dir: x", "unknown key train.run_dir\n  wanted: run_dir\n  fix:    move it to the top level"),
        (
            "vocab_size: 3",
            "unknown key train.vocab_size\n  wanted: model.vocab_size or data.tokenizer.vocab_size\n"
            "  fix:    move it to section model",
        ),
    ],
)
def test_a_key_of_another_section_is_answered_with_its_full_path(
    refusal_of_line: Callable[[str, str], str], key: str, message: str
) -> None:
    assert refusal_of_line("  steps: 10", f"  steps: 10\n  {key}") == message


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("max_steps: 10", "unknown key train.max_steps\n  wanted: train.steps\n  fix:    rename it to steps"),
        (
            "per_device_train_batch_size: 10",
            "unknown key train.per_device_train_batch_size\n  wanted: train.micro_batch_size\n"
            "  fix:    rename it to micro_batch_size",
        ),
        (
            "min_lr: 1e-5",
            "unknown key train.min_lr\n  wanted: schedule.min_lr_ratio (given as a share of the peak)\n"
            "  fix:    rename it to min_lr_ratio and move it to section schedule",
        ),
        (
            "gradient_accumulation_steps: 4",
            "unknown key train.gradient_accumulation_steps: the number of gradient accumulation steps is derived, "
            "never typed\n  wanted: train.global_batch_size / (number of processes * train.micro_batch_size)\n"
            "  fix:    remove it; set train.global_batch_size and train.micro_batch_size",
        ),
    ],
)
def test_a_name_of_another_tool_is_answered_with_ours(
    refusal_of_line: Callable[[str, str], str], key: str, message: str
) -> None:
    assert refusal_of_line("  steps: 10", f"  steps: 10\n  {key}") == message


@pytest.mark.parametrize("name", OTHER_TOOLS)
def test_every_name_of_another_tool_leads_to_a_key_that_exists(name: str) -> None:
    """Every name of another tool leads to a key that exists, and is not a key itself."""
    target, _ = OTHER_TOOLS[name]
    assert find(target) is not None
    assert find(f"{target.rpartition('.')[0]}.{name}") is None


def test_a_key_like_no_other_is_answered_with_all_keys_of_its_section(
    refusal_of_line: Callable[[str, str], str],
) -> None:
    assert refusal_of_line("  steps: 10", "  steps: 10\n  xqzw: 4") == (
        "unknown key train.xqzw\n"
        "  wanted: one of steps, tokens, global_batch_size, batch_size_warmup, micro_batch_size, seed, stop_after\n"
        "  fix:    remove it, or see: bigtrain config explain train"
    )


def test_a_dotted_key_in_a_file_is_answered_with_how_to_nest_it(refusal_of_line: Callable[[str, str], str]) -> None:
    answer = refusal_of_line("run_dir: runs/x", "run_dir: runs/x\ntrain.seed: 1")
    assert answer.startswith("unknown key train.seed\n")
    assert answer.endswith("put `seed:` under `train:`")


WHOLE = "a whole number, at least 1"


@pytest.mark.parametrize(
    ("line", "replacement", "message"),
    [
        (
            "  steps: 10",
            '  steps: "10"',
            f"train.steps cannot be '10'\n  found:  '10', text\n  wanted: {WHOLE}, or null\n"
            "  fix:    write steps: 10, without quotes",
        ),
        (
            "  steps: 10",
            "  steps: 1e3",
            f"train.steps cannot be 1000.0\n  found:  1000.0, a number\n  wanted: {WHOLE}, or null\n"
            "  fix:    write steps: 1_000",
        ),
        (
            "  steps: 10",
            "  steps: 10\n  micro_batch_size: true",
            f"train.micro_batch_size cannot be true\n  found:  true, a boolean\n  wanted: {WHOLE}\n"
            "  fix:    change it; see: bigtrain config explain train.micro_batch_size",
        ),
        (
            "  vocab_size: 8192",
            "  vocab_size: -3",
            f"model.vocab_size cannot be -3\n  found:  -3, a whole number\n  wanted: {WHOLE}\n"
            "  fix:    change it; see: bigtrain config explain model.vocab_size",
        ),
        (
            "  vocab_size: 8192",
            "  vocab_size: [1, 2]",
            f"model.vocab_size cannot be [1, 2]\n  found:  [1, 2], a list of 2\n  wanted: {WHOLE}\n"
            "  fix:    change it; see: bigtrain config explain model.vocab_size",
        ),
        (
            "  vocab_size: 8192",
            "  vocab_size: {a: 1}",
            f"model.vocab_size cannot be {{a: ...}}\n  found:  {{a: ...}}, a mapping\n  wanted: {WHOLE}\n"
            "  fix:    change it; see: bigtrain config explain model.vocab_size",
        ),
        (
            "  vocab_size: 8192",
            "  vocab_size:",
            f"model.vocab_size cannot be null\n  found:  null\n  wanted: {WHOLE}\n"
            "  fix:    leave it out to take the default",
        ),
        (
            "  steps: 10",
            "  steps: 10\n  seed: null",
            "train.seed cannot be null\n  found:  null\n  wanted: a whole number, at least 0\n"
            "  fix:    leave it out to take the default, 0",
        ),
        (
            "run_dir: runs/x",
            "run_dir: 7",
            'run_dir cannot be 7\n  found:  7, a whole number\n  wanted: a path\n  fix:    write run_dir: "7"',
        ),
        (
            "      kind: text",
            "      kind: txt",
            "data.sources.0.kind cannot be 'txt'\n  found:  'txt', text\n"
            "  wanted: python_stdlib, text, jsonl, parquet, huggingface, megatron, gettext, csv, text_lines, imdb, "
            "glue, super_glue, conll, squad, chat or warc\n"
            "  fix:    write kind: text",
        ),
        (
            "      weight: 0.75",
            "      weight: -1.0",
            "data.sources.0.weight cannot be -1.0\n  found:  -1.0, a number\n  wanted: a number at least 0, or null\n"
            "  fix:    change it; see: bigtrain config explain data.sources.0.weight",
        ),
        (
            "      weight: 0.75",
            "      weight: .inf",
            "data.sources.0.weight cannot be inf\n  found:  inf, a number\n  wanted: a number at least 0, or null\n"
            "  fix:    change it; see: bigtrain config explain data.sources.0.weight",
        ),
        (
            "  global_batch_size: 8",
            "  global_batch_size: 8\noptimizer:\n  betas: [0.9]",
            "optimizer.betas cannot be [0.9]\n  found:  [0.9], a list of 1\n"
            "  wanted: a list of 2, each a number at least 0 and below 1\n"
            "  fix:    change it; see: bigtrain config explain optimizer.betas",
        ),
        (
            "  global_batch_size: 8",
            "  global_batch_size: 8\nengine:\n  compile: yes",
            "engine.compile cannot be 'yes'\n  found:  'yes', text\n  wanted: true or false\n"
            "  fix:    write compile: true",
        ),
        (
            "  global_batch_size: 8",
            "  global_batch_size: 8\nengine:\n  zero_stage: true",
            "engine.zero_stage cannot be true\n  found:  true, a boolean\n"
            "  wanted: a whole number, at least 0 and at most 3\n"
            "  fix:    change it; see: bigtrain config explain engine.zero_stage",
        ),
        (
            "  global_batch_size: 8",
            "  global_batch_size: 8\ntracking: 4",
            "tracking cannot be 4\n  found:  4, a whole number\n  wanted: a section\n"
            "  fix:    change it; see: bigtrain config explain tracking",
        ),
    ],
)
def test_a_wrong_value_is_reported_with_what_to_write_instead(
    refusal_of_line: Callable[[str, str], str], line: str, replacement: str, message: str
) -> None:
    """The error of a wrong value has the found value, the wanted one, and what to write."""
    assert refusal_of_line(line, replacement) == message


def test_a_missing_key_is_reported_at_its_section(good: str, refusal: Callable[..., str]) -> None:
    assert refusal(good.replace("  hidden_size: 64\n", "")) == (
        "c.yaml:2: model.hidden_size is missing\n"
        "  wanted: a whole number, at least 1: Width of the residual stream.\n"
        "  fix:    add `hidden_size:` to section model"
    )
    assert refusal(good.replace("    - name: web\n      kind: text\n", "    - kind: text\n")).startswith(
        "c.yaml:12: data.sources.0.name is missing\n"
    )
    assert refusal(good.replace("run_dir: runs/x", "engine: {}")).endswith("fix:    add `run_dir:` to the top level")


def test_a_misspelt_required_key_is_one_problem_not_two(good: str, refusal: Callable[..., str]) -> None:
    assert refusal(good.replace("hidden_size", "hiden_size")) == (
        "c.yaml:3: unknown key model.hiden_size\n  wanted: model.hidden_size\n  fix:    rename it to hidden_size"
    )


def test_a_broken_rule_of_a_section_names_its_line_and_its_keys(good: str, refusal: Callable[..., str]) -> None:
    """The error of a broken rule names the line of the section and where each key was given."""
    assert refusal(good.replace("num_attention_heads: 4", "num_attention_heads: 3")) == (
        "c.yaml:2: model: hidden_size 64 is not a multiple of num_attention_heads 3; "
        "change one of them or set head_dim\n"
        "  fix:    change model.hidden_size (c.yaml:3) or model.num_attention_heads (c.yaml:5) or "
        "model.head_dim (not given)"
    )
    assert refusal(good.replace("      path: web.txt\n", "")).startswith(
        "c.yaml:12: data.sources.0: source 'web' of kind 'text' needs a path"
    )
    assert refusal(good.replace("  steps: 10\n", "  steps: 10\n  tokens: 10\n")) == (
        "c.yaml:20: train: give exactly one of train.steps and train.tokens\n"
        "  fix:    change train.steps (c.yaml:21) or train.tokens (c.yaml:22)"
    )


def test_a_broken_rule_inside_an_override_names_the_override(good: str, refusal: Callable[..., str]) -> None:
    override = "data.skip=[{steps: [9, 8], reason: x}]"
    assert refusal(good, override) == (
        f"override {override}: data.skip.0: steps [9, 8]: the first is after the last\n"
        f"  fix:    change data.skip.0.steps (override {override})"
    )


def test_a_broken_rule_names_items_of_lists_by_where_they_were_given(good: str, refusal: Callable[..., str]) -> None:
    override = "train.batch_size_warmup=[{steps: 3, global_batch_size: 3}]"
    assert refusal(good, "train.micro_batch_size=2", override).endswith(
        f"fix:    change train.batch_size_warmup.0.global_batch_size (override {override}) or "
        "train.micro_batch_size (override train.micro_batch_size=2)"
    )


def test_a_missing_space_after_a_colon_is_reported(good: str, refusal: Callable[..., str]) -> None:
    answer = refusal(good, "train.batch_size_warmup=[{steps:3, global_batch_size: 4}]")
    assert "wanted: steps: 3\n  fix:    put a space after the colon" in answer


@pytest.mark.parametrize("url", ["built/web", "/mnt/web", "s3:///web", "file://"])
def test_remote_data_at_something_that_is_no_url_are_refused(good: str, refusal: Callable[..., str], url: str) -> None:
    assert f"{url!r} is no URL such as s3://bucket/folder" in refusal(good, f"data.remote={url}")


def test_a_rule_of_a_free_mapping_takes_no_word_of_its_message_for_a_key(
    good: str, refusal: Callable[..., str]
) -> None:
    override = "data.phases=[{from_tokens: 9, weights: {web: 0}}]"
    assert refusal(good, override) == (
        f"override {override}: data.phases.0.weights: every weight is 0; give at least one source a weight above 0\n"
        "  fix:    see: bigtrain config explain data.phases.0.weights"
    )


def test_a_broken_rule_between_sections_names_both_keys_values_and_lines(
    good: str, refusal: Callable[..., str]
) -> None:
    assert refusal(good.replace("sequence_length: 128", "sequence_length: 256")) == (
        "c.yaml:19: data.sequence_length 256 is longer than model.max_position_embeddings 128\n"
        "  fix:    change data.sequence_length (c.yaml:19) or model.max_position_embeddings (c.yaml:8)"
    )


def test_samples_of_an_encoder_are_refused(good: str, refusal: Callable[..., str]) -> None:
    assert "evaluate.samples 2 is for model.architecture decoder, recurrent or" in refusal(
        good, "model.architecture=encoder", "evaluate.samples=2"
    )


@pytest.mark.parametrize(
    ("line", "replacement", "message"),
    [
        (
            "      path: web.txt",
            "      path: web.txt\n      split: test",
            "c.yaml:12: data.sources.0: source 'web' of kind 'text' has no split, found 'test'; "
            "remove it: split is for huggingface only\n"
            "  fix:    change data.sources.0.kind (c.yaml:13) or data.sources.0.split (c.yaml:15)",
        ),
        (
            "      path: web.txt",
            "      path: web.txt\n      text_field: content",
            "c.yaml:12: data.sources.0: source 'web' of kind 'text' has no text_field, found 'content'; "
            "remove it: text_field is for jsonl, parquet, huggingface, csv only\n"
            "  fix:    change data.sources.0.kind (c.yaml:13) or data.sources.0.text_field (c.yaml:15)",
        ),
        (
            "      path: web.txt",
            "      path: web.txt\n      content: documentation",
            "c.yaml:12: data.sources.0: source 'web' of kind 'text' has no content, found 'documentation'; "
            "remove it: content is for python_stdlib only\n"
            "  fix:    change data.sources.0.kind (c.yaml:13) or data.sources.0.content (c.yaml:15)",
        ),
        (
            "      kind: python_stdlib",
            "      kind: python_stdlib\n      path: lib",
            "c.yaml:16: data.sources.1: source 'code' of kind 'python_stdlib' has no path, found 'lib'; "
            "remove it: path is for text, jsonl, parquet, huggingface, gettext, text_lines, warc, csv, "
            "imdb, glue, super_glue, conll, chat, squad, megatron only\n"
            "  fix:    change data.sources.1.kind (c.yaml:17) or data.sources.1.path (c.yaml:18)",
        ),
    ],
)
def test_a_key_of_another_kind_of_source_is_refused(
    good: str, refusal: Callable[..., str], line: str, replacement: str, message: str
) -> None:
    """A key of another kind of source is refused with its value and the kinds that have it."""
    assert refusal(good.replace(line, replacement)) == message


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_decay_steps_are_refused_for_a_schedule_without_them(good: str, refusal: Callable[..., str], name: str) -> None:
    assert refusal(good + f"schedule:\n  name: {name}\n  decay_steps: 5\n") == (
        f"c.yaml:23: schedule: decay_steps 5 is for name wsd, found name {name}; remove it or write name: wsd\n"
        "  fix:    change schedule.decay_steps (c.yaml:25) or schedule.name (c.yaml:24)"
    )


def test_the_default_schedule_has_no_decay_steps_either(good: str, refusal: Callable[..., str]) -> None:
    assert refusal(good, "schedule.decay_steps=5").endswith(
        "change schedule.decay_steps (override schedule.decay_steps=5) or schedule.name (not given, so 'cosine')"
    )


def test_warmup_and_decay_must_fit_into_the_run(good: str, refusal: Callable[..., str]) -> None:
    assert refusal(good + "schedule:\n  warmup_steps: 11\n") == (
        "c.yaml:24: schedule.warmup_steps 11 is more than train.steps 10\n"
        "  fix:    change schedule.warmup_steps (c.yaml:24) or train.steps (c.yaml:21)"
    )
    schedule = "schedule:\n  name: wsd\n  warmup_steps: 6\n  decay_steps: 5\n"
    assert refusal(good + schedule) == (
        "c.yaml:26: schedule.warmup_steps 6 + schedule.decay_steps 5 is more than train.steps 10\n"
        "  fix:    change schedule.warmup_steps (c.yaml:25) or schedule.decay_steps (c.yaml:26) or "
        "train.steps (c.yaml:21)"
    )
    assert refusal(good.replace("  steps: 10", "  tokens: 10_000") + schedule) == (
        "c.yaml:26: schedule.warmup_steps 6 + schedule.decay_steps 5 is more than the 10 steps of "
        "train.tokens 10000\n"
        "  fix:    change schedule.warmup_steps (c.yaml:25) or schedule.decay_steps (c.yaml:26) or "
        "train.tokens (c.yaml:21)"
    )


def test_a_run_cannot_stop_after_its_end(good: str, refusal: Callable[..., str]) -> None:
    assert refusal(good, "train.stop_after=11") == (
        "override train.stop_after=11: train.stop_after 11 is more than train.steps 10\n"
        "  fix:    change train.stop_after (override train.stop_after=11) or train.steps (c.yaml:21)"
    )


def test_a_trained_vocabulary_larger_than_the_embedding_is_refused(good: str, refusal: Callable[..., str]) -> None:
    """It is refused whether its size was typed or is the default."""
    small = good.replace("vocab_size: 8192", "vocab_size: 512")
    assert refusal(small) == (
        "c.yaml:7: data.tokenizer.vocab_size 8192 is larger than model.vocab_size 512: "
        "the embedding would have no row for the last tokens; set data.tokenizer.vocab_size to 512 or less\n"
        "  fix:    change data.tokenizer.vocab_size (not given, so 8192) or model.vocab_size (c.yaml:7)"
    )
    typed = small.replace("  sequence_length", "  tokenizer:\n    vocab_size: 513\n  sequence_length")
    assert refusal(typed).startswith("c.yaml:20: data.tokenizer.vocab_size 513 is larger than model.vocab_size 512: ")
    assert refusal(typed).endswith(
        "fix:    change data.tokenizer.vocab_size (c.yaml:20) or model.vocab_size (c.yaml:7)"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule.name=wsd", "schedule.warmup_steps=6", "schedule.decay_steps=4"],
        ["schedule.warmup_steps=10"],
        ["train.stop_after=10"],
        ["data.tokenizer.vocab_size=8192"],
        ["data.tokenizer.path=tokenizer.json", "model.vocab_size=512"],
        ["data.sources.0.split=train"],
        ["data.remote=file:///mnt/web"],
    ],
)
def test_what_just_fits_is_taken(good: str, write: Callable[[str], Path], overrides: list[str]) -> None:
    load_settings(write(good), overrides)


def test_a_home_directory_that_nobody_has_is_refused(good: str, refusal: Callable[..., str]) -> None:
    assert refusal(good.replace("runs/x", "~nobody-of-this-name/runs")) == (
        "c.yaml:1: run_dir: the home directory that ~nobody-of-this-name stands for is unknown; write it out\n"
        "  fix:    see: bigtrain config explain run_dir"
    )


def test_an_error_stays_whole_between_processes() -> None:
    error = BigtrainError("what", found=1, wanted=2, fix="fix").on_all_ranks()
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.shared) == ("what\n  found:  1\n  wanted: 2\n  fix:    fix", True)
    assert not BigtrainError("what").shared


def test_all_problems_are_in_one_error_in_the_order_of_the_file(good: str, refusal: Callable[..., str]) -> None:
    """One error has all problems in the order of the file, and those of overrides last."""
    text = (
        good.replace("  steps: 10", "  stepz: 10")
        .replace("hidden_size: 64", 'hidden_size: "64"')
        .replace("  dir: datasets/x", "  dir: datasets/x\n  dir: datasets/y")
        .replace("  global_batch_size: 8\n", "")
    )
    answer = refusal(text, "optimizer.lr=1e-3", "engine.compile=maybe")
    header, *problems = answer.split("\n\n")
    assert header == "6 things are wrong with c.yaml"
    assert [problem.splitlines()[0] for problem in problems] == [
        "c.yaml:3: model.hidden_size cannot be '64'",
        "c.yaml:11: data.dir is given twice",
        "c.yaml:21: train.global_batch_size is missing",
        "c.yaml:22: unknown key train.stepz",
        "override optimizer.lr=1e-3: unknown key optimizer.lr",
        "override engine.compile=maybe: engine.compile cannot be 'maybe'",
    ]
    assert all("  fix:    " in problem for problem in problems)


def test_a_key_given_twice_is_refused_with_both_lines(good: str, refusal: Callable[..., str]) -> None:
    assert refusal(good + "run_dir: runs/y\n") == (
        "c.yaml:23: run_dir is given twice\n  found:  the first one in c.yaml:1\n  wanted: each key once\n"
        "  fix:    remove one of the two"
    )


def test_a_missing_file_and_a_directory_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BigtrainError, match=r"cannot read the configuration nowhere/c\.yaml\n  found:  No such file"):
        load_settings(Path("nowhere/c.yaml"))
    with pytest.raises(BigtrainError, match="Is a directory"):
        load_settings(tmp_path)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_is_refused_as_empty(refusal: Callable[..., str], text: str) -> None:
    assert refusal(text) == (
        "the configuration c.yaml is empty\n  wanted: at least run_dir and the sections model, data and train\n"
        "  fix:    start from a copy of configs/quickstart.yaml"
    )


@pytest.mark.parametrize(("text", "found"), [("- a\n- b\n", "a list"), ("hello\n", "a single value")])
def test_a_file_that_is_not_a_mapping_is_refused(refusal: Callable[..., str], text: str, found: str) -> None:
    assert refusal(text).startswith(
        f"c.yaml:1: the configuration is not a mapping\n  found:  {found}\n  wanted: `key: value` lines"
    )


def test_a_syntax_error_names_the_line_and_shows_it(good: str, refusal: Callable[..., str]) -> None:
    answer = refusal(good.replace("  vocab_size: 8192", "  vocab_size: : 8192"))
    assert answer.startswith("c.yaml:7: this is not YAML: mapping values are not allowed here")
    assert "  found:    vocab_size: : 8192\n" in answer
    assert "look at column 15" in answer


def test_a_tab_is_named_as_such(good: str, refusal: Callable[..., str]) -> None:
    answer = refusal(good.replace("  vocab_size: 8192", "\tvocab_size: 8192"))
    assert answer.startswith("c.yaml:7: this is not YAML: ")
    assert answer.endswith("fix:    replace the tab by spaces")


def test_bytes_that_are_not_text_are_refused(write: Callable[[str], Path], good: str) -> None:
    path = write(good)
    path.write_bytes(b"\x80\xff" + path.read_bytes())
    with pytest.raises(BigtrainError, match=r"c\.yaml is not text in UTF-8"):
        load_settings(path)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("!!python/object/apply:os.getcwd []", "run_dir cannot be read: the tag"),
        ("!!int abc", "run_dir cannot be read: invalid literal"),
        ("&loop [*loop]", "run_dir.0 is an alias that holds itself"),
        ("{[1, 2]: 3}", "a key must be a plain word"),
    ],
)
def test_yaml_beyond_plain_values_is_refused_never_executed(
    good: str, refusal: Callable[..., str], value: str, what: str
) -> None:
    assert refusal(good.replace("runs/x", value)).startswith(f"c.yaml:1: {what}")


@pytest.mark.parametrize(
    ("items", "parts"),
    [
        ("[gopher_qualty]", ("unknown key data.sources.0.clean.0.gopher_qualty", "rename it to gopher_quality")),
        ("[c4, {c4: {min_sentence: 3}}]", ("data.sources.0.clean.1.c4.min_sentence", "rename it to min_sentences")),
        ("[{c4: {}, pii: {}}]", ("an item of clean is one rule, found 2",)),
        ("[fineweb: {max_short_lines: 67}]", ("max_short_lines cannot be 67", "at most 1")),
    ],
)
def test_a_rule_or_threshold_that_does_not_exist_leads_to_the_nearest(
    refusal: Callable[..., str], good: str, items: str, parts: tuple[str, ...]
) -> None:
    message = refusal(good.replace("path: web.txt", f"path: web.txt\n      clean: {items}"))
    assert "c.yaml:15" in message
    assert all(part in message for part in parts), message
