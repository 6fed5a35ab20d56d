"""What a run has come to, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigtrain.base.format import duration, quantity
from bigtrain.report.figure import text_chart
from bigtrain.rundir.ledger import Ledger


def baselines_of(source: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Names and perplexities of the simple models that were evaluated beside ours."""
    return [(key.removesuffix(" perplexity"), source[key]) for key in source if key.endswith(" perplexity")]


def of_what(mfu_of: str | None) -> str:
    """What counts as 100% of the MFU, with a space behind it; empty where the run has not said."""
    return {"datasheet": "of the datasheet's peak ", "measured": "of the measured matmul peak "}.get(mfu_of or "", "")


@dataclass(frozen=True)
class Summary:
    """A run in a few numbers."""

    run: str
    step: int
    total_steps: int
    tokens: int
    loss: float
    validation: list[dict[str, Any]]
    tokens_per_second: float
    mfu: float
    mfu_causal: float | None
    """None where the run is from before there was one."""
    mfu_of: str | None
    """What counts as 100%: `datasheet` or `measured`."""
    parts: dict[str, float]
    """Seconds of all steps by part, where the run has recorded them."""
    training_seconds: float
    starts: int
    goodput: Ledger
    report: str
    loss_curve: list[tuple[float, float]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the curve itself is in metrics.jsonl."""
        shown = {key: value for key, value in vars(self).items() if key not in ("loss_curve", "goodput")}
        return {**shown, "goodput": self.goodput.as_dict()}

    def __str__(self) -> str:
        lines = [
            f"{self.run}: step {self.step} of {self.total_steps}, {quantity(self.tokens)} tokens in "
            f"{duration(self.training_seconds)} of training over {self.starts} start(s)",
            f"loss {self.loss:.4f}, {quantity(self.tokens_per_second)} tokens/s, MFU {self.mfu:.1%} "
            f"{of_what(self.mfu_of)}(medians)",
            _said(self.parts),
            str(self.goodput),
            *(
                f"validation of {source['source']}: loss {source['loss']:.4f}, perplexity {source['perplexity']:.2f}"
                + "".join(f", {name} model {perplexity:.2f}" for name, perplexity in baselines_of(source))
                for source in self.validation
            ),
            "",
            "training loss",
            text_chart(self.loss_curve),
            "",
            f"the page with all curves: {self.report}",
        ]
        return "\n".join(lines)


def _said(parts: dict[str, float]) -> str:
    total = sum(parts.values()) or 1.0
    return "time of the steps: " + ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in parts.items())
