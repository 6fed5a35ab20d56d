"""What a ladder makes of its target: smaller models in proportion, and runs whose settings follow by rule."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.model import build_model
from bigtrain.trials.ladder.rungs import FEWEST_STEPS, Recipe, Rules, whole_batch
from bigtrain.trials.ladder.sizes import parameters_of, sizes_below, spread_sizes
from tests.refusals import assert_refused
from tests.trials.ladder.helpers import rules_of, target

WHOLE = target()
SIZES = sizes_below(WHOLE, "all")


def test_smaller_models_keep_the_proportions_of_the_target():
    """Heads keep their width; width, depth and feed-forward width shrink together; no model is above half."""
    whole = target().model
    sizes = sizes_below(target(), "all")
    assert [size.parameters for size in sizes] == sorted({size.parameters for size in sizes})
    assert sizes[-1].parameters <= parameters_of(whole, "all") / 2
    for model in (size.model for size in sizes):
        share = model.num_attention_heads / whole.num_attention_heads
        assert model.head_width == whole.head_width and model.hidden_size == share * whole.hidden_size
        assert model.num_hidden_layers == max(2, round(share * whole.num_hidden_layers))
        assert model.intermediate_size == pytest.approx(share * whole.intermediate_size, abs=4)
        assert model.num_attention_heads % model.key_value_heads == 0


@pytest.mark.parametrize("choices", [
    {}, {"tie_word_embeddings": True}, {"position_embedding": "learned"}, {"family": "gpt2"},
    {"num_experts": 4, "num_experts_per_tok": 2},
])  # fmt: skip
def test_parameters_are_those_of_the_built_model(choices):
    """N is counted from the parameters of the model itself, by name: embeddings, positions and the head apart. Of
    experts it counts those that are at work."""
    model = ModelSettings.model_validate(target().model.model_dump(exclude_unset=True) | choices)
    with torch.device("meta"):
        named = dict(build_model(model).named_parameters())

    def at_work(name):
        return named[name].numel() * (0.5 if ".experts." in name else 1)

    ends = [name for name in named if name.startswith(("embed_", "lm_head", "position"))]
    assert parameters_of(model, "all") == sum(map(at_work, named))
    assert parameters_of(model, "non-embedding") == sum(at_work(name) for name in named if name not in ends)


def test_sizes_are_spread_evenly_up_to_the_largest():
    """At most as many as asked for, the largest among them, over no more than the span."""
    sizes = sizes_below(target(), "all")
    chosen = spread_sizes(sizes, 4, 32.0)
    assert 3 <= len(chosen) <= 4 and chosen[-1] == sizes[-1]
    assert chosen[-1].parameters <= 32 * chosen[0].parameters
    steps = [math.log(b.parameters / a.parameters) for a, b in pairwise(chosen)]
    assert max(steps) < 2.5 * min(steps)


def test_a_target_with_too_few_heads_is_refused():
    """Three heads have two smaller models, which are no ladder."""
    few = target(model={"num_attention_heads": 3, "num_key_value_heads": 3})
    with pytest.raises(BigtrainError) as refused:
        sizes_below(few, "all")
    assert_refused(refused, "too few smaller models", found="3 heads", fix="model.num_attention_heads=6")


@given(batch=st.floats(1, 5000), ranks=st.sampled_from([1, 2, 3, 8]))
def test_a_batch_divides_and_is_near_what_was_asked(batch, ranks):
    """A whole number of sequences for each rank, within an eighth where there are four for each."""
    found = whole_batch(batch, ranks)
    assert found >= ranks and found % ranks == 0
    assert abs(found - batch) <= max(ranks, batch / 8)


@given(
    tokens=st.floats(3e6, 4e8), batch=st.integers(2, 256), ranks=st.sampled_from([1, 2, 4]), number=st.integers(0, 5)
)
def test_a_rung_follows_its_recipe_and_the_target(tokens, batch, ranks, number):
    """Tokens, batch, rate, shares of the schedule and muP's base are those of the rules; the rest is the target's."""
    whole, size = WHOLE, SIZES[number]
    rules = Rules(whole, ranks)
    run = rules.rung(size, Recipe(batch, 2e-3, tokens), name="rung").settings
    train = run.train
    assert train.global_batch_size % (ranks * train.micro_batch_size) == 0
    assert train.micro_batch_size <= whole.train.micro_batch_size
    step = train.global_batch_size * 256
    assert run.total_steps * step == pytest.approx(tokens, abs=step)
    rate = 2e-3 * math.sqrt(train.global_batch_size / batch)
    assert run.optimizer.learning_rate == pytest.approx(rate, rel=1e-3)
    share = run.total_steps / whole.total_steps
    assert run.schedule.warmup_steps == pytest.approx(500 * share, abs=1)
    assert run.schedule.decay_steps == pytest.approx(5000 * share, abs=1)
    assert run.model.mup_base_hidden_size == 384 and run.model.hidden_size == size.model.hidden_size
    assert run.evaluate.every_steps == run.total_steps
    assert (run.optimizer.weight_decay, run.data.dir) == (whole.optimizer.weight_decay, whole.data.dir)


def test_batch_and_rate_grow_with_the_tokens():
    """The batch as D^0.571, the rate as its root, and back again."""
    recipe = Recipe(16.0, 1e-3, 1e6)
    later = recipe.at(64e6)
    assert later.global_batch_size == pytest.approx(16 * 64**0.571)
    assert later.learning_rate == pytest.approx(1e-3 * 64 ** (0.571 / 2))
    assert later.at(1e6).global_batch_size == pytest.approx(16.0)


def test_phases_keep_their_share_and_batch_skips_are_dropped():
    """What is said of the target's tokens holds at the same share of a rung."""
    whole = target(
        data={
            **target().data.model_dump(mode="json", exclude_unset=True),
            "phases": [{"from_tokens": 215_000_000, "weights": {"c": 1.0}}],
            "skip": [{"steps": [1, 2], "reason": "bad"}, {"source": "c", "files": "*", "reason": "x", "from_step": 9}],
        }
    )
    run = rules_of(whole).rung(sizes_below(whole, "all")[0], Recipe(16, 1e-3, 4_300_000), name="r").settings
    assert [phase.from_tokens for phase in run.data.phases] == [pytest.approx(2_150_000, rel=1e-3)]
    assert [(skip.files, skip.from_step) for skip in run.data.skip] == [("*", 1)]


def test_muon_is_not_scaled_by_width():
    """Muon's updates do not depend on width, and config refuses muP with it."""
    whole = target(optimizer={"name": "muon"})
    run = rules_of(whole).rung(sizes_below(whole, "all")[0], Recipe(16, 1e-3, 4e6), name="r").settings
    assert run.model.mup_base_hidden_size is None


def test_a_base_width_of_the_target_stays():
    """Where the target says at which width its rate was tuned, that stays."""
    whole = target(model={**target().model.model_dump(exclude_unset=True), "mup_base_hidden_size": 128})
    run = rules_of(whole).rung(sizes_below(whole, "all")[0], Recipe(16, 1e-3, 4e6), name="r").settings
    assert run.model.mup_base_hidden_size == 128


def test_a_rung_of_too_few_steps_is_refused():
    """A schedule needs some steps."""
    whole = target()
    with pytest.raises(BigtrainError) as refused:
        rules_of(whole).rung(sizes_below(whole, "all")[0], Recipe(64, 1e-3, 1e5), name="r")
    assert_refused(refused, "too few steps", wanted=str(FEWEST_STEPS), fix="--tokens")
