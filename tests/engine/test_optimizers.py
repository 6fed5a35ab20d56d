"""Muon, Lion and parameter groups: right at every ZeRO stage, and not lost on the way to another one."""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.checkpoint import StorageTiers, Tensors, newest_verified
from bigtrain.engine.fragments import OwnedRange
from bigtrain.engine.muon import Muon, _pieces
from bigtrain.engine.muon_rounds import Held, Round, plan_rounds, share_out
from bigtrain.engine.optimizer import build_optimizer, create_moments, parameter_groups
from tests.engine.helpers import STAGES, TinyDecoder, build, launch, plain_loop, settings
from tests.engine.plain_optimizers import plain_optimizers
from tests.matrix import one_of_each, selected, thinned
from tests.refusals import assert_refused

WORLDS = (1, 2)
HALF = 6
OPTIMIZERS = {"lion": {"name": "lion", "betas": [0.9, 0.99]}, "muon": {"name": "muon"}}
GROUPS = [
    {"match": "embed.*", "weight_decay": 0.0, "lr_scale": 0.5},
    {"match": "layers.0.*", "lr_scale": 0.0},
    {"match": "*.weight", "weight_decay": 0.5},
]
# float32: the order of summation, and, for Muon, which bfloat16 of two neighbours its iteration begins with.
# bfloat16: see test_engine_parity. Rates of losses and norms are alike.
TOLERANCES = {"fp32": {"lion": 1e-5, "muon": 2e-4, "adamw": 1e-5}, "bf16": {"lion": 5e-3, "muon": 5e-3}}


# In one process


def train_alone(model: TinyDecoder, case: dict[str, Any], steps: int) -> dict[str, torch.Tensor]:
    """Random gradients through our optimizer over whole parameters, as stage 0 has them."""
    optimizer = build_optimizer(model, settings(case).optimizer)
    algorithms = {p: group["algorithm"] for group in optimizer.param_groups for p in group["params"]}
    create_moments(optimizer, algorithms)
    if isinstance(optimizer, Muon):
        ranges = [OwnedRange(n, tuple(p.shape), 0, p.numel(), p, 0) for n, p in model.named_parameters()]
        optimizer.locate(list(algorithms), ranges, spread=False)
    weights = dict(model.named_parameters())
    for step in range(steps):
        give_gradients(weights, step)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["lr_scale"]
        optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}


