"""What a run has decided is part of its settings for ever, whatever the configuration says, and voids what it must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base import ALONE
from bigtrain.base.errors import BigtrainError
from bigtrain.checkpoint import Cursor, Fragment, StorageTiers, list_checkpoints, newest_verified, save
from bigtrain.checkpoint.folder import Folder
from bigtrain.config import Settings
from bigtrain.config.data_settings import SkipSettings
from bigtrain.rundir.decisions import (
    Decision,
    Outlier,
    consecutive_rewinds,
    read_decisions,
    with_decisions,
    without_decisions,
    write_decision,
)
from bigtrain.train.continuation import standing_commits
from bigtrain.train.superseded import remove_superseded


def decision(number: int, first: int, last: int, position: int = 0, anomaly: tuple[int, int] | None = None) -> Decision:
    outliers = tuple(Outlier(step, 9.0, 2.0, 12.5, 0.1) for step in anomaly or (last, last))
    skip = SkipSettings(steps=(first, last), reason=f"guard: anomaly {number}")
    return Decision(number, "spike", outliers, first - 1, skip, position, {"step": last, "documents": []})


def settings_with(*skips: SkipSettings) -> Settings:
    return Settings.model_validate(
        {
            "run_dir": Path("run"),
            "model": {
                "family": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 32, "vocab_size": 320, "max_position_embeddings": 16,
            },
            "data": {
                "dir": Path("data"), "sequence_length": 16, "tokenizer": {"vocab_size": 320}, "skip": skips,
                "sources": [{"name": "a", "kind": "text", "path": "*.txt"}],
            },
            "train": {"steps": 100, "global_batch_size": 4},
        }
    )  # fmt: skip


def skipped(settings: Settings) -> list[str]:
    return [skip.reason for skip in settings.data.skip]


def item(name: str) -> SkipSettings:
    return SkipSettings(steps=(1, 2), reason=name)


def test_a_decision_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    assert read_decisions(path) == ()
    made = [decision(1, 5, 9), decision(2, 20, 30, position=1)]
    for each in made:
        write_decision(path, each)
    assert read_decisions(path) == tuple(made)
    with path.open("a") as file:
        file.write('{"decision": 3, "kin')  # killed while it was written: never decided
    assert read_decisions(path) == tuple(made)
    write_decision(path, decision(3, 40, 41, position=2))
    assert [each.decision for each in read_decisions(path)] == [1, 2, 3]


def test_a_record_with_a_gap_or_a_stranger_is_an_error_and_no_other_data(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    write_decision(path, decision(2, 5, 9))
    with pytest.raises(BigtrainError, match="does not hold all decisions"):
        read_decisions(path)
    path.write_text('{"decision": 1, "verdict": "guilty"}\n')
    with pytest.raises(BigtrainError, match="decision 1, cannot be read"):
        read_decisions(path)


def test_decisions_keep_their_positions_when_items_are_added() -> None:
    """A decision stays at the position where it was made, whatever items are added after it."""
    first, second = decision(1, 5, 9, position=1), decision(2, 20, 30, position=2)
    base = settings_with(item("by hand"))
    assert skipped(with_decisions(base, [first])) == ["by hand", "guard: anomaly 1"]
    later = settings_with(item("by hand"), item("added later"))
    assert skipped(with_decisions(later, [first, second])) == [
        "by hand", "guard: anomaly 1", "guard: anomaly 2", "added later",
    ]  # fmt: skip


@given(known=st.integers(0, 3))
def test_settings_that_know_of_some_decisions_already_get_the_others_only(known: int) -> None:
    made = [decision(1, 5, 9), decision(2, 20, 30, position=1), decision(3, 40, 50, position=2)]
    base = settings_with(item("added later"))
    partly = with_decisions(base, made[:known])
    assert with_decisions(partly, made) == with_decisions(base, made)
    assert with_decisions(with_decisions(base, made), made) == with_decisions(base, made)
    assert without_decisions(with_decisions(base, made), made) == base
    assert without_decisions(with_decisions(base, made), made[known:]) == partly


def test_a_window_of_good_steps_ends_a_row_of_rewinds() -> None:
    """Rewinds are consecutive until a window of good steps follows the last anomaly."""
    made = [decision(1, 90, 110, anomaly=(100, 104)), decision(2, 140, 160, anomaly=(150, 154))]
    assert consecutive_rewinds([], 10, window=50) == 0
    assert consecutive_rewinds(made, 200, window=50) == 2
    assert consecutive_rewinds(made, 205, window=50) == 0
    assert consecutive_rewinds(made, 120, window=50) == 2  # the run is not even back where it was
    assert consecutive_rewinds([decision(1, 1, 9, anomaly=(8, 9)), made[1]], 160, window=50) == 1


Event = dict[str, Any]


def commit(step: int) -> Event:
    return {"event": "commit", "step": step}


@pytest.mark.parametrize(
    "events, standing",
    [
        ([commit(4), commit(8)], [4]),  # killed before it could say that it goes back
        ([commit(4), commit(8), {"event": "rewind", "decision": 1}], [4]),
        ([commit(4), {"event": "rewind", "decision": 1}, commit(8)], [4, 8]),
    ],
)
def test_commits_of_a_given_up_course_do_not_stand(events: list[Event], standing: list[int]) -> None:
    assert standing_commits(events, [decision(1, 6, 9)]) == standing
    assert standing_commits([commit(4), commit(8)], []) == [4, 8]


def saved(tiers: StorageTiers, step: int, decisions: int | None) -> None:
    save(
        tiers,
        Cursor(step, 8 * step, "plan", step),
        [Fragment("weight", "master", (4,), 0, torch.full((4,), float(step)))],
        {"cpu": torch.get_rng_state()},
        mathematics={},
        zero_stage=0,
        state={} if decisions is None else {"decisions": decisions},  # as versions before this one wrote it
        ranks=ALONE,
    )


def steps_in(folder: Folder) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(folder)]


def test_what_a_decision_made_void_goes_from_every_tier_and_nothing_else(tmp_path: Path) -> None:
    durable, local = Folder(tmp_path / "durable"), Folder(tmp_path / "local")
    for folder in (durable, local):
        for step, known in ((4, None), (8, 0), (12, 1), (16, 0)):
            saved(StorageTiers(folder), step, known)
    (durable.directory / "step-00000016" / "manifest.json").write_text("rotten")
    made = [decision(1, 6, 9)]
    assert steps_in(durable) == [4, 8, 12, 16] and remove_superseded(StorageTiers(durable, local), (), ALONE) == []
    gone = remove_superseded(StorageTiers(durable, local), made, ALONE)
    assert sorted(checkpoint.location for checkpoint in gone) == sorted(
        [str(durable.directory / "step-00000008"), *(str(local.directory / f"step-{n:08d}") for n in (8, 16))]
    )
    assert (steps_in(durable), steps_in(local)) == ([4, 12, 16], [4, 12])  # what is rotten is for others to look at
    assert remove_superseded(StorageTiers(durable, local), made, ALONE) == []
    assert remove_superseded(StorageTiers(durable, local), [*made, decision(2, 11, 20, 1)], ALONE) != []
    newest = newest_verified(StorageTiers(durable)).newest
    assert newest is not None and newest.step == 4


def test_a_search_can_be_for_what_is_older(tmp_path: Path) -> None:
    tiers = StorageTiers(Folder(tmp_path))
    for step in (4, 8, 12):
        saved(tiers, step, 0)
    for before, step in ((13, 12), (12, 8), (5, 4)):
        newest = newest_verified(tiers, before=before).newest
        assert newest is not None and newest.step == step
    assert newest_verified(tiers, before=4).newest is None
