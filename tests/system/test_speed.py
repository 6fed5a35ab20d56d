"""What does not fit into memory is told before the first step; a profile tells where time and memory go."""

import json
import resource
import subprocess

import pytest

from tests.refusals import assert_refused
from tests.system.run_sandbox import CLI, RunSandbox

GIB = 2**30


@pytest.mark.slow
def test_a_micro_batch_that_does_not_fit_is_refused_before_the_first_step(sandbox: RunSandbox) -> None:
    rows = 4096
    result = subprocess.run(
        [*CLI, "train", str(sandbox.config), f"train.global_batch_size={rows}", f"train.micro_batch_size={rows}"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=sandbox.directory,
        # A start takes 1.6 GiB of addresses; the rows take several more.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (int(2.2 * GIB), int(2.2 * GIB))),
    )
    assert_refused(
        result,
        f"a micro-batch of {rows} x 64 tokens does not fit into memory",
        found="2.20 GiB (ulimit -v)",
        fix=[
            f"train.micro_batch_size {rows // 2} (now {rows})",
            "engine.activation_checkpointing selective (now none)",
        ],
    )
    assert not (sandbox.run / "config.yaml").exists() and not sandbox.metrics()


@pytest.mark.slow
def test_a_profile_adds_up_and_leaves_the_run_alone(sandbox: RunSandbox) -> None:
    result = sandbox.bigtrain("profile", str(sandbox.config), "--steps", "2", "--warmup", "1", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert not sandbox.run.exists()
    assert sum(found["breakdown"].values()) == pytest.approx(found["step_seconds"])
    assert found["breakdown"]["forward_backward"] > 0 and found["breakdown"]["optimizer"] > 0
    assert 0.9 < sum(row["share"] for row in found["operators"]) < 1.01
    products = [row for row in found["operators"] if row["name"].startswith("aten::mm ")]
    assert products and all(row["flops_per_second"] > 0 for row in products)
    assert sum(found["memory"].values()) == found["peak_bytes"]
    folder = sandbox.run.with_name("run-profile")
    assert json.loads((folder / "profile.json").read_text()) == found
    assert {path.name for path in folder.iterdir()} == {"profile.json", "trace-rank-00000.json.gz"}
