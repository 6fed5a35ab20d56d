"""Promises of a plan whose samples change their length: what an epoch has, what moves, what a resume finds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.config import DataSettings, Settings, SourceSettings, TrainSettings
from bigtrain.data import (
    Dataset,
    Loader,
    Packing,
    Plan,
    RunData,
    appearances_of,
    contents_of,
    digest_of,
    format_digest,
    open_objective,
    summaries_of,
)
from bigtrain.data.batch.packing import open_packings
from bigtrain.data.batch.planning import make_plan
from bigtrain.data.store.stored_document import documents_between
from tests.data.helpers import VOCABULARY, build_packs_of, data_settings, jsonl_source, make, random_dataset

FIRST = 8
LENGTHS = (4, 8, 12, 16, 32)
BATCH = 48
"""Samples of FIRST tokens: a whole number of samples at every length."""
STEPS = 14


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("stages")
    sizes = (4000, 1500, 97)
    return [random_dataset(folder / name, n, seed=n, source=name) for name, n in zip("abc", sizes, strict=True)]


def opened(datasets: list[Dataset], **changes: Any) -> tuple[Plan, list[Packing], DataSettings]:
    """A plan over the datasets, its packings and its settings."""
    changes = dict(changes)
    warmup = changes.pop("batch_size_warmup", ())
    limits = changes.pop("limits", [None] * len(datasets))
    seed = changes.pop("seed", 5)
    sources = [
        SourceSettings.model_validate({"name": d.name, "kind": "python_stdlib", "max_epochs": limit})
        for d, limit in zip(datasets, limits, strict=True)
    ]
    settings = data_settings(Path("unused"), *sources, **{"sequence_length": FIRST, **changes})
    train = TrainSettings(steps=STEPS, global_batch_size=BATCH, batch_size_warmup=warmup, seed=seed)
    packings = open_packings(settings, datasets)
    return make_plan(settings, train, packings), packings, settings


weights = st.fixed_dictionaries({name: st.integers(0, 4).map(float) for name in "abc"}).filter(
    lambda shares: any(shares.values())
)


@st.composite
def staged(draw: st.DrawFn) -> dict[str, Any]:
    """Settings with up to three changes of the length, of which some start a new epoch, and other phases between."""
    steps = sorted(draw(st.sets(st.integers(1, STEPS - 1), min_size=1, max_size=4)))
    phases = []
    for step in steps:
        tokens = step * BATCH * FIRST - draw(st.integers(0, 20))
        length, new_epoch = draw(st.none() | st.sampled_from(LENGTHS)), draw(st.booleans())
        mixed = draw(weights) if length is None else draw(st.just({}) | weights)
        phases.append(
            {"from_tokens": tokens, "sequence_length": length, "new_epoch": new_epoch and length is not None,
             "weights": mixed}
        )  # fmt: skip
    skip = [
        {"steps": [first, first + more], "reason": "spike"}
        for first, more in draw(st.lists(st.tuples(st.integers(1, STEPS), st.integers(0, 3)), max_size=2))
    ]
    return {
        "phases": phases,
        "skip": skip,
        "shuffle_blocks": draw(st.none() | st.integers(1, 3)),
        "seed": draw(st.integers(0, 2**40)),
    }


def drawn(plan: Plan, samples: range) -> list[tuple[int, int, int]]:
    return list(zip(*(field.tolist() for field in plan.locate_many(np.array(samples, np.int64))), strict=True))


def all_draws(plan: Plan) -> Plan:
    """The same plan with nothing left out: the draws of its steps, and those that its skips leave out."""
    return Plan(
        plan.sources, plan.phases, seed=plan.seed, sequence_length=plan.sequence_length, batches=plan.batches,
        packing=plan.packing,
    )  # fmt: skip


def tokens_of(plan: Plan, source: int, sequence: int) -> range:
    length, stream = plan.length_of(source), plan.sources[source].tokens
    return range(sequence * length, min((sequence + 1) * length, stream))


@given(data=st.data())
def test_no_token_comes_twice_in_an_epoch(datasets: list[Dataset], data: st.DataObject) -> None:
    """Whatever lengths an epoch has, no token of a source comes twice in it. Where an epoch is over, what did not come
    is less than a window of blocks for each change of the length in it; without one, all came."""
    plan, _, settings = opened(datasets, **data.draw(staged()))
    end = plan.batches.consumed_after(STEPS)
    whole = all_draws(plan)
    seen: Counter[tuple[str, int, int]] = Counter()
    for source, epoch, sequence in drawn(whole, range(plan.skips.draw_of(end - 1) + 1)):
        seen.update((plan.sources[source].name, epoch, token) for token in tokens_of(plan, source, sequence))
    assert set(seen.values()) <= {1}
    given_in: Counter[tuple[str, int]] = Counter((name, epoch) for name, epoch, _ in seen)
    drawn_of = whole.mixture.drawn_before(plan.skips.draw_of(end - 1) + 1)
    for number, dataset in enumerate(datasets):
        copies = list(zip(plan.sources, drawn_of, strict=True))[number :: len(datasets)]
        changes: Counter[int] = Counter()
        for (before, drawn_before), (after, _), cut in zip(copies, copies[1:], settings.cuts[1:], strict=False):
            epoch, within = divmod(before.taken + drawn_before, before.sequences)
            if cut.new_epoch:
                changes[epoch] += within > 0 and 10**9  # the rest of this epoch is left out
            else:
                assert before.block is not None and before.window is not None
                changes[epoch] += before.window * before.block * plan.length_of(plan.sources.index(before))
                assert after.taken // after.sequences in (epoch, epoch + 1)
        last, drawn_last = copies[-1]
        for epoch in range((last.taken + drawn_last) // last.sequences):
            missing = dataset.tokens - given_in[dataset.name, epoch]
            assert missing < changes[epoch] or missing == 0


def test_a_longer_stage_goes_on_where_the_epoch_stood(datasets: list[Dataset]) -> None:
    """The last tenth at four times the length has tokens that the first nine tenths did not have, all of them but for
    a part of one window."""
    steps = 8
    long = {"from_tokens": steps * BATCH * FIRST, "sequence_length": 32}
    plan, _, _ = opened(datasets[:1], phases=[long])
    border = plan.batches.consumed_after(steps)
    before = {t for s, e, q in drawn(plan, range(border)) for t in tokens_of(plan, s, q)}
    assert len(before) == steps * BATCH * FIRST
    block = plan.sources[0].block
    assert block is not None and plan.sources[0].window is not None and block * FIRST == 32
    rest = -(-(datasets[0].tokens - len(before)) // 32)
    after = [(e, t) for s, e, q in drawn(plan, range(border, border + rest)) for t in tokens_of(plan, s, q)]
    in_epoch = [token for epoch, token in after if epoch == 0]
    assert not before & set(in_epoch) and len(in_epoch) == len(set(in_epoch))
    left_out = datasets[0].tokens - len(before) - len(in_epoch)
    assert 0 <= left_out < plan.sources[0].window * 32


@given(data=st.data())
def test_positions_of_sequences_invert_the_plan(datasets: list[Dataset], data: st.DataObject) -> None:
    plan, _, _ = opened(datasets, **data.draw(staged()))
    end = plan.batches.consumed_after(STEPS)
    located = drawn(plan, range(end))
    for source, planned in enumerate(plan.sources):
        found = plan.samples_of(source, np.arange(planned.sequences), before=end)
        wanted = [(g, e, q) for g, (s, e, q) in enumerate(located) if s == source]
        assert list(zip(*(field.tolist() for field in found), strict=True)) == wanted
    assert plan.samples_drawn(end) == [sum(s == i for s, _, _ in located) for i in range(len(plan.sources))]


@given(data=st.data())
def test_every_step_holds_the_same_tokens_at_one_length(datasets: list[Dataset], data: st.DataObject) -> None:
    plan, _, _ = opened(datasets, **data.draw(staged()))
    for step in range(1, STEPS + 1):
        lengths = [plan.length_of(source) for source, _, _ in drawn(plan, plan.batches.samples_of(step))]
        assert set(lengths) == {FIRST * plan.batches.stage_of(step).length}
        assert sum(lengths) == BATCH * FIRST
        assert plan.tokens_before(plan.batches.consumed_after(step)) == step * BATCH * FIRST


@given(data=st.data())
def test_a_staged_plan_can_be_made_from_its_description(datasets: list[Dataset], data: st.DataObject) -> None:
    plan, _, _ = opened(datasets, **data.draw(staged()))
    again = Plan.from_json(json.loads(json.dumps(plan.describe())))
    assert again.plan_id == plan.plan_id and plan.first_difference(again) is None
    samples = range(plan.batches.consumed_after(STEPS))
    assert drawn(again, samples) == drawn(plan, samples)


@given(data=st.data(), step=st.integers(1, STEPS), more=st.integers(0, 3))
def test_a_skip_leaves_out_its_steps_at_every_length(
    datasets: list[Dataset], data: st.DataObject, step: int, more: int
) -> None:
    """Batches before a skip stay, and what it leaves out of the first stage that it touches does not come again."""
    changes = data.draw(staged())
    changes["phases"] = [phase for phase in changes["phases"] if phase["sequence_length"] is not None]
    plan, _, _ = opened(datasets, **changes)
    item = {"steps": [step, step + more], "reason": "spike"}
    skipping, _, _ = opened(datasets, **{**changes, "skip": [*changes["skip"], item]})
    start = plan.batches.samples_of(step).start
    difference = plan.first_difference(skipping)
    assert difference == start
    assert drawn(plan, range(start)) == drawn(skipping, range(start))
    bad = set(drawn(plan, range(start, plan.batches.samples_of(step + more).stop)))
    count = len(datasets)
    first_cut = min(source // count for source, _, _ in bad)
    own = {address for address in bad if address[0] // count == first_cut}
    assert not own & set(drawn(skipping, range(start, skipping.batches.consumed_after(STEPS))))


def test_a_stage_with_a_new_epoch_moves_no_earlier_sample(datasets: list[Dataset]) -> None:
    """It can be added to a run that has trained; each source then starts an epoch of which nothing has come."""
    plain, _, _ = opened(datasets)
    border = 5 * BATCH
    later = {"from_tokens": border * FIRST, "sequence_length": 32, "new_epoch": True}
    added, _, _ = opened(datasets, phases=[later])
    assert plain.first_difference(added) == border
    assert drawn(plain, range(border)) == drawn(added, range(border))
    continued, _, _ = opened(datasets, phases=[{**later, "new_epoch": False}])
    assert plain.first_difference(continued) == 0
    before = Counter((plain.sources[s].name, e) for s, e, _ in drawn(plain, range(border)))
    for source, planned in enumerate(added.sources[3:], 3):
        assert planned.taken % planned.sequences == 0
        epochs = {e for s, e, _ in drawn(added, range(border, border + 40)) if s == source}
        assert all((planned.name, epoch) not in before for epoch in epochs)


def test_limits_count_tokens_at_all_lengths(datasets: list[Dataset]) -> None:
    """A source with max_epochs gives at most so many epochs, at all lengths together; what a border left out counts."""
    long = {"from_tokens": 6 * BATCH * FIRST, "sequence_length": 32}
    plan, _, _ = opened(datasets, phases=[long], limits=[None, 0.6, 1.0])
    end = plan.batches.consumed_after(STEPS)
    tokens: Counter[str] = Counter()
    for source, _, sequence in drawn(plan, range(end)):
        tokens[plan.sources[source].name] += len(tokens_of(plan, source, sequence))
    assert 0.4 < tokens["b"] / datasets[1].tokens <= 0.6 and tokens["c"] <= datasets[2].tokens


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_batches_across_the_border_at_any_world_size(datasets: list[Dataset], packing: str) -> None:
    """Ranks and starts do not change a batch, before, at and after the border; `where` recomputes its digest, and every
    document that is in it is found there by `when`."""
    datasets = datasets[1:]
    for dataset in datasets:
        for length in (FIRST, 32):
            build_packs_of(dataset.directory, packing, length)
    phases = [
        {"from_tokens": 3 * BATCH * FIRST, "sequence_length": 32, "new_epoch": packing != "concat"},
        {"from_tokens": 6 * BATCH * FIRST, "sequence_length": FIRST, "new_epoch": packing != "concat"},
    ]
    plan, packings, _ = opened(datasets, packing=packing, phases=phases)

    def digests(world: int, micro: int, first_step: int) -> list[tuple[int, int]]:
        first = plan.batches.samples_of(first_step).start
        found = [(0, 0)] * (9 - first_step)
        for rank in range(world):
            with Loader(
                plan, packings, first_sample=first, micro_batch_size=micro, rank=rank, world_size=world
            ) as loader:
                for i, batch in zip(range(len(found)), loader, strict=False):
                    lengths = {each.input_ids.shape for each in batch.micro_batches}
                    assert len(lengths) == 1
                    rows, length = next(iter(lengths))
                    assert rows == max(1, micro * FIRST // length)
                    found[i] = (found[i][0] + batch.digest, found[i][1] + batch.label_tokens)
        return [(digest % 2**64, labels) for digest, labels in found]

    whole = digests(1, 4, 1)
    assert digests(4, 3, 1) == whole
    assert digests(2, 6, 3) == whole[2:] and digests(3, 1, 5) == whole[4:]
    for step in (3, 4, 6, 7):
        samples = plan.batches.samples_of(step)
        contents = contents_of(plan, packings, samples)
        assert digest_of(contents) == format_digest(whole[step - 1][0] - 2**64 * (whole[step - 1][0] >= 2**63))
        for sample in contents[:: max(1, len(contents) // 3)]:
            for part in sample.parts:
                appearances = appearances_of(plan, packings, part.document, before=samples.stop)
                found = [(a.sample, a.start, a.end) for a in appearances]
                assert (sample.sample, part.start, part.end) in found and found == sorted(found)


def test_documents_lose_their_labels_at_every_length(datasets: list[Dataset]) -> None:
    """A document that is skipped from a step on has no labels after it, whatever the length."""
    datasets = datasets[2:]
    document = next(iter(documents_between(datasets[0], 0, 1)))
    skip = [{"source": "c", "ids": [document.id], "from_step": 2, "reason": "spam"}]
    long = {"from_tokens": 4 * BATCH * FIRST, "sequence_length": 32}
    plan, packings, _ = opened(datasets, phases=[long], skip=skip)
    first = plan.batches.samples_of(2).start
    found = appearances_of(plan, packings, document, before=plan.batches.consumed_after(STEPS))
    assert {a.labelled for a in found} == {a.sample < first for a in found}
    lengths = {plan.length_of(plan.locate(a.sample).source) for a in found if not a.labelled}
    assert lengths == {FIRST, 32}


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_build_has_the_index_of_every_length(tmp_path: Path, packing: str) -> None:
    """What `data build` makes is what a run opens at each length; ranks that hear of it have the same plan and rows."""
    lines = [{"text": " ".join(f"word{i % 7} {i * n}" for i in range(n % 60))} for n in range(1, 150)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    long = {"from_tokens": 2 * BATCH * FIRST, "sequence_length": 32, "new_epoch": packing != "concat"}
    settings = Settings.model_validate(
        {
            "run_dir": tmp_path / "run",
            "model": {
                "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
                "vocab_size": VOCABULARY, "max_position_embeddings": 32,
            },
            "data": data_settings(
                tmp_path / "data", jsonl_source(tmp_path / "text.jsonl"), sequence_length=FIRST, packing=packing,
                phases=[long],
            ),
            "train": {"steps": 4, "global_batch_size": BATCH, "micro_batch_size": 4},
        }
    )  # fmt: skip
    make(settings.data)
    alone = RunData.open(settings)
    objective = open_objective(settings.objective, settings.data, settings.model)
    heard = RunData.of(settings, summaries_of(settings, [0]), objective)
    heard.check_sizes()
    assert heard.plan.plan_id == alone.plan.plan_id and len(alone.train) == 2 and len(alone.datasets) == 1
    samples = np.arange(alone.plan.batches.consumed_after(4))
    one, other = (data.batches_of(samples, 4) for data in (alone, heard))
    assert {batch.input_ids.shape[1] for batch in one} == {FIRST, 32}
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(one, other, strict=True))
