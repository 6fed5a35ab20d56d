"""Promises of the types of what a run writes down: every event, metric and state has one, and keeps its JSON names."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import pytest

import bigtrain
from bigtrain.cli.reference import docstrings
from bigtrain.rundir.events import EVENTS, ChangeEvent, CommitEvent, Event, EventFields, StartEvent
from bigtrain.rundir.metrics import StepMetrics
from bigtrain.rundir.run_state import RunState

PACKAGE = Path(bigtrain.__file__).parent


def test_every_event_has_a_class_with_its_fields():
    assert set(EVENTS) == set(Event)
    assert all(cls.event == event for event, cls in EVENTS.items())


@pytest.mark.parametrize("cls", [*EVENTS.values(), StepMetrics, RunState], ids=lambda cls: cls.__name__)
def test_every_field_says_what_it_means(cls):
    described = {name for base in cls.__mro__ if base is not object for name in docstrings(base)}
    assert {field.name for field in dataclasses.fields(cls)} <= described


def test_optional_fields_are_left_out_and_required_ones_may_be_null():
    start = StartEvent(2, None, "0.2.0", "plan", {}, {}, {}, "/runs/x")
    assert start.as_record() | {"event": "start", "wandb_run_id": None} == start.as_record()
    commit = CommitEvent(step=4, seconds=0.5, checkpoint="step-00000004", local=False)
    assert "waited_seconds" not in commit.as_record()
    assert dataclasses.replace(commit, waited_seconds=1.5).as_record()["waited_seconds"] == 1.5


def test_a_field_that_is_a_word_of_python_has_its_json_name():
    record = json.loads(json.dumps(ChangeEvent("optimizer.weight_decay", 0.1, 0.2).as_record()))
    assert record == {"event": "change", "key": "optimizer.weight_decay", "from": 0.1, "to": 0.2}


def test_no_code_writes_an_event_by_hand():
    """A dictionary with the key `event` is written by `EventFields.as_record` and by `Recorder.note` alone."""
    by_hand = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Dict):
                keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
                if "event" in keys:
                    by_hand.append(file.relative_to(PACKAGE).as_posix())
    assert sorted(by_hand) == ["rundir/events.py", "train/recorder.py"]


def test_a_state_of_another_version_is_read():
    assert RunState.of({}) == RunState()
    later = RunState(wandb_run_id="ab12", decisions=2).as_json() | {"of_a_later_version": 1}
    assert RunState.of(json.loads(json.dumps(later))) == RunState(wandb_run_id="ab12", decisions=2)


def test_the_base_class_names_no_event():
    assert not hasattr(EventFields, "event")


def test_auxiliary_losses_are_fields_of_the_line():
    names = {f.name for f in dataclasses.fields(StepMetrics)}
    values = dict.fromkeys(names, 1) | {"auxiliary": {"router_aux_loss": 0.5}, "decisions": None}
    record = StepMetrics(**values).as_record()
    assert record["router_aux_loss"] == 0.5 and "auxiliary" not in record and "decisions" not in record
