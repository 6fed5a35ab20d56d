"""What a model asks of devices, whatever they are: products, attention, passes over memory, kept activations, states.

    ModelShapes (bigtrain/model/shapes.py), settings --> Workload --+--> memory.py      bytes by kind
    sizes of a published model (`transformer`) ----->               +--> step_time.py   seconds by part

Widths and bytes are those of one token; parallel sizes come later, with a `Layout`. So a search makes one workload
and tries thousands of layouts with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

AttentionKernel = Literal["flash3", "flash2", "flash1", "fused_softmax", "unfused"]
"""`flash...`: scores are never written to memory. `fused_softmax`: they are, and one kernel scales, masks and
normalises them. `unfused`: a kernel for each of these."""


Elementwise = Literal["compiled", "fused", "fused_norms", "eager"]
"""Norms, activations, rotations and sums: fused by torch.compile, by kernels made for each of them, by kernels for
norms alone, or one kernel for each operation."""
MadeBy = Literal["input", "entry", "product", "attention", "cheap", "scores", "result", "beside"]
"""Where a kept tensor is from; `Kept` says what each means."""
Compute = Literal["bf16", "fp16", "fp32", "fp8", "fp4"]


@dataclass(frozen=True)
class Product:
    """A weight matrix that multiplies tokens."""

    name: str
    inputs: int
    outputs: int
    per_token: float = 1.0
    """How often it multiplies a token. Of experts: those that work for it."""
    experts: int = 1
    """Matrices of this shape of which each token takes `per_token`."""
    divided: Literal["inputs", "outputs", "no"] = "no"
    """Which width tensor parallelism divides."""
    learns: bool = True
    """Whether it has a gradient of its own."""

    @property
    def parameters(self) -> int:
        """Weights of all experts."""
        return self.inputs * self.outputs * self.experts


@dataclass(frozen=True)
class AttentionWork:
    """The products of queries, keys and values."""

    heads: int
    key_value_heads: int
    head_width: int
    visible: float
    """Tokens that a token sees on average: half the sequence where attention is causal, fewer with a window."""
    length: int
    """Keys of a sequence: what a kernel computes that writes all scores to memory."""

    @property
    def width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_width


@dataclass(frozen=True)
class Kept:
    """Bytes of a token that the backward pass needs."""

    what: str
    bytes_per_token: float
    divided: bool
    """Whether tensor parallelism divides it. What it does not divide, sharing tokens outside of matrices does."""
    made_by: MadeBy
    """`input`: of a block, which every recomputation keeps. `entry`: the same where only recomputation needs it.
    `product`: of a matrix product. `attention`: of a kernel of attention or a recurrence. `cheap`: norms, activation
    functions and sums. `scores`: of attention that writes them to memory. `result`: of a product, which only selective
    recomputation keeps. `beside`: what only recomputation needs beside the input."""
    fixed_bytes: float = 0.0
    """Bytes beside these, whatever the number of tokens."""


@dataclass(frozen=True)
class Pass:
    """Bytes of a token that a forward pass reads and writes outside of matrix products."""

    what: str
    fused: float
    """By one kernel: each input is read once, each result written once."""
    eager: float
    """By one kernel for each operation."""
    divided: bool
    """Whether tensor parallelism divides it. What it does not divide, sharing tokens outside of matrices does."""


@dataclass(frozen=True)
class BlockWork:
    """Blocks that are alike."""

    count: int
    products: tuple[Product, ...]
    attention: tuple[AttentionWork, ...] = ()
    other_parameters: int = 0
    """Norms and biases, which no parallel layout but ZeRO divides."""
    kept: tuple[Kept, ...] = ()
    passes: tuple[Pass, ...] = ()
    distinct: int | None = None
    """Blocks with weights of their own, where several layers share some. Default: all."""

    @property
    def own_share(self) -> float:
        """Blocks with weights of their own, as a share of those that run."""
        return 1.0 if self.distinct is None else self.distinct / self.count

    @cached_property
    def parameters(self) -> int:
        """Parameters of one of these blocks."""
        return sum(product.parameters for product in self.products) + self.other_parameters


@dataclass(frozen=True)
class StateBytes:
    """Bytes for each parameter, by what they hold."""

    weights: float
    """The copy that computes and rests on the device. 0 where it is gathered from the master weights (FSDP)."""
    gradients: float
    """What a step accumulates gradients in."""
    master: float
    """Master weights; 0 where the weights are the only copy."""
    moments: float
    """AdamW 8 (two in float32), in bfloat16 4; Lion and Muon 4."""
    gathered: float = 2.0
    """What stage 3 gathers before a block computes."""
    reduced: float = 2.0
    """In which gradients are summed over ranks."""
    gradients_of_last: float = 0.0
    """Stage 1: what DeepSpeed leaves of the last micro-batch's gradients beside those that are accumulated."""
    step_copies: float = 0.0
    """What the optimizer's step holds beside these for a moment, such as gradients in float32."""

    @property
    def total(self) -> float:
        """Bytes of a parameter without ZeRO."""
        return self.weights + self.gradients + self.master + self.moments