def give_gradients(weights: dict[str, torch.Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in weights.values():
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
@pytest.mark.parametrize("groups", [[], GROUPS], ids=["no_groups", "groups"])
def test_every_weight_is_where_the_yardstick_puts_it(name: str, groups: list[Any]) -> None:
    """torch.optim.AdamW and torch.optim.Muon, and Lion in float64 from the paper."""
    case = {"stage": 0, "optimizer": {**OPTIMIZERS.get(name, {"name": name}), "groups": groups}}
    ours = train_alone(build(case), case, steps=20)
    weights = dict(build(case).named_parameters())
    yardstick = plain_optimizers(weights, settings(case).optimizer)
    for step in range(20):
        give_gradients(weights, step)
        for optimizer in yardstick:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * group["lr_scale"]
            optimizer.step()
    before = dict(build(case).named_parameters())
    for weight, wanted in weights.items():
        assert torch.allclose(ours[weight], wanted.detach(), rtol=1e-5, atol=1e-6), weight
        assert torch.equal(ours[weight], before[weight]) == (bool(groups) and weight.startswith("layers.0."))


def test_muon_has_the_matrices_inside_the_blocks_and_adamw_the_rest() -> None:
    model = TinyDecoder()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, settings({"stage": 1, "optimizer": {"name": "muon"}}).optimizer)
    by_algorithm = {g["algorithm"]: {names[p] for h in groups if h["algorithm"] == g["algorithm"] for p in h["params"]}
                    for g in groups}  # fmt: skip
    assert by_algorithm["muon"] == {
        f"layers.{i}.{layer}.weight" for i in (0, 1) for layer in ("qkv", "out", "up", "down")
    }
    assert by_algorithm["adamw"] == set(names.values()) - by_algorithm["muon"]


class Stacked(torch.nn.Module):
    """Three experts' matrices in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Module()])
        self.layers[0].experts = torch.nn.Parameter(torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(0)))


def test_muon_takes_each_expert_s_matrix_by_itself() -> None:
    case = {"stage": 1, "optimizer": {"name": "muon"}}
    ours = train_alone(Stacked(), case, 3)["layers.0.experts"]
    matrices = [torch.nn.Parameter(each.clone()) for each in Stacked().layers[0].experts.detach()]
    chosen = settings(case).optimizer
    plain = torch.optim.Muon(
        matrices, weight_decay=chosen.weight_decay, momentum=chosen.momentum, lr=0.01, adjust_lr_fn="match_rms_adamw"
    )
    model = Stacked()
    for step in range(3):
        give_gradients(dict(model.named_parameters()), step)
        for matrix, gradient in zip(matrices, model.layers[0].experts.grad, strict=True):
            matrix.grad = gradient.clone()
        plain.step()
    assert torch.allclose(ours, torch.stack(matrices).detach(), atol=1e-5)


@given(ranks=st.integers(1, 7), experts=st.integers(1, 5), rows=st.integers(1, 4))
def test_a_stack_of_matrices_cut_anywhere_is_its_matrices(ranks: int, experts: int, rows: int) -> None:
    shape = (experts, rows, 3)
    stack = torch.arange(math.prod(shape))
    part = -(-len(stack) // ranks)
    found = torch.full((experts, rows * 3), -1)
    for rank in range(ranks):
        offset = min(rank * part, len(stack))
        owner = torch.cat((torch.full((5,), -7), stack[offset : offset + part]))
        pieces = _pieces(shape, 0, offset, len(owner) - 5, 5)
        for matrix, (_, first, length, start) in zip(found, pieces, strict=True):
            matrix[first : first + length] = owner[start : start + length]
    assert torch.equal(found.flatten(), stack)


def test_the_first_group_that_matches_counts() -> None:
    model = TinyDecoder()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, settings({"stage": 1, "optimizer": {"groups": GROUPS}}).optimizer)
    treatment = {names[p]: (g["weight_decay"], g["lr_scale"]) for g in groups for p in g["params"]}
    assert treatment["embed.weight"] == (0.0, 0.5)
    assert treatment["layers.0.qkv.weight"] == (0.1, 0.0)
    assert treatment["layers.0.up.bias"] == treatment["layers.0.mlp_norm.weight"] == (0.0, 0.0)
    assert treatment["layers.1.qkv.weight"] == treatment["norm.weight"] == (0.5, 1.0)
    assert treatment["layers.1.up.bias"] == (0.0, 1.0)
    assert len({group["name"] for group in groups}) == len(groups)


@pytest.mark.parametrize(
    ("patterns", "found", "wanted"),
    [
        (["embed_tokens.*"], "embed_tokens.*", "embed.weight"),
        (["*.bias", "*qvk*"], "*qvk*", "layers.0.qkv.weight"),
        (["layers.*", "layers.0.*"], "layers.0.*, after layers.*", "before the general one"),
    ],
)
def test_a_group_for_nothing_is_refused_with_what_it_may_have_meant(
    patterns: list[str], found: str, wanted: str
) -> None:
    chosen = settings({"stage": 1, "optimizer": {"groups": [{"match": pattern} for pattern in patterns]}}).optimizer
    with pytest.raises(BigtrainError, match=rf"optimizer\.groups\.{len(patterns) - 1}") as error:
        build_optimizer(TinyDecoder(), chosen)
    assert error.value.found == found and wanted in str(error.value.wanted)
    assert error.value.shared


def test_freezing_every_parameter_is_refused() -> None:
    chosen = settings({"stage": 1, "optimizer": {"groups": [{"match": "*", "lr_scale": 0}]}}).optimizer
    with pytest.raises(BigtrainError) as refusal:
        build_optimizer(TinyDecoder(), chosen)
    assert_refused(refusal, "optimizer.groups", found="lr_scale 0")
    assert refusal.value.shared


shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[tuple[int, int]], torch.Tensor]:
    """Matrices laid end to end and cut at any places (stages 1 and 2), or each cut into equal parts (stage 3)."""
    matrices, ranks = draw(shapes), draw(st.integers(1, 5))
    sizes = [math.prod(shape) for shape in matrices]
    table = torch.zeros(len(matrices), ranks, 3, dtype=torch.int64)
    if draw(st.booleans()):
        start = 0
        for matrix, size in enumerate(sizes):
            part = -(-size // ranks)
            for rank in range(ranks):
                offset = min(rank * part, size)
                table[matrix, rank] = torch.tensor([offset, min(part, size - offset), start])
            start += part
        return matrices, table
    cuts = sorted(draw(st.lists(st.integers(0, sum(sizes)), min_size=ranks - 1, max_size=ranks - 1)))
    for rank, (left, right) in enumerate(itertools.pairwise([0, *cuts, sum(sizes)])):
        begin = 0
        for matrix, size in enumerate(sizes):
            low, high = max(begin, left), min(begin + size, right)
            if low < high:
                table[matrix, rank] = torch.tensor([low - begin, high - low, low - left])
            begin += size
    return matrices, table


def plans_of(matrices: list[tuple[int, int]], table: torch.Tensor) -> list[list[Round]]:
    """Of each rank, from a table [matrices, ranks, 3] of offset, length and start: each is given what is its own."""
    lengths = table[:, :, 1].tolist()
    held = [
        Held(number, shape, max(of_ranks), of_ranks.index(max(of_ranks)))
        for number, (shape, of_ranks) in enumerate(zip(matrices, lengths, strict=True))
    ]
    work = share_out(held, table.shape[1])
    return [
        plan_rounds(work, table[:, rank].tolist(), table[[each.matrix for each in mine], :, :2].transpose(0, 1), rank)
        for rank, mine in enumerate(work)
    ]


@hypothesis_settings(max_examples=200)
@given(layout=layouts())
def test_each_matrix_comes_together_once_and_each_piece_gets_home(
    layout: tuple[list[tuple[int, int]], torch.Tensor],
) -> None:
    """What `all_to_all_single` moves, moved by hand between the owners of all ranks."""
    matrices, table = layout
    ranks = range(table.shape[1])
    wholes = [torch.rand(math.prod(shape)) for shape in matrices]
    owners = [torch.zeros(int((table[:, rank, 1] + table[:, rank, 2]).max())) for rank in ranks]
    for matrix, rank in itertools.product(range(len(matrices)), ranks):
        offset, length, start = table[matrix, rank].tolist()
        owners[rank][start : start + length] = wholes[matrix][offset : offset + length]
    plans = plans_of(matrices, table)
    assert len({len(plan) for plan in plans}) == 1
    met = []
    for views in zip(*plans, strict=True):
        assert len({view.is_local for view in views}) == 1
        for worker, sender in itertools.product(ranks, ranks):
            assert views[sender].sent[worker] == views[worker].received[sender]
            assert not views[0].is_local or worker == sender or views[sender].sent[worker] == 0
        for worker, view in enumerate(views):
            if view.shape is None:
                assert not any(view.received)
                continue
            whole = torch.full((math.prod(view.shape),), torch.nan)
            for sender, part in enumerate(view.parts_of_matrix):
                whole[part] = owners[sender][views[sender].parts_of_owner[worker]]
            met.append(whole)
            assert {v.scales[worker] for v in views} == {0.2 * math.sqrt(max(view.shape))}
    assert sorted(m.tolist() for m in met) == sorted(w.tolist() for w in wholes)


@given(shapes=shapes, ranks=st.integers(1, 5))
def test_matrices_in_equal_parts_are_shared_out_evenly(shapes: list[tuple[int, int]], ranks: int) -> None:
    table = torch.tensor([[(rank * a * b, a * b, 0) for rank in range(ranks)] for a, b in shapes])
    whole = [(ranks * a, b) for a, b in shapes]
    loads = [sum(math.prod(r.shape) * min(r.shape) for r in plan if r.shape) for plan in plans_of(whole, table)]
    assert max(loads) - min(loads) <= max(math.prod(shape) * min(shape) for shape in whole)


# On many


def cases(name: str) -> list[dict[str, Any]]:
    """bfloat16 has an optimizer of its own in DeepSpeed at stage 1."""
    found = [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32"), (3, "bf16")]
    return [{"stage": s, "precision": p, "max_grad_norm": 0.5, "optimizer": OPTIMIZERS[name]} for s, p in found]


def saved(root: Path, case: dict[str, Any], world: int) -> Path:
    name = case["optimizer"]["name"] + ("-groups" if "groups" in case["optimizer"] else "")
    return root / f"{name}-{case['stage']}-{case['precision']}-{world}"


def other_shapes(case: dict[str, Any], world: int, chosen: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """Two of the checkpoints that this shape has to load: of other stages, and of this and another world size."""
    alike = [other for other in chosen if other["optimizer"] == case["optimizer"]]
    others = [other for other in alike if other["stage"] != case["stage"]]
    return [(others[case["stage"] % len(others)], 3 - world), (others[-1 - case["stage"] % len(others)], world)]


def grouped(stage: int) -> dict[str, Any]:
    return {"stage": stage, "precision": "fp32", "optimizer": {"name": "muon", "groups": GROUPS}}


WITHOUT_GROUPS = {"stage": 1, "precision": "fp32", "optimizer": {"name": "muon"}}
Key = tuple[str, str, int]
ALL = [case for name in OPTIMIZERS for case in cases(name)]


def kinds(case: dict[str, Any]) -> dict[str, Any]:
    """Muon works differently at each stage; Lion only where state is whole and where it is cut."""
    name, stage = case["optimizer"]["name"], case["stage"]
    return {"precision": (name, case["precision"]), "stage": (name, stage if name == "muon" else min(stage, 1))}


QUICK = one_of_each(ALL, kinds)
FLOAT32 = [case for case in thinned(ALL, QUICK) if case.values[0]["precision"] == "fp32"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("optimizers")


@pytest.fixture(scope="module")
def chosen(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The cases of this session."""
    return selected(request, "case")


@pytest.fixture(scope="module")
def first(root: Path, chosen: list[dict[str, Any]]) -> dict[Key, Any]:
    """Half of the steps, a checkpoint, and the other half, whose losses and norms are the result."""
    results: dict[Key, Any] = {}
    for world in WORLDS:
        jobs = [
            {"do": "train_and_save", "case": case, "steps": HALF, "to": str(saved(root, case, world))}
            for case in [*chosen, grouped(1)]
        ]
        if world == 2:
            jobs += [{"do": "not_finite", "case": case} for case in chosen if case["precision"] == "fp32"]
        results |= run(jobs, world, root / f"first-{world}")
    return results


@pytest.fixture(scope="module")
def second(root: Path, chosen: list[dict[str, Any]], first: Any) -> dict[Key, Any]:
    """In new processes: the other half again, and checkpoints of other shapes loaded and saved again."""
    results: dict[Key, Any] = {}
    for world in WORLDS:
        jobs: list[dict[str, Any]] = []
        for case in chosen:
            jobs.append({"do": "resume", "case": case, "from": checkpoint(saved(root, case, world))})
            sources = [saved(root, *other) for other in other_shapes(case, world, chosen)]
            to = [str(resaved(root, source, case, world)) for source in sources]
            jobs.append({"do": "reshard", "case": case, "from": [checkpoint(each) for each in sources], "to": to})
        with_groups = checkpoint(saved(root, grouped(1), world))
        jobs += [
            {"do": "resume", "case": case, "from": with_groups} for case in (*map(grouped, STAGES), WITHOUT_GROUPS)
        ]
        results |= run(jobs, world, root / f"second-{world}")
    return results


def resaved(root: Path, source: Path, case: dict[str, Any], world: int) -> Path:
    return root / "again" / f"{source.name}-to-{saved(root, case, world).name}"


def checkpoint(directory: Path) -> str:
    return str(directory / f"checkpoints/step-{HALF:08d}")


def key(do: str, case: dict[str, Any], world: int) -> Key:
    return do, json.dumps(case, sort_keys=True), world


def run(jobs: list[dict[str, Any]], world: int, directory: Path) -> dict[Key, Any]:
    results = launch(Path(__file__).with_name("worker.py"), jobs, world, directory, timeout=280)
    return {key(job["do"], job["case"], world): result for job, result in zip(jobs, results, strict=True)}


@functools.cache
def reference(case: str) -> dict[str, Any]:
    whole = plain_loop(json.loads(case), 2 * HALF)
    return {kind: values[HALF:] for kind, values in whole.items()}


def plain(case: dict[str, Any]) -> dict[str, Any]:
    return reference(json.dumps({**case, "stage": 1}, sort_keys=True))


def assert_near(ours: dict[str, Any], case: dict[str, Any]) -> None:
    tolerance = TOLERANCES[case["precision"]][case["optimizer"]["name"]]
    assert ours["losses"] == pytest.approx(plain(case)["losses"], abs=tolerance)
    assert ours["norms"] == pytest.approx(plain(case)["norms"], rel=2 * tolerance)


def case_name(case: dict[str, Any]) -> str:
    return f"{case['optimizer']['name']}-stage{case['stage']}-{case['precision']}"


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS, ids=["alone", "two"])
@pytest.mark.parametrize("case", thinned(ALL, QUICK), ids=case_name)
def test_twelve_steps_equal_a_plain_loop(first: dict[Key, Any], case: dict[str, Any], world: int) -> None:
    """The last six of them, which would differ if the first did."""
    assert_near(first[key("train_and_save", case, world)], case)
    assert plain(case)["losses"][-1] < 4.2  # it did train: 4.76 at first


