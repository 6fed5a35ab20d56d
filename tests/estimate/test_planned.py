"""A run's settings are forecast without PyTorch; a search finds what fits, and says what would."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base import BigtrainError
from bigtrain.config import Settings, load_settings
from bigtrain.estimate import (
    Machines,
    Price,
    Wish,
    amount_of,
    forecast,
    layout_of,
    plan,
    remedies,
    workload_of,
)
from bigtrain.estimate.search import layouts, search, with_overrides
from bigtrain.model import flops_per_token, model_shapes
from bigtrain.objective import row_lengths

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
LLAMA = Path(__file__).parents[2] / "configs/llama-8b.yaml"


def llama(*overrides: str) -> Settings:
    return load_settings(LLAMA, overrides)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_forecast_in_full(config: Path):
    """Parameters are those of the model, FLOP those of the field's convention, and each number is positive."""
    chosen = load_settings(config)
    work = workload_of(chosen)
    gpus = 8 if chosen.train.global_batch_size % (8 * chosen.train.micro_batch_size) == 0 else 1
    found = plan(chosen, Machines.of("h200", gpus), Wish())
    assert work.parameters == model_shapes(chosen.model, chosen.adapter).count
    length, encoder_length = row_lengths(
        chosen.objective, chosen.data.sequence_length, reads_pairs=chosen.model.reads_pairs
    )
    share = length / chosen.data.sequence_length
    expected = share * flops_per_token(
        chosen.model,
        length,
        labelled=chosen.objective.labelled_share,
        encoder_length=encoder_length,
    )
    if chosen.adapter.method == "none" and not chosen.model.recurrent:
        assert work.flops_per_token() == pytest.approx(expected, rel=0.02)
    assert found.peak_gib > 0 and found.seconds > 0 and 0 < found.mfu < 1
    assert all(size >= 0 for size in found.memory.values())
    assert sum(found.memory.values()) == pytest.approx(found.peak_gib * 2**30)
    assert sum(found.step_seconds.values()) == pytest.approx(found.seconds)
    assert found.gpu_hours == pytest.approx(found.hours * gpus)


def test_a_search_returns_what_fits_and_is_allowed_fastest_first():
    """Each layout of a search fits, is accepted by the settings as overrides, and has the numbers of these settings."""
    machines = Machines.of("h100", 64)

    def accepts(arguments) -> bool:
        try:
            load_settings(LLAMA, arguments)
        except BigtrainError:
            return False
        return True

    found = search(llama(), 64, machines.device, machines.connected, accepts=accepts)
    assert len(found.best) == 5 and found.fitting <= found.tried
    for each in found.best:
        changed = load_settings(LLAMA, each.arguments)
        again = forecast(workload_of(changed), layout_of(changed, 64), machines.device, machines.connected)
        assert again.fits and again.step == each.forecast.step and again.memory == each.forecast.memory
    rates = [each.forecast.tokens_per_second_per_device for each in found.best]
    assert all(faster >= slower for faster, slower in pairwise(rates))


@settings(max_examples=15)
@given(st.sampled_from([1, 2, 6, 8, 48, 64, 512, 65_536]))
def test_every_layout_of_a_search_uses_all_devices_and_the_whole_batch(devices: int):
    for _, changed in layouts(llama("train.global_batch_size=4096"), devices, 8):
        layout = layout_of(changed, devices)
        assert layout.devices == devices and layout.global_batch_size == 4096


def test_what_would_fit_is_accepted_and_fits():
    """Where a run does not fit, the remedies make it fit, and are those of an error of a full device."""
    given_settings = llama("engine.zero_stage=1", "engine.activation_checkpointing=none", "train.micro_batch_size=4")
    machines = Machines.of("a100-40", 8)
    found = plan(given_settings, machines, Wish())
    assert not found.fits and found.left_gib < 0 and found.remedies
    offered = {each.key for each in remedies(given_settings, data_size=8, devices=8, on_gpu=True)}
    assert {each.split("=")[0] for each in found.remedies} <= offered | {"engine.offload_param"}
    mended = load_settings(
        LLAMA,
        ["engine.zero_stage=1", "engine.activation_checkpointing=none", "train.micro_batch_size=4", *found.remedies],
    )
    assert plan(mended, machines, Wish()).fits


