"""A run directory that a stranger made, or whose settings were kept without their secrets, is read safely."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base import BigtrainError
from bigtrain.config import GuardSettings, Settings, dump_settings, load_settings, with_bare_urls
from bigtrain.data import open_datasets, open_packings
from bigtrain.data.format.layout import read_record, source_request, write_record
from bigtrain.data.store.mirror import MARKER, Mirror
from bigtrain.health.spikes import Guard
from bigtrain.rundir import RunState, card_of_run, documents_of_step, steps_of_document
from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.plan_diff import compare_plans
from bigtrain.train import refuse_checkpoints_of_others
from bigtrain.train.ownership import claim_checkpoints
from bigtrain.trained import evaluate_run
from tests.golden.before import BEFORE
from tests.hostile import mutate
from tests.refusals import assert_refused

KEY = "k3yk3yk3yk3yk3yk3y"
RUN = Path("run")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a real run and its data, in which the commands run."""
    shutil.copytree(BEFORE / "run", tmp_path / "run")
    shutil.copytree(BEFORE / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class KeyedServer(SimpleHTTPRequestHandler):
    """Gives files to those that know the key."""

    def do_GET(self) -> None:
        if f"sig={KEY}" in self.path:
            super().do_GET()
        else:
            self.send_error(403)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def url(place: Path) -> Iterator[str]:
    handler = functools.partial(KeyedServer, directory=str(BEFORE))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/data?sig={KEY}"
    server.shutdown()
    server.server_close()


def changed(settings: Settings, **changes: object) -> Settings:
    return Settings.model_validate_json(json.dumps({**settings.model_dump(mode="json"), **changes}), strict=True)


def with_data(settings: Settings, **changes: object) -> Settings:
    return changed(settings, data={**settings.model_dump(mode="json")["data"], **changes})


def keep(settings: Settings) -> None:
    """Write config.yaml as a run does."""
    (RUN / "config.yaml").write_text(with_bare_urls(dump_settings(settings)))
    assert KEY not in (RUN / "config.yaml").read_text()


def every_question() -> None:
    found = documents_of_step(RUN, 2, text=True)
    assert found.recorded_digest == found.batch_digest
    assert steps_of_document(RUN, found.samples[0].documents[0].id).appearances
    assert card_of_run(RUN)["plan_id"] == found.plan_id
    assert compare_plans(RUN, RUN).same_before is None
    assert evaluate_run(RUN, None, with_baselines=False).validation


@pytest.mark.parametrize(
    "source", [f"https://host/prose.jsonl?X-Amz-Signature={KEY}", f"s3://bucket/prose.jsonl?access_token={KEY}"]
)
def test_a_run_on_a_signed_url_answers_all_questions(place: Path, source: str) -> None:
    """RUN/config.yaml keeps `***` in place of the signature, and so does `build.json`."""
    settings = load_settings(RUN / "config.yaml")
    sources = [{**each.model_dump(mode="json")} for each in settings.data.sources]
    sources[0]["path"] = source
    settings = with_data(settings, sources=sources)
    for each in settings.data.sources:
        record = read_record(Path("data", each.name))
        assert record is not None
        write_record(Path("data", each.name), record | source_request(each, settings.data, record["tokenizer"]))
    assert KEY not in Path("data", settings.data.sources[0].name, "build.json").read_text()
    keep(settings)
    every_question()


def test_a_run_on_a_keyed_remote_reads_what_it_has_fetched(place: Path, url: str) -> None:
    """Its key is in no file, so the mirror is read without asking the server."""
    settings = with_data(load_settings(RUN / "config.yaml"), dir="mirror", remote=url)
    keep(settings)
    with pytest.raises(BigtrainError) as refusal:
        documents_of_step(RUN, 2)
    assert_refused(refusal, "data.remote", found="***", fix="config.yaml")
    for split in ("train", "validation"):
        datasets = open_datasets(settings.data, model_vocab_size=settings.model.vocab_size, split=split)
        assert all(len(shard.tokens) and len(shard.documents.id) for dataset in datasets for shard in dataset.shards)
        for packing in open_packings(settings.data, datasets) if split == "train" else ():
            packing.spans(np.arange(packing.rows))
    every_question()
    assert not [file for file in Path("mirror").rglob("*.json") if KEY in file.read_text()]


def test_a_checkpoint_dir_holds_no_secret_and_a_masked_one_is_refused(place: Path) -> None:
    settings = load_settings(RUN / "config.yaml")
    checkpoint = {**settings.checkpoint.model_dump(mode="json"), "dir": f"s3://bucket/run?token={KEY}"}
    with pytest.raises(ValueError, match=r"checkpoint\.dir holds a secret"):
        changed(settings, checkpoint=checkpoint)
    checkpoint["dir"] = "s3://bucket/run?token=***"
    keep(changed(settings, checkpoint=checkpoint))
    assert documents_of_step(RUN, 2).samples
    with pytest.raises(BigtrainError) as refusal:
        evaluate_run(RUN, None, with_baselines=False)
    assert_refused(refusal, "checkpoint.dir", found="***")


@pytest.mark.parametrize("question", [lambda: documents_of_step(RUN, 2), lambda: compare_plans(RUN, RUN)])
def test_a_strangers_run_fetches_nothing_into_a_folder_of_its_choice(
    place: Path, tmp_path_factory: pytest.TempPathFactory, question: Any
) -> None:
    victim = tmp_path_factory.mktemp("home")
    remote = (BEFORE / "data").as_uri()
    keep(with_data(load_settings(RUN / "config.yaml"), dir=str(victim / "new"), remote=remote))
    with pytest.raises(BigtrainError) as refusal:
        question()
    assert_refused(refusal, "config.yaml", str(victim), fix="if you trust this run")
    assert not list(victim.iterdir())


def test_a_folder_of_other_files_becomes_no_mirror(place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine/tokenizer.json").write_text("treasure")
    keep(with_data(load_settings(RUN / "config.yaml"), dir="mine", remote=(BEFORE / "data").as_uri()))
    with pytest.raises(BigtrainError) as refusal:
        documents_of_step(RUN, 2)
    assert_refused(refusal, "holds other files", found="tokenizer.json")
    assert [file.name for file in (place / "mine").iterdir()] == ["tokenizer.json"]


def test_links_in_a_mirror_lead_nothing_out_of_it(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither a folder of a source nor one of the cache may be a symbolic link to another place."""
    victim = tmp_path_factory.mktemp("home")
    (victim / "tmpprecious").write_text("treasure")
    os.utime(victim / "tmpprecious", (0, 0))
    remote, mirror = (BEFORE / "data").as_uri(), place / "mirror"
    settings = with_data(load_settings(RUN / "config.yaml"), dir="mirror", remote=remote)
    (mirror / "prose").mkdir(parents=True)
    (mirror / MARKER).write_text(json.dumps({"url": remote}))
    (mirror / "prose/train").symlink_to(victim)
    keep(settings)
    with pytest.raises(BigtrainError) as refusal:
        documents_of_step(RUN, 2)
    assert_refused(refusal, found="a symbolic link")
    shutil.rmtree(mirror / "cache")
    (mirror / "cache").mkdir()
    (mirror / "cache/new").symlink_to(victim)
    with pytest.raises(BigtrainError) as refusal:
        Mirror(mirror, remote, 1 << 20)
    assert_refused(refusal, found="a symbolic link")
    assert [file.name for file in victim.iterdir()] == ["tmpprecious"]


def test_the_checkpoints_of_another_run_are_not_pruned(place: Path) -> None:
    """A stranger's config.yaml may name the checkpoint.dir of a run of yours."""
    settings = load_settings(RUN / "config.yaml")
    checkpoint = {**settings.checkpoint.model_dump(mode="json"), "dir": str(place / "shared")}
    (place / "shared").mkdir()
    mine = place / "mine"
    mine.mkdir()
    settings = changed(settings, checkpoint=checkpoint)
    claim_checkpoints(RunDirectory(mine), settings.checkpoint)
    keep(settings)
    with pytest.raises(BigtrainError) as refusal:
        refuse_checkpoints_of_others(RunDirectory.of_existing_run(RUN))
    assert_refused(refusal, "another run", found=str(mine))


def test_an_evaluation_of_a_strangers_run_writes_through_no_link(place: Path) -> None:
    (place / "treasure").write_text("mine")
    (RUN / "evaluation.json").symlink_to(place / "treasure")
    (RUN / "evaluation.json.tmp").symlink_to(place / "treasure")
    evaluate_run(RUN, None, with_baselines=False)
    assert (place / "treasure").read_text() == "mine"
    assert json.loads((RUN / "evaluation.json").read_text())["step"]


STATE = {
    "wandb_run_id": "abc",
    "run_dir": "/runs/a",
    "plan": {"plan_id": "x"},
    "loss_scaler": {"cur_scale": 65536.0, "cur_iter": 3},
    "router_moves": {"layers.0": [1, -2]},
    "guard": {
        "losses": [2.0, 1.5],
        "log_grad_norms": [0.1, 0.2],
        "signs": [{"step": 3, "loss": 9.0, "grad_norm": 2.0, "loss_z": 7.0}],
    },
    "decisions": 1,
    "best": {"step": 4, "metric": "f1", "value": 0.5, "last_evaluation": 6, "worse": 1},
    "base": {"lm_head.weight": "0123"},
}


@given(choose=st.randoms(use_true_random=False))
def test_any_change_of_a_state_in_a_checkpoint_is_harmless_or_one_message(choose: random.Random) -> None:
    state = json.loads(json.dumps(STATE))
    mutate(state, choose)
    try:
        known = RunState.of(state)
        Guard(GuardSettings()).restore(known.guard)
        assert known.decisions >= 0 and all(isinstance(scale, int | float) for scale in known.loss_scaler.values())
    except BigtrainError as refusal:
        assert_refused(refusal)


def test_a_state_is_read_as_it_was_written() -> None:
    known = RunState.of({**STATE, "of a later version": 1})
    assert json.dumps(known.as_json()) == json.dumps(STATE)
