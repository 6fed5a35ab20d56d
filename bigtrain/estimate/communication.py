"""Communication of a step: what is sent, over which groups and links, and how much of it computation hides.

tensor     sums over ranks that share a matrix               blocks wait; Megatron hides the backward ones
context    heads for tokens, or keys and values in a ring    blocks wait for the first kind
experts    tokens to their experts and back                  blocks wait
pipeline   states to the next stage, gradients back          stages wait
weights    stage 3: gathered before a block; else new ones after a step       under computation
gradients  stage 3: scattered after a block; else summed once a step          under computation, where overlapped
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bigtrain.estimate.constants import Constants
from bigtrain.estimate.layout import Group, Layout
from bigtrain.estimate.memory import stage_blocks, stage_parameters
from bigtrain.estimate.network import Interconnect
from bigtrain.estimate.workload import Workload


@dataclass(frozen=True)
class Communication:
    """One kind of communication in a step."""

    what: str
    """For example: gradients, weights, tensor, context, experts, pipeline."""
    collective: str
    link: str
    """`link` inside a node, `network` between nodes."""
    total: float
    """Seconds in a step."""
    overlapped: float
    """Seconds of these that computation hides."""

    def repeated(self, times: float) -> Communication:
        """The same, done so many times."""
        return replace(self, total=self.total * times, overlapped=self.overlapped * times)

    @property
    def exposed(self) -> float:
        """Seconds for which computation waits."""
        return self.total - self.overlapped


@dataclass(frozen=True)
class Exchanges:
    """What the ranks of one layout exchange."""

    work: Workload
    layout: Layout
    connected: Interconnect
    constants: Constants

    def tensor(self) -> list[Communication]:
        """Sums of what ranks that share a matrix computed: twice a block forward, twice backward."""
        group = self.layout.tensor_group(self.connected.node_size)
        if group.size == 1:
            return []
        size = 2.0 * self._tokens * self.work.hidden
        if self.layout.tensor_shares_tokens:
            each = 2 * self.connected.all_gather(size, group, self.constants)  # one of them scatters sums
        else:
            each = self.connected.all_reduce(size, group, self.constants)
        each += self.constants.skew
        number = sum(number for _, number in stage_blocks(self.work, self.layout))
        collective = "all_gather + reduce_scatter" if self.layout.tensor_shares_tokens else "all_reduce"
        total = each * 2 * number * self._passes_over_blocks()
        hidden = self.constants.tensor_overlap * each * 2 * number if self.layout.overlaps_tensor else 0.0
        return [Communication("tensor", collective, _link(group), total, hidden)]

    def context(self) -> list[Communication]:
        """Heads for tokens and back around each attention, or keys and values around a ring."""
        group = self.layout.context_group(self.connected.node_size)
        if group.size == 1:
            return []
        tokens, total = self._tokens, 0.0
        for block, number in stage_blocks(self.work, self.layout):
            for attention in block.attention:
                query = 2.0 * tokens * attention.width / self.layout.tensor
                both = 2.0 * tokens * 2 * attention.key_value_heads * attention.head_width / self.layout.tensor
                if self.layout.context_exchange == "all_to_all":
                    one = self.connected.all_to_all(query + both, group, self.constants)
                    one += self.connected.all_to_all(query, group, self.constants)
                else:
                    one = self.connected.all_gather(both * group.size, group, self.constants)
                total += number * (one + self.constants.skew)
        name = "all_to_all" if self.layout.context_exchange == "all_to_all" else "ring"
        hidden = 0.0 if self.layout.context_exchange == "all_to_all" else self.constants.tensor_overlap
        total *= self._passes_over_blocks()
        return [Communication("context", name, _link(group), total, hidden * total)]

    def experts(self) -> list[Communication]:
        """Tokens to the ranks of their experts, and back."""
        group = self.layout.expert_group(self.connected.node_size)
        if group.size == 1:
            return []
        tokens, total = self._tokens, 0.0
        for block, number in stage_blocks(self.work, self.layout):
            for product in block.products:
                if product.experts > 1 and product.divided == "outputs":
                    size = 2.0 * tokens * product.per_token * product.inputs
                    total += number * 2 * (self.connected.all_to_all(size, group, self.constants) + self.constants.skew)
        total *= self._passes_over_blocks()
        return [Communication("experts", "all_to_all", _link(group), total, 0.0)]

    def pipeline(self) -> list[Communication]:
        """States to the next stage and gradients back."""
        group = self.layout.pipeline_neighbours(self.connected.node_size)
        if self.layout.pipeline == 1:
            return []
        size = 2.0 * self._tokens * self.work.hidden / self.layout.tensor  # a part each (Narayanan et al., 2021, 4.1)
        one = self.connected.send(size, group, self.constants) + self.constants.skew
        number = 2 * self.layout.virtual_stages * (self.layout.accumulation_steps + self.layout.pipeline - 1)
        return [Communication("pipeline", "send", _link(group), one * number, 0.0)]

    def weights(self, computing: float) -> list[Communication]:
        """Stage 3: weights gathered before each block, forward and backward, and gradients scattered after it.

        For every micro-batch; under the computation of the blocks before and after.

        Args:
            computing: seconds of all blocks on a micro-batch.
        """
        layout, states = self.layout, self.work.states
        if layout.zero_stage < 3 or layout.shards == 1:
            return []
        group = layout.shard_group(self.connected.node_size)
        nearest = Group(layout.zero_hpz, min(layout.zero_hpz, group.per_node)) if layout.zero_hpz > 1 else group
        dense, experts = stage_parameters(self.work, layout, 0)
        number = max(1.0, sum(number for _, number in stage_blocks(self.work, layout)))
        size = (dense + experts) / number
        gather = self.connected.all_gather(size * states.gathered, group, self.constants)
        gather += self.connected.all_gather(size * states.gathered, nearest, self.constants)
        scatter = self._scattered(size * states.reduced, group)
        total = layout.accumulation_steps * number * (gather + scatter)
        hidden = self._hidden(total, layout.accumulation_steps * computing)
        share = gather / (gather + scatter)
        return [
            Communication("weights", "all_gather", _link(group), total * share, hidden * share),
            Communication("gradients", "reduce_scatter", _link(group), total * (1 - share), hidden * (1 - share)),
        ]

    def gradients(self, forward: float, backward: float) -> list[Communication]:
        """Below stage 3: gradients summed once a step, and at stages 1 and 2 new weights gathered.

        Args:
            forward: seconds of a forward pass, under which Megatron gathers weights.
            backward: seconds of a backward pass.
        """
        layout, states = self.layout, self.work.states
        if layout.zero_stage == 3 or layout.replicas == 1:
            return []
        group, shards = layout.replica_group(self.connected.node_size), layout.shard_group(self.connected.node_size)
        dense, experts = stage_parameters(self.work, layout, 0)
        size = (dense + experts) * states.reduced
        if layout.scatters_gradients:
            summed = self._scattered(size, shards)
        else:
            summed = self.connected.all_reduce(size, group, self.constants)
        divided = (dense + experts) * states.gathered if layout.zero_stage else 0.0
        gathered = self.connected.all_gather(divided, shards, self.constants)
        hidden_sums = self._hidden(summed, backward) if layout.overlaps_gradients else 0.0
        gathers_ahead = layout.overlaps_gradients and layout.scatters_gradients
        hidden_gathers = self._hidden(gathered, forward) if gathers_ahead else 0.0
        collective = "reduce_scatter" if layout.scatters_gradients else "all_reduce"
        return [
            Communication("gradients", collective, _link(group), summed, hidden_sums),
            Communication("weights", "all_gather", _link(shards), gathered, hidden_gathers),
        ]

    @property
    def _tokens(self) -> float:
        """Tokens of a micro-batch on a rank."""
        return self.layout.micro_batch_size * self.work.sequence_length / self.layout.context

    def _scattered(self, size: float, shards: Group) -> float:
        """Seconds to sum among the ranks that divide, each keeping its part, and then over their copies."""
        copies = Group(self.layout.replicas // self.layout.shards, 1)
        seconds = self.connected.reduce_scatter(size, shards, self.constants)
        return seconds + self.connected.all_reduce(size / self.layout.shards, copies, self.constants)

    def _passes_over_blocks(self) -> float:
        """How often a block's forward communication is done: again where the forward pass is."""
        full = self.layout.recomputation in ("full", "offloaded")
        return 2.0 + (self.layout.recomputed_blocks if full else 0.0)

    def _hidden(self, communicating: float, computing: float) -> float:
        """Seconds that are saved because computation and communication run at the same time."""
        power = self.constants.concurrency
        both = (communicating**power + computing**power) ** (1 / power)
        return communicating + computing - both


def _link(group: Group) -> str:
    return "link" if group.nodes == 1 else "network"