@dataclass(frozen=True)
class Workload:
    """A model, its sequences, and in what and by which kernels it is computed."""

    blocks: tuple[BlockWork, ...]
    """In the order in which they run; equal ones once."""
    embedding_parameters: int
    hidden: int
    head: Product | None
    """The product with the vocabulary."""
    tied: bool
    """Whether the head is the embedding."""
    sequence_length: int
    states: StateBytes
    compute: Compute = "bf16"
    """The type of the matrix products inside blocks."""
    attention_kernel: AttentionKernel = "flash2"
    elementwise: Elementwise = "compiled"
    """How what is no matrix product is computed."""
    logits_bytes: float = 10.0
    """Bytes for each logit at the peak: the logits, in float32, their gradient."""
    logits_tokens: int | None = None
    """Tokens whose logits are in memory at a time. Default: all of a micro-batch."""
    logits_divided: bool = True
    """Whether tensor parallelism divides the logits too, and not only the head."""
    kept_before: tuple[Kept, ...] = ()
    """What waits for the backward pass of what comes before the first block."""
    kept_after: tuple[Kept, ...] = ()
    """The same of what comes after the last block."""
    kept_by_head: tuple[Kept, ...] = ()
    """The same of the head and the loss, such as the gradient of the head's weight; logits are counted apart."""
    loss_workspace: float = 0.0
    """Bytes beside the logits at the peak: what the gradient of the head's weight takes before it is added up."""
    held_whole: int = 0
    """Numbers in parameters so small that stage 3 leaves them whole on every rank."""
    largest_parameter: int = 0
    """Numbers in the largest parameter whose gradient stage 2 does not cut, which it does where it converts it."""
    end_parameters: int = 0
    """Parameters after the last block beside the head: its norm."""
    optimizer_flops: float = 0.0
    """FLOP for each parameter of a step beside reading and writing its states (Muon's products)."""

    @cached_property
    def layers(self) -> int:
        """Blocks."""
        return sum(block.count for block in self.blocks)

    @cached_property
    def head_parameters(self) -> int:
        """Parameters of a head of its own."""
        return 0 if self.head is None or self.tied else self.head.parameters

    @cached_property
    def block_parameters(self) -> int:
        """Parameters of all blocks."""
        return sum(round(block.count * block.own_share) * block.parameters for block in self.blocks)

    @cached_property
    def parameters(self) -> int:
        """Parameters, tied ones once."""
        return self.block_parameters + self.embedding_parameters + self.head_parameters + self.end_parameters

    @cached_property
    def expert_parameters(self) -> int:
        """Parameters of experts."""
        return sum(
            block.count * product.parameters
            for block in self.blocks
            for product in block.products
            if product.experts > 1
        )

    @cached_property
    def widest_block(self) -> BlockWork:
        """The block with most parameters."""
        return max(self.blocks, key=lambda block: block.parameters)

    def flops_per_token(self, *, causal: bool = False) -> float:
        """FLOP of a token, forward and backward, without recomputation (PaLM, appendix B: 6 N + 12 L H Q T).

        Args:
            causal: count attention over the tokens that a token sees; else over the whole sequence.
        """
        multiplying = self.head.inputs * self.head.outputs * self.head.per_token if self.head else 0.0
        seen = 0.0
        for block in self.blocks:
            multiplying += block.count * sum(each.inputs * each.outputs * each.per_token for each in block.products)
            for work in block.attention:
                seen += block.count * work.width * (work.visible if causal else work.length)
        return 6 * multiplying + 12 * seen


