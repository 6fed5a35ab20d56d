from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.config import load_settings

GOOD = """\
run_dir: runs/x
model:
  hidden_size: 64
  num_hidden_layers: 2
  num_attention_heads: 4
  intermediate_size: 128
  vocab_size: 8192
  max_position_embeddings: 128
data:
  dir: datasets/x
  sources:
    - name: web
      kind: text
      path: web.txt
      weight: 0.75
    - name: code
      kind: python_stdlib
      weight: 0.25
  sequence_length: 128
train:
  steps: 10
  global_batch_size: 8
"""


@pytest.fixture
def good() -> str:
    """A small configuration in which line numbers are easy to count."""
    return GOOD


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a configuration as c.yaml in the current directory, so that messages say `c.yaml:LINE`."""
    monkeypatch.chdir(tmp_path)

    def write_text(text: str) -> Path:
        Path("c.yaml").write_text(text)
        return Path("c.yaml")

    return write_text


@pytest.fixture
def refusal(write: Callable[[str], Path]) -> Callable[..., str]:
    """The message with which a configuration is refused."""

    def load(text: str, *overrides: str) -> str:
        with pytest.raises(BigtrainError) as caught:
            load_settings(write(text), overrides)
        return str(caught.value)

    return load