@pytest.mark.slow
@pytest.mark.parametrize("case", FLOAT32, ids=case_name)
def test_a_gradient_that_is_not_finite_changes_nothing(first: dict[Key, Any], case: dict[str, Any]) -> None:
    result = first[key("not_finite", case, 2)]
    assert (result["applied"], result["norm"], result["unchanged"], result["steps"]) == (False, math.inf, True, 1)
    assert math.isfinite(result["after"])


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS, ids=["alone", "two"])
@pytest.mark.parametrize("case", thinned(ALL, QUICK), ids=case_name)
def test_resume_repeats_the_curve_bit_for_bit(
    first: dict[Key, Any], second: dict[Key, Any], case: dict[str, Any], world: int
) -> None:
    assert second[key("resume", case, world)] == first[key("train_and_save", case, world)]


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS, ids=["alone", "two"])
@pytest.mark.parametrize("case", thinned(ALL, QUICK), ids=case_name)
def test_moments_move_bit_identical_to_another_stage_and_world_size(
    root: Path, chosen: list[dict[str, Any]], second: dict[Key, Any], case: dict[str, Any], world: int
) -> None:
    assert second[key("reshard", case, world)] == [{"weights_are_rounded_masters": True, "optimizer_steps": HALF}] * 2
    for other in other_shapes(case, world, chosen):
        source = saved(root, *other)
        before, after = (everything(run, case) for run in (source, resaved(root, source, case, world)))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[tensor], after[tensor]) for tensor in before)
        assert all(before[name, kind].any() for name, kind in before if kind != "master")


