"""The loss's kernel compiled for GPUs on a machine without one: run by test_loss_kernel.py in a process of its
own, so that Triton is in no other."""

from __future__ import annotations

import logging
import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bigtrain.model.loss import loss_softmax
from bigtrain.model.loss.loss_kernel import BLOCK, WARPS, softmax_of_a_row
from bigtrain.model.loss.shaping import Shaping


@pytest.mark.parametrize("capped", [False, True], ids=["plain", "capped"])
@pytest.mark.parametrize("target", ["bf16 80", "bf16 90", "fp32 90", "bf16 100"])
def test_its_machine_code_reads_16_bytes_at_a_time_and_keeps_all_in_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, capped: bool
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kind, capability = target.split()[0], int(target.split()[1])
    pointers = {"products": f"*{kind}", "labels": "*i64", "losses": "*fp32"}
    numbers = dict.fromkeys(("scale", "softcap", "z_loss_coef", "label_smoothing"), "fp32")
    constants = {"CLASSES": 128_256, "IGNORE_INDEX": -100, "CAPPED": capped, "GRADIENTS": True, "BLOCK": BLOCK}
    signature = {**pointers, **numbers, **dict.fromkeys(constants, "constexpr")}
    aligned = {(0,): [["tt.divisibility", 16]], (2,): [["tt.divisibility", 16]]}  # as a launch finds them
    source = ASTSource(softmax_of_a_row, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS})

    code = compiled.asm["ptx"]
    machine = re.search(r"\.target (sm_\w+)", code)
    assert machine and machine[1].startswith(f"sm_{capability}")
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    assert ".f64" not in code and ".local" not in code
    wide = BLOCK * (4 if kind == "fp32" else 2) // (16 * 32 * WARPS)  # of one pass over a block
    assert len(re.findall(r"ld\.global\.v4\.b32", code)) == 2 * wide
    assert len(re.findall(r"st\.global\.v4\.b32", code)) == 2 * wide  # gradients, and the zeros of an ignored row
    if capability == 90:
        assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
        (tmp_path / "kernel.ptx").write_text(code)
        command = [assembler, "-v", "--gpu-name", machine[1], "-o", tmp_path / "kernel.cubin", tmp_path / "kernel.ptx"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        assert "0 bytes spill stores, 0 bytes spill loads" in said
        registers = re.search(r"Used (\d+) registers", said)
        assert registers and int(registers[1]) <= 96  # two programs and more on a multiprocessor


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_where_it_does_not_run_pytorch_stays_and_says_once_why(caplog: pytest.LogCaptureFixture) -> None:
    loss_softmax._kernel_works.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert not loss_softmax._kernel_works(torch.device("cuda"), torch.bfloat16, 1000, Shaping())
    (record,) = caplog.records
    assert "Triton kernel does not work here" in record.getMessage() and "CUDA" in record.getMessage()