def test_hours_and_tokens_follow_from_each_other():
    """The tokens that fit into hours take these hours, and money follows from both."""
    machines, price = Machines.of("h200", 64), Price.of("2.5USD")
    by_hours = plan(llama(), machines, Wish(hours=10.0, price=price))
    by_tokens = plan(llama(), machines, Wish(tokens=by_hours.tokens, price=price))
    assert by_tokens.hours == pytest.approx(10.0) and by_hours.hours == pytest.approx(10.0)
    assert by_tokens.cost == pytest.approx(2.5 * 640) and by_tokens.currency == "USD"


def test_failures_make_the_hours_longer_than_the_training():
    found = plan(llama("train.global_batch_size=4096"), Machines.of("h100", 4096), Wish(tokens=15e12))
    assert found.goodput is not None and 0.5 < found.goodput["training"] < 1
    assert found.hours * found.goodput["training"] == pytest.approx(
        found.tokens / (found.tokens_per_second_per_gpu * 4096 * 3600)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Machines.of("h1000", 8),
        lambda: Machines.of("h100", 0),
        lambda: Machines.of("h100", 65_537),
        lambda: Machines.of("h100", 12, nodes=5),
        lambda: Machines.of("h100", 8, network="carrier-pigeon"),
        lambda: Price.of("2.5"),
        lambda: Price.of("USD"),
        lambda: Price.of("$2.5USD"),
        lambda: amount_of("--tokens", "many"),
        lambda: amount_of("--tokens", "0"),
        lambda: Wish(tokens=1e9, hours=3.0),
        lambda: plan(llama(), Machines.of("h100", 7), Wish()),
        lambda: plan(llama("train.global_batch_size=5"), Machines.of("h100", 64), Wish(), searches=True),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_with_a_fix(wrong):
    with pytest.raises(BigtrainError) as caught:
        wrong()
    assert caught.value.found and caught.value.wanted


@given(st.floats(1, 999), st.sampled_from(["", "k", "M", "B", "T"]))
def test_amounts_are_read_with_their_units(number: float, unit: str):
    scale = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[unit]
    assert amount_of("--tokens", f"{number:.3f}{unit}") == pytest.approx(round(number, 3) * scale)


def test_a_change_without_a_check_is_the_change_of_the_settings():
    changed = with_overrides(llama(), {"engine.zero_stage": 3, "train.micro_batch_size": 2})
    assert changed.engine.zero_stage == 3 and changed.train.micro_batch_size == 2
    assert changed == llama("engine.zero_stage=3", "train.micro_batch_size=2")


def test_stages_are_forecast_each_and_together() -> None:
    """Each stage is forecast as a run of its length alone; hours add up, and the layout fits where every stage does."""
    phase = {
        "from_tokens": 9_000_000_000,
        "sequence_length": 65_536,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0},
    }
    sizes = ("model.max_position_embeddings=65536", "train.tokens=10000000000", "train.micro_batch_size=4")
    staged = llama(*sizes, f"data.phases=[{json.dumps(phase)}]")
    machines = Machines.of("h200", 16)
    planned = plan(staged, machines, Wish())
    short, long = planned.stages
    assert (short.sequence_length, short.micro_batch_size) == (8192, 4)
    assert (long.sequence_length, long.first_step) == (65_536, staged.stages[1].first_step)
    alone = plan(staged.at_step(long.first_step), machines, Wish(tokens=long.tokens))
    assert long.seconds == alone.seconds and long.peak_gib == alone.peak_gib
    assert long.hours == pytest.approx(alone.hours)
    assert long.tokens + short.tokens == pytest.approx(planned.tokens)
    assert planned.hours == pytest.approx(long.hours + short.hours)
    assert long.peak_gib > short.peak_gib and planned.fits == (short.fits and long.fits)
    assert not plan(staged.at_step(1), machines, Wish()).stages
