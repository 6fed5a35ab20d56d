"""What the ranks agree on before a step: one sum over all ranks, so that all do the same."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from bigtrain.base import BigtrainError, first_of
from bigtrain.data import LabelCounts, RankBatch, format_digest
from bigtrain.engine import Topology


@dataclass(frozen=True)
class Vote:
    """What one rank knows before a step, as whole numbers. The sums over the ranks decide for all of them."""

    label_tokens: int = 0
    """Labelled tokens of its share of the batch."""
    label_examples: int = 0
    """Labelled examples of it, where the objective has labels of whole examples."""
    input_tokens: int = 0
    """All tokens of it."""
    batch_digest: int = 0
    """Sum of the hashes of its samples, modulo 2^64."""
    inputs_digest: int = 0
    """Likewise of what the objective made of them."""
    stops: int = 0
    """1 where it was asked to stop."""
    saves: int = 0
    """1 where it wants a checkpoint before the step."""
    lacks_data: int = 0
    """1 where it could not load its share."""
    lost_a_save: int = 0
    """1 where it could not write its part of the last checkpoint."""

    @classmethod
    def on(
        cls,
        batch: RankBatch | None,
        *,
        counts_batch: bool,
        stops: bool,
        saves: bool = False,
        lost_a_save: bool = False,
    ) -> Vote:
        """The vote of a rank.

        Args:
            batch: its share; None where it could not be loaded.
            counts_batch: whether this rank is the one that counts it, of those that share it.
            stops, saves, lost_a_save: see the fields.
        """
        counted = batch if counts_batch else None
        return cls(
            label_tokens=counted.label_tokens if counted else 0,
            label_examples=counted.label_examples if counted else 0,
            input_tokens=counted.input_tokens if counted else 0,
            batch_digest=counted.digest if counted else 0,
            inputs_digest=counted.inputs_digest if counted else 0,
            stops=int(stops),
            saves=int(saves),
            lacks_data=int(batch is None),
            lost_a_save=int(lost_a_save),
        )

    def summed(self, topology: Topology) -> Vote:
        """The sum of all ranks' votes, on every rank; the digests modulo 2^64. Every rank calls it."""
        return Vote(*map(int, topology.sum_across_ranks(astuple(self))))

    @property
    def labels(self) -> LabelCounts:
        """What the losses are means over."""
        return LabelCounts(self.label_tokens, self.label_examples)


@dataclass(frozen=True)
class Agreement:
    """What all ranks know about the step to come."""

    labels: LabelCounts
    """Labels of the global batch: each loss term is a mean over its own."""
    input_tokens: int
    """Tokens of the global batch that go into the model."""
    batch_digest: str
    inputs_digest: str | None
    """None where the objective leaves the tokens as they are."""
    stop_reason: str | None
    save_is_due: bool


def agree(vote: Vote, stop_reason: str | None, topology: Topology) -> Agreement:
    """What a sum of votes comes to. Every rank calls it.

    Args:
        vote: the sum.
        stop_reason: why this rank was asked to stop, if it was; the lowest rank's reason counts.
        topology: the ranks.
    """
    return Agreement(
        labels=vote.labels,
        input_tokens=vote.input_tokens,
        batch_digest=format_digest(vote.batch_digest),
        inputs_digest=format_digest(vote.inputs_digest) if vote.inputs_digest else None,
        stop_reason=first_of(topology, stop_reason) if vote.stops else None,
        save_is_due=bool(vote.saves),
    )


def require_labels(vote: Vote, step: int) -> None:
    """Refuse a global batch without a label.

    Args:
        vote: the sum of all ranks' votes.
        step: the step of the batch, from 1.

    Raises:
        BigtrainError: on every rank.
    """
    if not vote.label_tokens:
        raise BigtrainError(
            f"step {step} has nothing to train on: no token of its batch has a label",
            found=f"{vote.input_tokens:,} tokens, each of a document in data.skip or the last of its part of one",
            wanted="at least one label",
            fix=f"leave the batch out: add {{steps: [{step}, {step}], reason: ...}} to the end of data.skip; or "
            "skip fewer documents, or give their source a weight of 0 from here on with data.phases",
        ).on_all_ranks()
