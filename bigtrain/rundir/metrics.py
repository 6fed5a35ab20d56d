"""A line of RUN/metrics.jsonl: the numbers of one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bigtrain.rundir.bounds import Count, Quantity, Seconds


@dataclass(frozen=True)
class StepMetrics:
    """The numbers of a step. A line has also `start`, `time` and `uptime`, as an event has."""

    step: Count
    """Steps done, this one included."""
    loss: float
    """Mean over the labelled tokens of the global batch, in nats; with labels of examples, plus the mean over these."""
    learning_rate: float
    """Of this step."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    auxiliary: Mapping[str, float]
    """Not a field of this name; its entries are fields of the line. `router_aux_loss`, `router_z_loss`: the losses of
    routers of experts, for each labelled token, without their coefficients, summed over layers. `router_imbalance`: the
    load of the busiest expert as a multiple of its router's mean, at the worst layer. `mtp_loss`: multi-token
    prediction's mean over its modules, for each labelled token, in nats. `token_loss`, `example_loss`: the terms whose
    sum is `loss`, where an objective has labels of whole examples beside those of tokens; each a mean over its own."""
    tokens: Count
    """Labelled tokens of the global batch."""
    consumed_samples: Count
    """Samples that the run has trained on."""
    step_seconds: Seconds
    """The whole step."""
    data_seconds: Seconds
    """Of it, waiting for the loader."""
    forward_backward_seconds: Seconds
    """Of it, forward and backward passes."""
    optimizer_seconds: Seconds
    """Of it, the update."""
    tokens_per_second: Quantity
    """Input tokens of all ranks."""
    mfu: Quantity
    """Model FLOP utilisation, attention counted over whole sequences (PaLM's convention)."""
    mfu_causal: Quantity
    """The same with attention counted over the tokens that each token sees."""
    mfu_of: str
    """What counts as 100%: `datasheet` or `measured`."""
    batch_digest: str
    """Hash of the global batch's token ids: equal at every world size."""
    world_size: Count
    """Ranks of this start."""
    inputs_digest: str | None = None
    """Hash of what the objective made of the batch, equal at every world size; only where it is not the tokens."""
    decisions: Count | None = None
    """How many decisions the run had taken; only where there are any."""
    peak_memory_bytes: Count | None = None
    """CUDA: the most that was allocated on rank 0's device so far."""
    counted_seconds: Seconds | None = None
    """The training that counts, over all starts up to this step."""

    def as_record(self) -> dict[str, Any]:
        """The fields by their JSON names; optional ones only where they have a value."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        auxiliary = values.pop("auxiliary")
        first = {name: values.pop(name) for name in ("step", "loss", "learning_rate", "grad_norm")}
        return {**first, **auxiliary, **values}
