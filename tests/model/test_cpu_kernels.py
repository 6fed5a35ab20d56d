"""The kernels in C++ compute what the definitions say for any packing, and where they cannot run PyTorch does."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bigtrain.model import build_model
from bigtrain.model.attention.attention_backends import BACKENDS, attention_backend, reference
from bigtrain.model.attention.attention_rule import AttentionRule
from bigtrain.model.cpu import cpu_kernels
from bigtrain.model.cpu.cpu_products import CpuLinear, transposed
from bigtrain.model.loss.loss_softmax import SoftmaxInPyTorch, softmax_for, softmax_in_cpp
from bigtrain.model.loss.shaping import Shaping
from tests import forkserver
from tests.model.helpers import packed_batch, relative_error, small_settings
from tests.model.loss_helpers import assert_equals_float64, chunk

PLAIN = AttentionRule(scale=0.3)


@pytest.fixture(scope="module")
def works() -> None:
    """Skip where this processor is not one that the kernels are for; a missing compiler is no excuse in CI."""
    if not cpu_kernels.is_for_this_cpu():
        pytest.skip("this CPU has no AVX512-BF16")
    assert cpu_kernels.obstacle() is None


@contextmanager
def threads_of_torch(number: int) -> Iterator[None]:
    """As many threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def attend(
    name: str, tensors: tuple[Tensor, ...], cu_seqlens: Tensor, rule: AttentionRule, dtype: torch.dtype
) -> list[Tensor]:
    """Output and the gradients of query, key and value."""
    leaves = [x.to(dtype).requires_grad_() for x in tensors[:3]]
    output = BACKENDS[name](*leaves, cu_seqlens, int(cu_seqlens.diff().max()), rule)
    return [output.detach(), *torch.autograd.grad(output, leaves, tensors[3].to(dtype))]


def random_tensors(tokens: int, heads: int, key_heads: int, width: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(tokens, n, width, generator=generator).bfloat16() for n in (heads, key_heads, key_heads, heads)
    )


@settings(max_examples=60, deadline=None)
@given(
    boundaries=st.sets(st.integers(1, 599), max_size=5),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1), (2, 2)]),
    width=st.sampled_from([32, 64, 96, 128]),
    window=st.none() | st.sampled_from([1, 2, 31, 127, 128, 129, 200, 257, 600]),
    two_sided=st.booleans(),
    threads=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**20),
)
def test_attention_is_as_exact_as_its_rounded_weights(
    works: None,
    boundaries: set[int],
    heads: tuple[int, int],
    width: int,
    window: int | None,
    two_sided: bool,
    threads: int,
    seed: int,
) -> None:
    """Attention is as exact as its rounded weights for any packing and window, on one side and on both."""
    tensors = random_tensors(600, *heads, width, seed)
    cu_seqlens = torch.tensor([0, *sorted(boundaries), 600], dtype=torch.int32)
    rule = replace(PLAIN, scale=width**-0.5, window=window, two_sided=two_sided)
    with threads_of_torch(threads):
        found = attend("cpp", tensors, cu_seqlens, rule, torch.bfloat16)
    wanted = attend("reference", tensors, cu_seqlens, rule, torch.float64)
    for what, a, b in zip(("output", "d query", "d key", "d value"), found, wanted, strict=True):
        assert a.dtype == torch.bfloat16 and a.shape == b.shape
        assert relative_error(a, b, floor=1.0) < 6e-3, what


@pytest.mark.parametrize("spread", [0.0, 15.0, 200.0])
@pytest.mark.parametrize("two_sided", [False, True])
def test_attention_keeps_its_accuracy_when_scores_are_large(works: None, spread: float, two_sided: bool) -> None:
    """Scores up to 800: those left out, equal ones, and such as leave one key all the weight."""
    query, key, value, grad = random_tensors(300, 2, 1, 64, seed=2)
    tensors = (query * spread, key, value, grad)
    cu_seqlens, rule = torch.tensor([0, 300], dtype=torch.int32), AttentionRule(64**-0.5, two_sided=two_sided)
    found = attend("cpp", tensors, cu_seqlens, rule, torch.bfloat16)
    wanted = attend("reference", tensors, cu_seqlens, rule, torch.float64)
    for a, b in zip(found, wanted, strict=True):
        assert a.isfinite().all()
        assert relative_error(a, b, floor=1e-3) < 2e-2


