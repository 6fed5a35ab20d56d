"""A build in a process of its own, which a test can kill: python -m tests.data.build_driver SETTINGS.json ON"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from bigtrain.base import BigtrainError
from bigtrain.config.data_settings import DataSettings
from bigtrain.data import build_datasets
from bigtrain.data.build import build
from bigtrain.data.build.clean import Rejection
from bigtrain.data.build.execute import ray_cluster
from bigtrain.data.build.filters import Filters
from bigtrain.data.format.documents import Document
from tests.data.helpers import VOCABULARY

PIECE_BYTES = 5_000
"""So that a small corpus has many pieces."""
HEAD_SECONDS, LOOK_SECONDS = 1.0, 0.5
SECONDS = 0.004
"""For a document."""


class Slow(Filters):
    """Filters that take their time, so that a small corpus is not built before something dies."""

    def __call__(self, document: Document) -> Document | Rejection:
        time.sleep(SECONDS)
        return super().__call__(document)


def report(line: str) -> None:
    """Write down the machine of a cluster that this process is connected to."""
    if line.startswith("Ray:"):
        import ray

        Path(sys.argv[1]).with_name("node").write_text(ray.get_runtime_context().get_node_id())


if __name__ == "__main__":
    for name in ("corpus", "jsonl"):
        importlib.import_module(f"bigtrain.data.build.corpus.{name}").PIECE_BYTES = PIECE_BYTES
    ray_cluster.HEAD_SECONDS, ray_cluster.LOOK_SECONDS = HEAD_SECONDS, LOOK_SECONDS
    build.Filters = importlib.import_module("tests.data.build_driver").Slow  # workers know no class of __main__
    settings = DataSettings.model_validate_json(Path(sys.argv[1]).read_text())
    try:
        build_datasets(settings, vocab_size=VOCABULARY, report=report, on=sys.argv[2])
    except BigtrainError as error:
        sys.exit(f"error: {error}")
