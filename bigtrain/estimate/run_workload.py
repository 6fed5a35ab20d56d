"""A run's settings as a workload and a layout: what bigtrain and DeepSpeed do with them, in the planner's terms.

    model, objective, data, optimizer, adapter, engine  --> workload_of --> Workload
    engine, train, and how many devices                 --> layout_of   --> Layout

What is said here of bytes is what `bigtrain/engine/deepspeed_config.py` and `bigtrain/model` do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from bigtrain.config import EngineSettings, Settings, divide_work
from bigtrain.estimate.layout import Layout
from bigtrain.estimate.workload import (
    AttentionKernel,
    AttentionWork,
    BlockWork,
    Kept,
    Pass,
    Product,
    StateBytes,
    Workload,
)
from bigtrain.model import (
    AttentionShape,
    BlockActivations,
    BlockShape,
    Computation,
    KeptTensor,
    ModelActivations,
    ModelShapes,
    ParameterShape,
    activations,
    chunk_rows,
    loss_memory,
    model_shapes,
)
from bigtrain.objective import row_lengths

HELD_WHOLE = 100_000
"""Numbers of a parameter up to which stage 3 never divides it (DeepSpeed's stage3_param_persistence_threshold)."""
NEWTON_SCHULZ_STEPS = 5
"""Iterations that orthogonalise an update of Muon (Jordan et al., 2024)."""


def workload_of(settings: Settings, device: Literal["cpu", "cuda"] = "cuda") -> Workload:
    """What a run asks of its devices, for one token of its data.

    Args:
        settings: of the run; its engine says in what it computes, but not over how many ranks.
        device: what it runs on: kernels, and so what they keep, differ.
    """
    shapes = model_shapes(settings.model, settings.adapter)
    length, encoder_length = row_lengths(
        settings.objective, settings.data.sequence_length, reads_pairs=settings.model.reads_pairs
    )
    reading = _Reading(
        length, (encoder_length or length) / length, settings.objective.labelled_share, settings.data.sequence_length
    )
    wide = 4 if settings.engine.precision == "fp32" else 2
    looked_up = [each for each in shapes.ends if not each.multiplies]
    products = [each for each in shapes.ends if each.multiplies]
    head = max(products, key=lambda each: each.outputs) if products else None
    tied = head is not None and head.name == "embed_tokens.weight"
    others = tuple(_product(each, reading) for each in products if each is not head)
    engine, model = settings.engine, settings.model
    attention = "auto" if engine.attn_implementation == "reference" else engine.attn_implementation
    computation = Computation(
        device, engine.precision, attention, length=length, read_length=encoder_length or length,
        sequence_parallel=engine.sequence_parallel_size > 1,
    )  # fmt: skip
    kept = activations(shapes, computation)
    blocks = _equal_blocks(shapes, kept, reading, wide)
    head_learns = any(each.what.endswith("gradient_of_weight") for each in kept.head)
    loss = loss_memory(model, computation, settings.data.sequence_length, learns=head_learns)
    logit_bytes = loss.bytes_per_logit
    return Workload(
        blocks=(*blocks, *([BlockWork(1, others)] if others else [])),
        embedding_parameters=sum(each.numel for each in looked_up) + (head.numel if tied and head else 0),
        hidden=settings.model.hidden_size,
        head=None if head is None else _product(head, reading),
        tied=tied,
        sequence_length=settings.data.sequence_length,
        states=_states(settings, shapes),
        compute="fp8" if settings.engine.float8 else settings.engine.precision,
        attention_kernel=_kernel(settings.engine),
        elementwise="compiled" if settings.engine.compile else "fused_norms",
        logits_bytes=float(logit_bytes),
        logits_tokens=chunk_rows(device, 1 << 40, model.vocab_size, model.head_input_width, logit_bytes or 1),
        loss_bytes=loss.workspace + sum(each.bytes(0) for each in kept.head if each.tokens is None),
        loss_kept=sum(map(reading.bytes, kept.head)),
        ends_kept=sum(map(reading.bytes, (*kept.before, *kept.after))),
        largest_parameter=max(each.numel for each in shapes.parameters if each.learns),
        held_whole=sum(each.numel for each in shapes.parameters if each.numel <= HELD_WHOLE),
        optimizer_flops=_muon_flops(shapes) if settings.optimizer.name == "muon" else 0.0,
    )


def layout_of(settings: Settings, devices: int) -> Layout:
    """How the settings lay a run out over devices.

    Args:
        settings: of the run.
        devices: ranks.

    Raises:
        BigtrainError: the ranks or the global batch do not divide.
    """
    engine, train = settings.engine, settings.train
    division = divide_work(
        train.batches,
        train.micro_batch_size,
        devices,
        tensor_parallel_size=engine.tensor_parallel_size,
        sequence_parallel_size=engine.sequence_parallel_size,
        zero_hpz_partition_size=engine.zero_hpz_partition_size,
    )
    return Layout(
        data=division.data_parallel_size,
        tensor=engine.tensor_parallel_size,
        context=engine.sequence_parallel_size,
        zero_stage=engine.zero_stage,
        zero_hpz=engine.zero_hpz_partition_size,
        micro_batch_size=train.micro_batch_size,
        accumulation_steps=division.accumulation_steps[-1],
        recomputation=engine.activation_checkpointing,
        kept_products=engine.activation_memory_budget,
        overlaps_gradients=engine.zero_stage >= 2,
        offload_optimizer=engine.offload_optimizer == "cpu",
        offload_weights=engine.offload_param == "cpu",
    )


class _Reading:
    """How many tokens of each kind a model computes for one token of the data."""

    def __init__(self, length: int, read: float, labelled: float, data_length: int) -> None:
        self.length = length
        self.read = read
        self.labelled = labelled
        self.share = length / data_length

    def times(self, parameter: ParameterShape) -> float:
        """How often a matrix multiplies a token of the data."""
        return self.share * parameter.uses.per_token(read=self.read, labelled=self.labelled)

    def bytes(self, tensor: KeptTensor) -> float:
        """Bytes of a kept tensor for a token of the data; 0 where its size does not depend on tokens."""
        if tensor.tokens is None:
            return 0.0
        tokens = tensor.tokens.per_token(read=self.read, labelled=self.labelled)
        return self.share * tensor.width * tensor.itemsize * tokens

    def attention(self, shape: AttentionShape) -> AttentionWork:
        """An attention, its keys scaled by how many queries a token of the data has."""
        times = self.share * shape.queries.per_token(read=self.read, labelled=self.labelled) * shape.products / 2
        return AttentionWork(
            heads=shape.heads,
            key_value_heads=shape.key_value_heads,
            head_width=shape.head_width,
            visible=times * shape.keys_seen(self.length, self.read, exact=True),
            length=round(times * shape.keys_seen(self.length, self.read, exact=False)),
        )


def _equal_blocks(shapes: ModelShapes, kept: ModelActivations, reading: _Reading, wide: int) -> list[BlockWork]:
    """The blocks that run, equal ones together, and how often each runs; parameters of a shared block count once."""
    counts: dict[BlockShape, int] = {}
    last: dict[BlockShape, BlockActivations] = {}  # the first one of a frozen model keeps less
    for block, own in zip(shapes.blocks, kept.blocks, strict=True):
        counts[block] = counts.get(block, 0) + 1
        last[block] = own
    hidden = shapes.settings.hidden_size
    return [_block(block, last[block], count, reading, wide, hidden) for block, count in counts.items()]


def _block(
    block: BlockShape, kept: BlockActivations, count: int, reading: _Reading, wide: int, hidden: int
) -> BlockWork:
    products = tuple(_product(each, reading) for each in block.products)
    return BlockWork(
        count=count,
        products=products,
        attention=tuple(reading.attention(each) for each in block.attentions),
        other_parameters=sum(each.numel for each in block.parameters if not each.multiplies),
        kept=tuple(_kept(kept, reading)),
        passes=tuple(_passes(block, products, reading, wide, hidden)),
    )


def _product(parameter: ParameterShape, reading: _Reading) -> Product:
    divided = {None: "no", len(parameter.shape) - 2: "outputs", len(parameter.shape) - 1: "inputs"}[parameter.split]
    return Product(
        name=parameter.name,
        inputs=parameter.inputs,
        outputs=parameter.outputs,
        per_token=reading.times(parameter) * (parameter.experts if parameter.experts > 1 else 1),
        experts=parameter.experts,
        divided=divided,  # type: ignore[arg-type]
        learns=parameter.learns,
    )


def _kept(block: BlockActivations, reading: _Reading) -> Iterator[Kept]:
    """What autograd keeps of a block, by which recomputation leaves it."""
    needed, results = ({each.what: each for each in part} for part in (block.needed, block.results))
    for what, each in {block.input.what: block.input, **needed, **results}.items():
        made_by: Literal["input", "product", "attention", "unneeded", "cheap"] = "cheap"
        if what == block.input.what:
            made_by = "input"
        elif what in results:
            made_by = "attention" if each.made_by == "attention" else "product" if what in needed else "unneeded"
        yield Kept(what, reading.bytes(each), each.divided, made_by)


def _passes(block: BlockShape, products: tuple[Product, ...], reading: _Reading, wide: int, hidden: int) -> list[Pass]:
    """What a forward pass reads and writes outside of products."""
    entering = reading.share * block.uses.per_token(read=reading.read, labelled=reading.labelled)
    norms = wide * hidden * block.norms * entering
    passes = [Pass("norms", 2 * norms, 9 * norms, False)]
    for each in products:
        made = wide * each.outputs * each.per_token
        if each.divided == "inputs":
            passes.append(Pass(f"{each.name}_sum", 3 * made, 3 * made, False))
        elif each.divided == "outputs":
            passes.append(Pass(each.name, 2 * made, 4 * made, True))
    return passes


def _states(settings: Settings, shapes: ModelShapes) -> StateBytes:
    """Bytes for each parameter. What a frozen parameter lacks makes the mean smaller."""
    engine, learns = settings.engine, shapes.learning / shapes.count
    wide = 4.0 if engine.precision == "fp32" else 2.0
    moments = {"adamw": 8.0, "lion": 4.0, "muon": 8.0 - 4.0 * _of_muon(shapes) / shapes.learning}
    return StateBytes(
        weights=wide,
        gradients=4.0 * learns,
        gradients_of_last=wide * learns if wide < 4 else 0.0,
        master=0.0 if engine.zero_stage == 0 else 4.0 * learns,
        moments=moments[settings.optimizer.name] * learns,
        gathered=1.0 if engine.zero_quantized_weights else wide,
        reduced=(0.5 if engine.zero_quantized_gradients else 4.0) * learns,
    )


def _of_muon(shapes: ModelShapes) -> int:
    """Numbers in the matrices of blocks, which Muon updates; AdamW has the rest."""
    return sum(each.numel for each in shapes.parameters if each.learns and _is_of_muon(each))


def _is_of_muon(parameter: ParameterShape) -> bool:
    return len(parameter.shape) in (2, 3) and "layers." in parameter.name


def _muon_flops(shapes: ModelShapes) -> float:
    """FLOP for each parameter of the Newton-Schulz iteration: X X^T, its square, and their product with X."""
    total = 0.0
    for each in shapes.parameters:
        if each.learns and _is_of_muon(each):
            short, long = sorted((each.inputs, each.outputs))
            total += each.experts * NEWTON_SCHULZ_STEPS * (4.0 * short * short * long + 2.0 * short**3)
    return total / shapes.count


def _kernel(engine: EngineSettings) -> AttentionKernel:
    return "unfused" if engine.attn_implementation == "reference" else "flash2"
