"""A restructuring changes no number: trainings give what golden.json has recorded of them. See README.md."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest

from tests.golden.record import CASES, GOLDEN, Case, build, differences, tolerance_of, train
from tests.matrix import thinned

QUICK = [Case("llama", 1, 1), Case("gpt2", 1, 3), Case("mixtral", 2, 3)]
"""A family, a packing and a schedule each; both stages and both numbers of processes."""


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def data(start, tmp_path_factory):
    """The folder with the data that all cases share, and what `build` has found there."""
    directory = tmp_path_factory.mktemp("golden")
    return directory, build(directory, start)


def test_the_data_have_the_recorded_ids_and_counts(golden, data):
    versions = f"tokenizers {version('tokenizers')}, recorded with {golden['tokenizers']}"
    assert not list(differences(golden["data"], data[1], 0.0)), versions


@pytest.mark.parametrize("case", thinned(CASES, QUICK), ids=str)
def test_a_run_gives_the_recorded_numbers(case, golden, data, start):
    """Digests, ids, learning rates and counts are equal everywhere. Losses and norms are bit-equal on a machine like
    that of the record, and within 1e-5 on others, whose CPUs add up in another order."""
    found = train(case, data[0], start)
    assert not list(differences(golden["runs"][str(case)], found, tolerance_of(golden)))


def test_every_kind_of_difference_is_found():
    """What compares the runs is no check that cannot fail."""
    recorded = {"loss": 2.0, "learning_rate": 0.1, "digest": "a", "steps": [{"norm": 1.0}, {"norm": float("nan")}]}
    assert not list(differences(recorded, json.loads(json.dumps(recorded)), 0.0))
    near = {**recorded, "loss": 2.00001}
    assert not list(differences(recorded, near, 1e-5))
    assert list(differences(recorded, near, 0.0)) == ["loss: 2.00001, recorded 2.0"]
    for change in (
        {"loss": 2.0001}, {"loss": float("nan")}, {"loss": 2}, {"learning_rate": 0.1000001}, {"digest": "b"},
        {"steps": [{"norm": 1.0}]}, {"steps": [{"norm": 1.0}, {}]}, {"more": 1},
    ):  # fmt: skip
        assert len(list(differences(recorded, {**recorded, **change}, 1e-5))) == 1, change
