"""`bigtrain data where --text` shows the labels of tokens: what a conversation trains on, classes, tags and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bigtrain.cli.main import app
from bigtrain.config import DataSettings, SourceSettings, dump_settings
from bigtrain.config.objective_settings import LABELS_OF
from bigtrain.config.settings import Settings
from tests.data.helpers import make
from tests.data.labelled import labelled_settings, source_of
from tests.data.test_chat import CHATML, chat_settings, chats

HEADS = {"classification": "sequence_classification", "token_classification": "token_classification"}


def run_over(folder: Path, data: DataSettings) -> Path:
    """The folder of a run that is about to start on these data."""
    (objective,) = [name for name, labels in LABELS_OF.items() if labels == data.sources[0].labels]
    head: dict[str, Any] = {"task_head": HEADS[objective], "num_labels": 2} if objective in HEADS else {}
    model: dict[str, Any] = {
        **head,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 512,
    }
    values: dict[str, Any] = {
        "run_dir": str(folder),
        "model": {**model, "intermediate_size": 16, "max_position_embeddings": data.sequence_length},
        "objective": {"name": objective},
        "data": data.model_dump(mode="json"),
        "train": {"steps": 1, "global_batch_size": 2, "micro_batch_size": 1},
    }
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_settings(Settings.model_validate_json(json.dumps(values), strict=True)))
    return folder


def shown(tmp_path: Path, data: DataSettings, *options: str) -> str:
    """What the command prints of the first step."""
    make(data)
    run = run_over(tmp_path / "run", data)
    done = CliRunner().invoke(app, ["data", "where", str(run), "--step", "1", "--text", *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_conversation_shows_what_is_not_trained_on_in_brackets(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
    source = chats(tmp_path / "a.jsonl", *[{"messages": talk}] * 20)
    printed = shown(tmp_path, chat_settings(tmp_path, CHATML, source))
    before = "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\n"
    assert f"\u27e6{before}\u27e7jumps<|im_end|>\u27e6\n<|endoftext|>\u27e7" in printed


@pytest.mark.parametrize(
    ("lines", "changes", "wanted"),
    [
        (
            {"text": "a fox", "label": "yes"},
            {"label_field": "label", "label_names": ("no", "yes")},
            "[<|endoftext|>a fox<|endoftext|>|yes]",
        ),
        (
            {"text": "a b c", "spans": [{"start": 2, "end": 3, "label": "x"}]},
            {"spans_field": "spans"},
            "<|endoftext|>a[ b|B-x] c<|endoftext|>",
        ),
    ],
)
def test_labels_stand_after_their_texts(lines: Any, changes: Any, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text((json.dumps(lines) + "\n") * 40)
    source: SourceSettings = source_of("jsonl", path, **changes)
    printed = json.loads(shown(tmp_path, labelled_settings(tmp_path / "data", source), "--json"))
    part = printed["samples"][0]["documents"][0]
    assert part["labels"] == source.labels
    again = CliRunner().invoke(app, ["data", "where", str(tmp_path / "run"), "--step", "1", "--text"])
    assert wanted in again.stdout
    assert "".join(run["text"] for run in part["runs"]).replace("<|endoftext|>", "") == part["text"]
