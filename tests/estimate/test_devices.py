"""Datasheets: found by any usual name, a user's own ones checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigtrain.base import BigtrainError
from bigtrain.estimate import device, device_names, read_datasheets
from bigtrain.estimate.devices import DATASHEETS
from tests.refusals import assert_refused

OWN = """
my-card:
  aliases: [card]
  tflops: {bf16: 100}
  memory_mib: 40960
  memory_gbs: 1000
  link_gbs: 50
  multiprocessors: 64
"""


@pytest.mark.parametrize(
    ("name", "known"),
    [("H100-SXM", "h100"), ("NVIDIA H200", "h200"), ("nvidia a100 sxm 40", "a100-40"), ("A100-SXM-80", "a100-80"),
     ("H100-SXM-96GB-500W", "h100-96-500w"), ("V100-SXM (DGX-2 class)", "v100-32"), ("AMD MI300X", "mi300x")],
)  # fmt: skip
def test_a_device_is_found_by_its_usual_names(name: str, known: str) -> None:
    assert device(name).name == known


def test_no_name_stands_for_two_devices() -> None:
    names = [name for found in read_datasheets(DATASHEETS) for name in (found.name, *found.aliases)]
    assert len(names) == len(set(names)) and len(device_names()) > 30


def test_datasheets_are_possible() -> None:
    """No measured product is faster than the peak, and lower precision is never slower."""
    for name in device_names():
        found = device(name)
        for precision, rate in found.matmul_tflops.items():
            assert rate * 1e12 <= found.peak(precision)
        assert found.peak("fp8") >= found.peak("bf16") >= found.peak("fp32")
        assert found.memory_bytes > 2**33 and found.memory_gbs > 100


def test_an_unknown_device_is_refused_with_the_nearest() -> None:
    with pytest.raises(BigtrainError) as refused:
        device("h1000")
    assert_refused(refused, "h1000", wanted="h100", fix="YAML")


def test_a_datasheet_of_the_user_s_own_is_read(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    found = device("Card", tmp_path / "own.yaml")
    assert found.peak("fp8") == 100e12 and found.peak("fp16") == 100e12 and found.memory_bytes == 40 * 2**30


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("memory_gbs: 1000", "memory_gbs: -1", "memory_gbs is wrong"),
        ("memory_gbs: 1000", "memory: 1000", "no such key"),
        ("  memory_gbs: 1000\n", "", "more keys"),
        ("{bf16: 100}", "{int8: 100}", "tflops is wrong"),
        ("{bf16: 100}", "{fp8: 100}", "no type that a model trains in"),
        (OWN, "- 1", "no file of datasheets"),
        (OWN, "a: [", "cannot be read"),
    ],
)
def test_a_wrong_datasheet_is_refused(tmp_path: Path, old: str, new: str, what: str) -> None:
    (tmp_path / "own.yaml").write_text(OWN.replace(old, new))
    with pytest.raises(BigtrainError) as refused:
        read_datasheets(tmp_path / "own.yaml")
    assert_refused(refused, what)
