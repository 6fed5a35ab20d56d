"""A run's settings as a workload and a layout: what bigtrain and DeepSpeed do with them, in the planner's terms.

    model, objective, data, optimizer, adapter, engine  --> workload_of --> Workload
    engine, train, and how many devices                 --> layout_of   --> Layout

What is said here of bytes is what `bigtrain/engine/deepspeed_config.py` and `bigtrain/model` do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Literal

from bigtrain.config import EngineSettings, Settings, divide_work
from bigtrain.estimate.layout import Layout
from bigtrain.estimate.workload import (
    AttentionKernel,
    AttentionWork,
    BlockWork,
    Kept,
    MadeBy,
    Pass,
    Product,
    StateBytes,
    Workload,
)
from bigtrain.model import (
    AttentionShape,
    BlockShape,
    Computation,
    KeptTensor,
    ModelActivations,
    ModelShapes,
    ParameterShape,
    activations,
    loss_memory,
    model_shapes,
    most_rows,
)
from bigtrain.objective import row_lengths

HELD_WHOLE = 100_000
"""Numbers of a parameter up to which stage 3 never divides it (DeepSpeed's stage3_param_persistence_threshold)."""
NEWTON_SCHULZ_STEPS = 5
"""Iterations that orthogonalise an update of Muon (Jordan et al., 2024)."""


def workload_of(settings: Settings, kernels: Literal["cuda", "cpu"] = "cuda") -> Workload:
    """What a run asks of its devices, for one token of its data.

    Args:
        settings: of the run; its engine says in what it computes, but not over how many ranks.
        kernels: whose attention and norms are meant: they differ in what they keep for the backward pass.
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
    computation = _computation(settings, kernels, length, encoder_length or length)
    made = activations(shapes, computation)
    learns = head is not None and head.learns
    loss = loss_memory(settings.model, computation, settings.data.sequence_length, learns=learns)
    blocks = _equal_blocks(shapes, made, reading, wide)
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
        kept_before=(
            *(reading.kept(each, "cheap") for each in made.before),
            *(reading.kept(each, "beside") for each in made.context),
        ),
        kept_after=tuple(reading.kept(each, "cheap") for each in made.after),
        kept_by_head=tuple(reading.kept(each, "cheap") for each in made.head),
        logits_bytes=float(loss.bytes_per_logit),
        logits_tokens=most_rows(computation.device, settings.model, loss.bytes_per_logit),
        loss_workspace=loss.workspace,
        held_whole=sum(each.numel for each in shapes.parameters if each.numel <= HELD_WHOLE),
        largest_parameter=max(each.numel for each in shapes.parameters if each.learns) if wide == 4 else 0,
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

    def kept(self, tensor: KeptTensor, made_by: MadeBy, blocks: int = 1) -> Kept:
        """A tensor that waits for the backward pass, as a part of so many blocks."""
        if tensor.tokens is None:
            return Kept(tensor.what, 0.0, tensor.divided, made_by, tensor.bytes(0) / blocks)
        size = tensor.bytes(self.share, read=self.share * self.read, labelled=self.share * self.labelled)
        return Kept(tensor.what, size / blocks, tensor.divided, made_by)

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


def _equal_blocks(shapes: ModelShapes, made: ModelActivations, reading: _Reading, wide: int) -> list[BlockWork]:
    """The blocks that run, equal ones together, and how often each runs; parameters of a shared block count once."""
    kept = _kept_of_blocks(shapes, made, reading)
    distinct = Counter(dict(zip(shapes.block_names, shapes.blocks, strict=True)).values())
    return [
        replace(
            _block(block, count, tuple(kept[block]), reading, wide, shapes.settings.hidden_size),
            distinct=distinct[block],
        )
        for block, count in Counter(shapes.blocks).items()
    ]


def _block(
    block: BlockShape, count: int, kept: tuple[Kept, ...], reading: _Reading, wide: int, hidden: int
) -> BlockWork:
    products = tuple(_product(each, reading) for each in block.products)
    return BlockWork(
        count=count,
        products=products,
        attention=tuple(reading.attention(each) for each in block.attentions),
        other_parameters=sum(each.numel for each in block.parameters if not each.multiplies),
        kept=kept,
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


def _kept_of_blocks(shapes: ModelShapes, made: ModelActivations, reading: _Reading) -> dict[BlockShape, list[Kept]]:
    """What a block of each shape keeps, on average over the blocks of that shape. A tensor is kept once."""
    tensors: dict[BlockShape, list[Kept]] = {}
    numbers = Counter(shapes.blocks)
    seen = {each.what for each in made.before}
    for shape, block in zip(shapes.blocks, made.blocks, strict=True):
        needed = {each.what: each for each in block.needed if each.what not in seen}
        seen |= needed.keys()
        entered, results = block.input.what, {each.what: each for each in block.results}
        again = {each.what: each for each in block.beside}
        found: list[tuple[KeptTensor, MadeBy]] = []
        for name, each in needed.items():
            found.append((each, "input" if name == entered else results[name].made_by if name in results else "cheap"))
        if entered not in needed:
            found.append((block.input, "entry"))
        found += [(each, "beside") for name, each in again.items() if name not in needed]
        found += [(each, "result") for name, each in results.items() if name not in needed and name != entered]
        tensors.setdefault(shape, []).extend(reading.kept(each, made_by, numbers[shape]) for each, made_by in found)
    return tensors


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


def _computation(settings: Settings, kernels: Literal["cuda", "cpu"], length: int, encoder_length: int) -> Computation:
    engine = settings.engine
    back_end = engine.attn_implementation
    return Computation(
        device=kernels,
        precision=engine.precision,
        attention="sdpa" if back_end == "reference" else back_end,
        length=length,
        read_length=encoder_length,
        sequence_parallel=engine.sequence_parallel_size > 1,
    )


def _kernel(engine: EngineSettings) -> AttentionKernel:
    return "unfused" if engine.attn_implementation == "reference" else "flash2"