def everything(run: Path, case: dict[str, Any]) -> dict[tuple[str, str], torch.Tensor]:
    """Every tensor that there has to be."""
    newest = newest_verified(StorageTiers.of(run)).newest
    assert newest is not None
    tensors = Tensors(newest)
    by_name = {name: ["master", *moments(name, case)] for name, _ in build(case).named_parameters()}
    assert set(newest.manifest.kinds) == {kind for kinds in by_name.values() for kind in kinds}
    return {(name, kind): tensors.read(name, kind) for name, kinds in by_name.items() for kind in kinds}


def moments(name: str, case: dict[str, Any]) -> list[str]:
    if case["optimizer"]["name"] == "lion":
        return ["exp_avg"]
    is_matrix = name.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight"))
    return ["momentum_buffer"] if is_matrix else ["exp_avg", "exp_avg_sq"]


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS, ids=["alone", "two"])
@pytest.mark.parametrize("stage", STAGES)
def test_groups_survive_a_resume_at_any_stage(second: dict[Key, Any], stage: int, world: int) -> None:
    """Nothing of them is in the checkpoint, and yet the curve is that of one loop with these groups throughout."""
    case = grouped(stage)
    assert_near(second[key("resume", case, world)], case)
    with pytest.raises(AssertionError):  # as it would be if they were lost
        assert_near(second[key("resume", WITHOUT_GROUPS, world)], case)


@pytest.mark.slow
def test_a_learning_rate_of_nought_freezes(root: Path, first: dict[Key, Any]) -> None:
    newest = newest_verified(StorageTiers.of(saved(root, grouped(1), 2))).newest
    assert newest is not None
    tensors, initial = Tensors(newest), dict(build(grouped(1)).named_parameters())
    frozen = {name for name, weight in initial.items() if torch.equal(tensors.read(name), weight.detach())}
    assert frozen == {name for name in initial if name.startswith("layers.0.")}


@pytest.mark.slow
def test_frozen_parameters_count_neither_in_norm_nor_in_clipping(first: dict[Key, Any]) -> None:
    """The plain loop leaves their gradients out of the norm that it clips by, and reports a larger one with them."""
    case = grouped(1)
    counted = plain_loop({**case, "frozen_count": True}, 2 * HALF)["norms"][HALF:]
    for world in WORLDS:
        ours = first[key("train_and_save", case, world)]["norms"]
        assert ours == pytest.approx(plain(case)["norms"], rel=2 * TOLERANCES["fp32"]["muon"])
        assert all(norm < whole * 0.99 for norm, whole in zip(ours, counted, strict=True))
