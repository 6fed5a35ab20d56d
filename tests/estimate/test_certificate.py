"""The planner's certificate: what it makes of published rows, whatever is in their cells."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.estimate import FITTED

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import planner  # noqa: E402
import planner_rows  # noqa: E402

# arXiv 2410.06511 (TorchTitan), table 1 and its text; the columns are those of shared/published
TITAN = {
    "row_id": "t1", "source_id": "a paper", "scope": "core", "arch": "dense", "layers": "32", "hidden": "4096",
    "heads": "32", "kv_heads": "8", "ffn": "14336", "vocab": "128256", "tied_embeddings": "0",
    "parameters": "8030261248", "sequence_length": "8192", "global_batch_sequences": "16", "micro_batch": "2",
    "gpus": "8", "gpu_kind": "H100-SXM-96GB-500W", "gpu_memory_gib": "96", "gpus_per_node": "8",
    "interconnect": "RDMA 400 Gb/s per GPU", "framework": "torchtitan", "strategy": "FSDP2", "zero_stage_equiv": "3",
    "tp": "1", "pp": "1", "recompute": "selective (per-op SAC)", "precision": "bf16", "note": "FSDP+compile",
    "tokens_per_s_per_gpu": "6667", "missing_inputs": "",
}  # fmt: skip
MEMORY = TITAN | {"row_id": "m1", "kind": "peak_reserved (max across ranks)", "memory_gib": "77.0"}
NOT_FITTING = TITAN | {"row_id": "m2", "kind": "oom", "micro_batch": "64", "global_batch_sequences": "512"}


def test_a_published_row_is_predicted() -> None:
    """Llama 3.1 8B on 8 H100: tokens per second and memory within 10%, and what does not fit is found."""
    found = planner.certificate([TITAN], [MEMORY, NOT_FITTING], FITTED)
    assert found["tokens_per_second"]["complete"]["median_error"] < 0.1
    assert found["memory"]["complete"]["median_error"] < 0.1
    marks = found["out_of_memory"]["complete"]
    assert marks["did_not_fit"] == marks["did_not_fit_right"] == 1 and marks["fitted_right"] == 1
    assert [row["row_id"] for row in found["rows"]] == ["t1", "m1", "m2", "t1"]


def test_nothing_depends_on_where_a_row_is_from() -> None:
    others = [{**row, "source_id": "other", "row_id": "x", "model": "y"} for row in (TITAN, MEMORY)]
    first = planner.certificate([TITAN], [MEMORY], FITTED)["rows"]
    second = planner.certificate([others[0]], [others[1]], FITTED)["rows"]
    assert [row["predicted"] for row in first] == [row["predicted"] for row in second]


ODDITIES = st.one_of(
    st.sampled_from(
        ["", "0", "-1", "nan", "inf", "1e400", "1e17", "0.2", "?", "none", "fp8", "full", "16384", "H200", "oom", "DDP"]
    ),
    st.text(max_size=8),
)


@given(changes=st.dictionaries(st.sampled_from(sorted(MEMORY)), ODDITIES, max_size=6))
def test_any_cell_may_hold_anything(changes: dict[str, str]) -> None:
    """A row is predicted with a positive number, or counted as not predicted; it never ends the program."""
    found = planner.certificate([TITAN | changes], [MEMORY | changes], FITTED)
    for what in ("tokens_per_second", "memory"):
        table = found[what]
        counted = table["complete"]["rows"] + table["other"]["rows"] + sum(table["not_predicted"].values())
        assert counted == (0 if what == "memory" and changes.get("kind") == "oom" else 1)
    assert all(row["predicted"] is False or row["predicted"] > 0 for row in found["rows"])


@pytest.mark.parametrize(
    ("text", "gbs"),
    [
        ("RoCE 1600 Gbps per node", 25.0),
        ("4x Omni-Path 100 Gb/s per node (Jean Zay)", 6.25),
        ("8x HDR InfiniBand 200 Gb/s per node (Selene)", 25.0),
        ("RDMA 400 Gb/s per GPU", 50.0),
        ("NVLink in a 4-GPU node; InfiniBand NDR 400 Gb/s between nodes", 50.0),
        ("EFA (not stated)", 50.0),
        ("", 50.0),
    ],
)
def test_a_network_is_read_from_its_text(text: str, gbs: float) -> None:
    case = planner_rows.case_of(TITAN | {"interconnect": text})
    assert case.connected.network_gbs == gbs


@pytest.mark.parametrize(
    ("changes", "tokens_per_second"),
    [
        ({"tokens_per_s_per_gpu": "", "mfu_pct": "40", "mfu_peak_tflops": "989"}, 0.4 * 989e12 / 57.9128e9),
        ({"tokens_per_s_per_gpu": "", "tflops_per_gpu": "400", "tflops_kind": "model"}, 400e12 / 57.9128e9),
        ({"tokens_per_s_per_gpu": "", "tflops_per_gpu": "400", "tflops_kind": "hardware", "recompute": "full"},
         400e12 / 57.9128e9 * 3 / 4),
    ],
)  # fmt: skip
def test_flops_are_converted_by_their_definition(changes: dict[str, str], tokens_per_second: float) -> None:
    """6 N + 12 L H Q T of Llama 3.1 8B at 8,192 tokens is 57.91 GFLOP, worked out by hand."""
    case = planner_rows.case_of(TITAN | changes)
    assert planner_rows.measured_tokens_per_second(case) == pytest.approx(tokens_per_second, rel=1e-4)


def test_the_program_reads_files_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {}
    for name, rows in (("throughput", [TITAN]), ("memory", [MEMORY, NOT_FITTING])):
        files[name] = tmp_path / f"{name}.csv"
        with files[name].open("w", newline="") as stream:
            writer = csv.DictWriter(stream, sorted(MEMORY), restval="")
            writer.writeheader()
            writer.writerows(rows)
    out = tmp_path / "out.json"
    arguments = ["--throughput", str(files["throughput"]), "--memory", str(files["memory"]), "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["planner.py", *arguments])
    assert planner.main() == 0 and "a paper" in capsys.readouterr().out
    assert json.loads(out.read_text())["memory"]["complete"]["rows"] == 1
    monkeypatch.setattr(sys, "argv", ["planner.py", "--throughput", str(tmp_path / "none.csv")])
    assert planner.main() == 1 and "--throughput" in capsys.readouterr().err