@pytest.mark.parametrize("rule", [PLAIN, replace(PLAIN, two_sided=True)])
def test_attention_reads_no_other_document(works: None, rule: AttentionRule) -> None:
    """Not even to multiply it by zero: infinities beside a document leave it alone."""
    tensors = random_tensors(300, 2, 1, 32, seed=3)
    alone = attend("cpp", tuple(x[100:180] for x in tensors), torch.tensor([0, 80]), rule, torch.bfloat16)
    for x in tensors:
        x[:100], x[180:] = float("inf"), float("nan")
    among = attend("cpp", tensors, torch.tensor([0, 100, 180, 300]), rule, torch.bfloat16)
    for a, b in zip(alone, among, strict=True):
        assert torch.equal(a, b[100:180])


def test_attention_repeats_itself_whatever_the_number_of_threads(works: None) -> None:
    tensors, cu_seqlens = random_tensors(700, 4, 2, 64, seed=4), torch.tensor([0, 10, 300, 700], dtype=torch.int32)
    found = []
    for threads in (1, 2, 5):
        with threads_of_torch(threads):
            found.append(attend("cpp", tensors, cu_seqlens, PLAIN, torch.bfloat16))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    classes=st.integers(2, 300),
    size=st.sampled_from([0.1, 3.0, 40.0]),
    scaling=st.sampled_from([1.0, 3.0]),
    z_loss_coef=st.sampled_from([0.0, 1e-2]),
    smoothing=st.sampled_from([0.0, 0.1]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**20),
)
def test_softmax_is_as_exact_as_float32(
    works: None,
    rows: int,
    classes: int,
    size: float,
    scaling: float,
    z_loss_coef: float,
    smoothing: float,
    ignored: float,
    seed: int,
) -> None:
    products, labels = chunk(rows, classes, torch.bfloat16, size, seed, ignored)
    shaping = Shaping(scaling, None, z_loss_coef, smoothing)
    gradient = products.clone()
    loss = softmax_in_cpp(gradient, labels, shaping, True)
    assert_equals_float64(products, labels, shaping, loss, gradient)
    again = products.clone()
    assert torch.equal(softmax_in_cpp(again, labels, shaping, False), loss)
    assert torch.equal(again, products)  # without gradients nothing is written


def test_softmax_is_taken_where_it_can_be(works: None) -> None:
    narrow, wide = torch.empty(4, 4, dtype=torch.bfloat16), torch.empty(4, 4)
    assert softmax_for(narrow, Shaping())[0] is softmax_in_cpp
    assert isinstance(softmax_for(narrow, Shaping(softcap=3.0))[0], SoftmaxInPyTorch)
    assert isinstance(softmax_for(wide, Shaping())[0], SoftmaxInPyTorch)


@pytest.mark.parametrize("label", [5, -1])
def test_softmax_refuses_a_label_that_is_no_class(works: None, label: int) -> None:
    products, labels = chunk(3, 5, torch.bfloat16, ignored=0.0)
    labels[1] = label
    with pytest.raises(IndexError, match="1 of 3 labels are none of the 5 classes"):
        softmax_in_cpp(products, labels, Shaping(), True)


@given(rows=st.integers(0, 150), columns=st.integers(1, 150))
@settings(max_examples=80, deadline=None)
def test_transposing_moves_every_number(works: None, rows: int, columns: int) -> None:
    x = torch.randn(rows, columns).bfloat16()
    assert torch.equal(transposed(x), x.t()) and transposed(x).is_contiguous()


@pytest.mark.parametrize(("wide", "narrow"), [(96, 32), (32, 96)])
def test_a_weights_gradient_is_the_same_transposed_or_not(works: None, wide: int, narrow: int) -> None:
    layer = CpuLinear(wide, narrow, bias=False).bfloat16()
    x, grad = torch.randn(3, 40, wide).bfloat16(), torch.randn(3, 40, narrow).bfloat16()
    layer(x).backward(grad)
    wanted = grad.flatten(0, 1).double().t() @ x.flatten(0, 1).double()
    assert layer.weight.grad is not None and layer.weight.grad.is_contiguous()
    assert relative_error(layer.weight.grad, wanted) < 2**-8