def transformer(
    *,
    layers: int,
    hidden: int,
    heads: int,
    feed_forward: int,
    vocabulary: int,
    sequence_length: int,
    states: StateBytes,
    key_value_heads: int | None = None,
    head_width: int | None = None,
    gated: bool = True,
    tied: bool = False,
    positions: int = 0,
    biases: bool = False,
    dropout: bool = False,
    rms_norms: bool = True,
    rotary: bool = True,
    experts: int = 0,
    experts_per_token: int = 1,
    causal: bool = True,
    compute: Compute = "bf16",
    attention_kernel: AttentionKernel = "flash2",
    elementwise: Elementwise = "compiled",
    logits_bytes: float = 10.0,
    logits_tokens: int | None = None,
    logits_divided: bool = True,
) -> Workload:
    """Return the workload of a decoder of equal blocks, from its sizes alone.

    Kept activations are those of Korthikanti et al. (2022, section 4): with dropout, biases and four times wider
    feed-forward layers they are the paper's `s b h (34 + 5 a s / h)` bytes.

    Args:
        layers: blocks.
        hidden: width of the residual stream.
        heads: query heads.
        feed_forward: width inside the feed-forward layer.
        vocabulary: rows of the embedding.
        sequence_length: tokens.
        states: bytes for each parameter.
        key_value_heads: default: as many as `heads`.
        head_width: default: hidden / heads.
        gated: whether the feed-forward layer has a gate, a third matrix.
        tied: whether the head is the embedding.
        positions: rows of a table of positions.
        biases: whether matrices have biases.
        dropout: whether masks of dropout are kept.
        rms_norms: RMSNorm, in eager PyTorch seven kernels that keep their input in float32; else LayerNorm.
        rotary: whether queries and keys are rotated.
        experts: in place of the feed-forward layer; 0: none.
        experts_per_token: of these.
        causal: whether a token sees only those before it.
        compute: type of the products.
        attention_kernel: how attention is computed.
        elementwise: how what is no matrix product is computed.
        logits_bytes: bytes for each logit at the peak.
        logits_tokens: tokens whose logits are in memory at a time.
        logits_divided: whether tensor parallelism divides the logits.
    """
    wide = 4 if compute == "fp32" else 2
    kv_heads = key_value_heads or heads
    width = head_width or hidden // heads
    query, kv = heads * width, kv_heads * width
    routed = {"per_token": float(experts_per_token), "experts": experts} if experts else {}
    up_outputs = 2 * feed_forward if gated else feed_forward
    products = (
        Product("query_key_value", hidden, query + 2 * kv, divided="outputs"),
        Product("attention_output", query, hidden, divided="inputs"),
        Product("gate_up" if gated else "up", hidden, up_outputs, divided="outputs", **routed),  # type: ignore[arg-type]
        Product("down", feed_forward, hidden, divided="inputs", **routed),  # type: ignore[arg-type]
    )
    used = experts_per_token if experts else 1
    attention = AttentionWork(heads, kv_heads, width, (sequence_length + 1) / 2 if causal else sequence_length,
                              sequence_length)  # fmt: skip
    one_by_one = elementwise in ("fused_norms", "eager")
    kept = [
        Kept("block_input", wide * hidden, False, "input"),
        Kept("attention_norm", wide * hidden, False, "cheap"),
        Kept("queries_keys_values", wide * (query + 2 * kv), True, "product"),
        Kept("attention_output", wide * query, True, "product"),
        Kept("residual_sum", wide * hidden, False, "product"),
        Kept("feed_forward_norm", wide * hidden * used, False, "cheap"),
        Kept("up", wide * up_outputs * used, True, "product"),
        Kept("activation", wide * feed_forward * used * (2 if gated and one_by_one else 1), True, "cheap"),
    ]
    if dropout:
        kept.append(Kept("dropout_masks", 2 * hidden, False, "cheap"))
    if rms_norms and elementwise == "eager":
        kept.append(Kept("float32_norms", 2 * (4 + wide) * hidden, False, "cheap"))
    if attention_kernel in ("fused_softmax", "unfused"):
        each = wide + (wide + 1 if dropout else 0) + (4 if attention_kernel == "unfused" else 0)
        kept.append(Kept("scores", heads * sequence_length * each, True, "scores"))
    sums = 3 * wide + (2 * wide + 1 if dropout else 0)
    passes = (
        Pass("norms", 4 * wide * hidden, 2 * hidden * (7 * wide + 24 if rms_norms else 2 * wide), False),
        Pass("residual_sums", 2 * sums * hidden, 2 * sums * hidden, False),
        Pass("rotation", 2 * wide * (query + kv) * rotary, 9 * wide * (query + kv) * rotary, True),
        Pass("activation", wide * used * (up_outputs + feed_forward), wide * used * 5 * feed_forward, True),
    )
    other = 2 * hidden * (2 if biases else 1) + (query + 2 * kv + hidden + up_outputs + hidden if biases else 0)
    block = BlockWork(layers, products, (attention,), other, tuple(kept), passes)
    return Workload(
        blocks=(block,),
        embedding_parameters=vocabulary * hidden + positions * hidden,
        end_parameters=hidden if rms_norms or not biases else 2 * hidden,
        hidden=hidden,
        head=Product("head", hidden, vocabulary, divided="outputs"),
        tied=tied,
        sequence_length=sequence_length,
        states=states,
        compute=compute,
        attention_kernel=attention_kernel,
        elementwise=elementwise,
        logits_bytes=logits_bytes,
        logits_tokens=logits_tokens,
        logits_divided=logits_divided,
    )


STAYS = {
    "none": frozenset({"input", "product", "attention", "cheap", "scores"}),
    "scores": frozenset({"input", "product", "attention", "cheap"}),
    "selective": frozenset({"input", "entry", "product", "attention", "result", "beside"}),
    "attention": frozenset({"input", "entry", "attention", "beside"}),
    "full": frozenset({"input", "entry", "beside"}),
    "offloaded": frozenset({"beside"}),
}
"""What is kept of a block, by engine.activation_checkpointing. `scores` is Megatron's selective recomputation,
`attention` ours under a budget that keeps no products."""
