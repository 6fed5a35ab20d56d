"""The counts of a metric over whatever comes to the head of a task, while a model computes its losses."""

from __future__ import annotations

from types import TracebackType

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bigtrain.model import LanguageModel
from bigtrain.objective import LabelMetric


class LabelScores:
    """Within its `with` block, labels that come to a model's head are counted. Counts of batches and ranks add up."""

    def __init__(self, model: LanguageModel, metric: LabelMetric | None) -> None:
        """Args:
        model: with a task head, where there is a metric.
        metric: None counts nothing.
        """
        self._model, self._metric = model, metric
        self.counts: npt.NDArray[np.float64] = np.zeros(0)
        """The sums so far; empty before the first batch."""

    def __enter__(self) -> LabelScores:
        if self._metric is not None and self._model.task_head is not None:
            self._model.task_head.observer = self._count
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if self._model.task_head is not None:
            self._model.task_head.observer = None

    def scores(self, counts: npt.NDArray[np.float64] | None = None) -> dict[str, float] | None:
        """The scores, from these counts or the own ones; None without a metric or labels."""
        counts = self.counts if counts is None else counts
        return self._metric.scores(counts) if self._metric is not None and counts.any() else None

    def _count(self, logits: Tensor, labels: Tensor, cu_seqlens: Tensor) -> None:
        assert self._metric is not None
        found = self._metric.counts(
            logits.double().cpu().numpy(), labels.long().cpu().numpy(), cu_seqlens.long().cpu().numpy()
        )
        self.counts = found if not self.counts.size else self.counts + found