def test_a_model_is_as_near_to_float64_as_without_kernels(works: None, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = packed_batch(3, 96, 96, seed=5)
    shape = small_settings(hidden_size=64, num_attention_heads=2, num_key_value_heads=1)

    def gradients(dtype: torch.dtype) -> dict[str, Tensor]:
        model = build_model(shape)
        model.init_weights(1)
        model = model.to(dtype)
        model(**batch).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    exact, with_kernels = gradients(torch.float64), gradients(torch.bfloat16)
    for module in (
        "attention.attention_backends.obstacle_to_cpu_kernels",
        "loss.loss_softmax.obstacle",
        "cpu.cpu_products.obstacle",
    ):
        monkeypatch.setattr(f"bigtrain.model.{module}", lambda: "another CPU")
    without = gradients(torch.bfloat16)
    errors = [sum(relative_error(found[name], exact[name]) for name in exact) for found in (with_kernels, without)]
    assert errors[0] <= 1.05 * errors[1]


def test_auto_takes_the_kernel_for_what_it_can_do(works: None) -> None:
    query = torch.empty(8, 4, 64, dtype=torch.bfloat16)
    assert attention_backend("auto", query, PLAIN) is BACKENDS["cpp"]
    assert attention_backend("auto", query, replace(PLAIN, window=3)) is BACKENDS["cpp"]
    assert attention_backend("auto", query, replace(PLAIN, two_sided=True)) is BACKENDS["cpp"]
    for other, rule in (
        (query, replace(PLAIN, softcap=2.0)),
        (query, replace(PLAIN, distance_bias=torch.zeros(4, 8))),
        (query.float(), PLAIN),
        (query[..., :24], PLAIN),
    ):
        assert attention_backend("auto", other, rule) is BACKENDS["blockwise"]


def test_several_processes_compile_once_and_the_next_ones_not_at_all(
    works: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\necho called >> {tmp_path}/calls\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    script = tmp_path / "load.py"
    script.write_text("from bigtrain.model.cpu import cpu_kernels\nassert cpu_kernels.obstacle() is None\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler))
    for processes in (2, 1):
        started = [forkserver.Started(None, (script,)) for _ in range(processes)]
        assert [process.finish().returncode for process in started] == [0] * processes
    assert (tmp_path / "calls").read_text().splitlines() == ["called"]
    assert len(list((tmp_path / "cache" / "bigtrain").glob("*.so"))) == 1


@pytest.mark.parametrize("fault", ["no compiler", "a compiler that fails"])
def test_without_the_kernels_everything_is_computed_by_pytorch(
    works: None, kernels_forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if fault == "no compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
        wanted = "a C\\+\\+ compiler"
    else:
        compiler = tmp_path / "c++"
        compiler.write_text("#!/bin/sh\necho 'x.cpp:1: error: cannot find <x>' >&2\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        wanted = "cannot find <x>"
    assert re.search(wanted, cpu_kernels.obstacle() or "")
    query = torch.randn(8, 2, 32).bfloat16()
    attend_with = attention_backend("auto", query, PLAIN)
    assert attend_with is BACKENDS["blockwise"]
    cu_seqlens = torch.tensor([0, 8])
    found = attend_with(query, query, query, cu_seqlens, 8, PLAIN)
    assert relative_error(found, reference(*(query.double(),) * 3, cu_seqlens, 8, PLAIN)) < 1e-2


def test_without_a_folder_to_keep_them_the_kernels_are_there_too(
    works: None, kernels_forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are compiled for this process alone."""
    (tmp_path / "bigtrain").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cpu_kernels.obstacle() is None
    assert [path.name for path in tmp_path.iterdir()] == ["bigtrain"]


def test_the_description_of_a_call_is_laid_out_as_in_the_source() -> None:
    """Eleven fields of eight bytes, or aligned to eight; the last two are of four bytes each."""
    assert ctypes.sizeof(cpu_kernels.Call) == 80 and cpu_kernels.Call.window.offset == 48
    assert cpu_kernels.Call.drop_scale.offset == 76
