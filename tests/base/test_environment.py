"""Values of environment variables are checked: empty, malformed and stale ones give a message, and no traceback."""

import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base import BigtrainError, check_interfaces, number_of, text_of, usable_seconds
from bigtrain.base import environment as module

MALFORMED = ["abc", "-1", "1e999", "nan", "1 2", "٣", "0x10"]


@given(st.text())
def test_a_number_is_in_its_range_or_refused_with_name_and_value(text):
    try:
        found = number_of("SOME", 1, 9, {"SOME": text})
    except BigtrainError as error:
        assert f"SOME={text.strip()}" in str(error) and "unset SOME" in str(error.fix)
    else:
        assert found is None if not text.strip() else found == int(text) and 1 <= found <= 9
    assert text_of("SOME", {"SOME": text}) == (text.strip() or None)


@pytest.mark.parametrize("value", [*MALFORMED, "", "12.5"])
def test_a_time_that_is_no_number_is_ignored_with_one_line(value, monkeypatch, capsys):
    monkeypatch.setattr(module, "_said", set())
    monkeypatch.setenv("SOME_TIME", value)
    monkeypatch.setenv("RANK", "0")
    found = [usable_seconds("SOME_TIME") for _ in range(2)]
    said = capsys.readouterr().err
    if value in ("", "12.5"):
        assert found == [float(value or "nan")] * 2 or found == [None, None]
        assert said == ""
    else:
        assert found == [None, None] and said.count("warning:") == 1 and f"SOME_TIME={value}" in said
    assert not any(each is not None and not math.isfinite(each) for each in found)


@pytest.mark.parametrize(
    ("name", "value", "there"),
    [
        ("GLOO_SOCKET_IFNAME", "lo", True),
        ("GLOO_SOCKET_IFNAME", "", True),
        ("GLOO_SOCKET_IFNAME", "ib0", False),
        ("GLOO_SOCKET_IFNAME", "lo,ib0", False),
        ("NCCL_SOCKET_IFNAME", "ib,l", True),
        ("NCCL_SOCKET_IFNAME", "=l", False),
        ("NCCL_SOCKET_IFNAME", "=lo:3", True),
        ("NCCL_SOCKET_IFNAME", "^docker", True),
        ("NCCL_SOCKET_IFNAME", "ib0", False),
    ],
)
def test_an_interface_that_is_not_there_is_refused_with_those_that_are(name, value, there, monkeypatch):
    monkeypatch.setenv(name, value)
    if there:
        check_interfaces(name)
        return
    with pytest.raises(BigtrainError, match=name) as caught:
        check_interfaces(name)
    assert "lo" in str(caught.value.found) and value in str(caught.value.found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BIGTRAIN_FAULT", "abc"),
        ("BIGTRAIN_FAULT", "kill,rank=0,at=step,count=abc"),
        ("BIGTRAIN_FAULT", "slow,rank=0,at=step,delay=1e999"),
        ("BIGTRAIN_FAULT_MARKS", "/no/such/folder"),
    ],
)
def test_a_fault_that_is_not_understood_is_refused_without_a_traceback(name, value):
    code = "import bigtrain.base as b\ntry: b.check_faults()\nexcept b.BigtrainError as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, name: value}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and name in done.stdout and not done.stderr, done.stderr
