"""Building what trains: the ranks, the model with its first weights, the engine at a checkpoint, the meter."""

from __future__ import annotations

import json
import logging
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import xxhash

from bigtrain.base import (
    BigtrainError,
    collectively,
    disk_error,
    gather,
    on_every_rank,
    on_first_rank,
    raise_first,
    reached,
)
from bigtrain.checkpoint import Checkpoint, load
from bigtrain.config import EngineSettings, ModelSettings, Settings
from bigtrain.convert import StartingWeights
from bigtrain.data import (
    FileShares,
    Loader,
    RunData,
    open_objective,
    open_token_bytes,
    summaries_of,
)
from bigtrain.engine import COMPUTE_DTYPES, Engine, Topology, construction, start, whole_parameters
from bigtrain.health import enough_memory
from bigtrain.model import (
    Distillation,
    LanguageModel,
    SequenceParallel,
    build_model,
    first_magnitude,
    flops_per_token,
    initialize,
    product_dtype,
)
from bigtrain.objective import row_lengths
from bigtrain.observe import Meter, StageFlops, peak_of, peak_of_all
from bigtrain.rundir import RunState
from bigtrain.trained import (
    TEACHER,
    complete_teacher,
    frozen_digests,
    open_kept_outputs,
    open_teacher,
    starting_weights,
    teacher_digests,
    verified_step,
)

logger = logging.getLogger(__name__)

OpenedTeacher = tuple[ModelSettings, StartingWeights]
"""The shape of a teacher, and its weights."""


@contextmanager
def ranks(engine: EngineSettings) -> Iterator[Topology]:
    """The process group of all ranks; it is shut down in order where all ranks leave it at the same point.

    A rank that fails alone leaves without shutting it down: the others may be inside a collective and would not answer.
    """
    topology = start(engine.process_group_timeout_minutes, engine.tensor_parallel_size, engine.sequence_parallel_size)
    try:
        yield topology
    except BigtrainError as error:
        if error.shared:
            topology.shutdown()
        raise
    except BaseException as error:
        if (message := disk_error(error)) is not None:
            raise message from error
        logger.exception("this rank ended with an error that is not the user's")
        raise
    topology.barrier()
    topology.shutdown()


def engine_at(checkpoint: Checkpoint | None, settings: Settings, topology: Topology) -> tuple[Engine, RunState]:
    """A new engine at the step of the checkpoint, or before step 1, and the state of the run at that step.

    Raises:
        BigtrainError: on every rank, when `model.init_from` is not what the settings say, or the checkpoint is of an
            adapter for another base.
    """
    teacher = opened_teacher(settings, topology)
    weights = None if teacher is None else teacher[1]
    base = on_first_rank(topology, lambda: frozen_digests(settings, checkpoint, teacher_digests(settings, weights)))
    with enough_memory(settings, topology, "the model with its optimizer's state"):
        model = new_model(settings, topology, fill=checkpoint is None, teacher=teacher)
        engine = Engine(model, settings, topology)
    if checkpoint is not None:
        return engine, restore(engine, checkpoint, topology)
    return engine, RunState(base=base)


def new_model(
    settings: Settings, topology: Topology, *, fill: bool, teacher: OpenedTeacher | None = None
) -> LanguageModel:
    """The model as the engine needs it, and its teacher. Its parameters have meaningful values only where `fill` asks
    for them, and with an adapter or a teacher, whose weights no checkpoint holds."""
    frozen: Mapping[str, torch.Tensor] = {}
    with construction(settings, topology):
        model = build_model(
            settings.model,
            attn_implementation=settings.engine.attn_implementation,
            activation_checkpointing=settings.engine.activation_checkpointing,
            activation_memory_budget=settings.engine.activation_memory_budget,
            sequence_parallel=sequence_parallel(topology),
            float8=settings.engine.float8,
            adapter=settings.adapter,
            compression=settings.compression,
        )
        beside = None
        if teacher is not None:
            beside = build_model(teacher[0], attn_implementation=settings.engine.attn_implementation)
            frozen = teacher[1].under(TEACHER)
        if settings.distillation.is_on:
            model.learn_from(Distillation(settings.distillation, settings.model, beside))
    if settings.objective.class_weights:
        model.set_class_weights(settings.objective.class_weights)
    if settings.model.character_filters:
        table = on_first_rank(topology, lambda: open_token_bytes(settings.model, settings.data.dir))
        model.set_token_bytes(torch.from_numpy(table))
    if beside is not None and teacher is not None:
        known = beside
        on_every_rank(topology, lambda: complete_teacher(known, teacher[1], settings))
    if fill or settings.adapter.method != "none" or frozen:
        fill_weights(model, settings, topology, frozen)
    if settings.engine.compile:
        model.compile_blocks()
    return model


def opened_teacher(settings: Settings, topology: Topology) -> OpenedTeacher | None:
    """The shape and the weights of the teacher, if there is one. Every rank calls it. Raises BigtrainError."""
    folder = settings.distillation.teacher
    if folder is None:
        return None
    step = _verified_step(folder, topology)
    return on_every_rank(topology, lambda: open_teacher(folder, settings, step))


def fill_weights(
    model: LanguageModel, settings: Settings, topology: Topology, frozen: Mapping[str, torch.Tensor]
) -> None:
    """Give a new model its first weights: those of `model.init_from`, those of a teacher that are `frozen`, or random
    ones.

    Raises:
        BigtrainError: on every rank, when the folder is of another model or tokenizer, or was changed after the import,
            or the run that it is has no checkpoint.
    """
    given = frozen
    router_moves: dict[str, list[int]] = {}
    if (weights := first_weights(settings, topology)) is not None:
        router_moves = weights.router_moves
        given = ChainMap(weights, frozen)  # type: ignore[arg-type]  # nothing is written to it
    # At stage 3 what rank 0 writes is sent to all ranks; at the other stages every rank has its own copy.
    reads = settings.engine.zero_stage < 3 or topology.rank == 0
    error: BigtrainError | None = None
    for name, parameter in whole_parameters(model):
        try:
            if reads and error is None:  # after an error go on with the other ranks, which have to learn of it
                _require_given(name, parameter, given)
                first_weight(name, parameter.data, given, settings)
        except BigtrainError as caught:
            error = caught
    if given:
        raise_first(topology, error)
    model.set_router_moves(router_moves)


def first_weight(name: str, weight: torch.Tensor, given: Mapping[str, torch.Tensor], settings: Settings) -> None:
    """Fill one whole parameter, in place, with its first value: a given one, what follows from these, or a random one.

    Raises:
        BigtrainError: what is given is damaged.
    """
    dtype = COMPUTE_DTYPES[settings.engine.precision]
    if name in given:
        weight.copy_(given[name])
    elif (magnitude := first_magnitude(name, given, dtype)) is not None:
        weight.copy_(magnitude)
    else:
        initialize(name, weight, settings.model, settings.train.seed)


def _require_given(name: str, parameter: torch.Tensor, given: Mapping[str, torch.Tensor]) -> None:
    """Refuse a random weight that never learns. Raises BigtrainError."""
    if not parameter.requires_grad and name not in given:
        raise BigtrainError(
            f"model.init_from has no {name}, and an adapter would leave it as random as it is",
            found="a base without this part of the model",
            wanted="a part that learns",
            fix=f"add a pattern for {name.rpartition('.')[0]} to adapter.modules_to_save",
        )


def first_weights(settings: Settings, topology: Topology) -> StartingWeights | None:
    """The weights of `model.init_from`; None where all are random. Every rank calls it. Raises BigtrainError."""
    folder = settings.model.init_from
    if folder is None:
        return None
    step = _verified_step(folder, topology)
    return on_every_rank(topology, lambda: starting_weights(settings, step))


def _verified_step(folder: Path, topology: Topology) -> int | None:
    return on_first_rank(topology, lambda: verified_step(folder))


def sequence_parallel(topology: Topology) -> SequenceParallel | None:
    """The ranks that share each sequence with this one, for the model; None without sequence parallelism."""
    if topology.sequence_size == 1:
        return None
    return SequenceParallel(topology.shard_rank, topology.sequence_size, topology.sharing.group)


def layout_of(settings: Settings, topology: Topology) -> str:
    """A hash of everything that decides which rank owns which part of the state."""
    decisive = [topology.world_size, settings.engine.model_dump(), settings.optimizer.model_dump()]
    return xxhash.xxh3_64_hexdigest(json.dumps(decisive, sort_keys=True).encode())


def open_run_data(settings: Settings, topology: Topology) -> RunData:
    """The data of a run. Every rank calls it.

    Each source is opened by one rank, which sends what it found to all, and each rank looks at its share of the files.
    So the manifests are read once, however many ranks there are, and so is the size of each file. Where a folder is on
    a disk of each host, it is the ranks of each host that share the looking.

    Raises:
        BigtrainError: on every rank, when the data are missing, were built with other settings, or are used up before
            the run ends, or when a file is missing or has another size than in its manifest, with the host and path.
    """
    rank, world_size = topology.rank, topology.world_size
    own = range(rank, len(settings.data.sources), world_size)
    opened = on_every_rank(topology, lambda: dict(zip(own, summaries_of(settings, own), strict=True)))
    every = topology.reduce(opened, lambda lower, higher: lower | higher)
    summaries = topology.broadcast(every and [every[number] for number in sorted(every)])
    objective = on_first_rank(topology, lambda: open_objective(settings.objective, settings.data, settings.model))
    data = on_every_rank(topology, lambda: RunData.of(settings, summaries, objective))
    shares = FileShares((rank, world_size), (topology.local_rank, topology.local_world_size))
    collectively(topology, f"the data in {settings.data.dir} are not whole", lambda: data.check_sizes(shares))
    if settings.distillation.kept_outputs is None:
        return data
    return replace(data, kept=on_first_rank(topology, lambda: open_kept_outputs(settings, data)))


def open_loader(data: RunData, first_sample: int, micro_batch_size: int, topology: Topology) -> Loader:
    """This rank's batches from a sample number on. Every rank calls it.

    Raises:
        BigtrainError: on every rank, when a batch does not divide, or an item of data.skip matches no document.
    """
    rank, world_size = topology.data_rank, topology.data_size
    return on_every_rank(
        topology, lambda: data.loader(micro_batch_size, first_sample, rank=rank, world_size=world_size)
    )


def restore(engine: Engine, checkpoint: Checkpoint, topology: Topology) -> RunState:
    """Put the engine at the step of the checkpoint; returns the state of the run at that step."""
    reached("load")
    loaded = load(checkpoint, engine.fragments(), ranks=topology)
    state = RunState.of(loaded.summary.state)
    engine.restore(loaded.summary.cursor.optimizer_steps, state.loss_scaler)
    if loaded.rng is not None:
        engine.set_rng_state(loaded.rng)
    cast(LanguageModel, engine.module).set_router_moves(state.router_moves)
    return state


def meter_for(settings: Settings, topology: Topology, history: Iterable[Mapping[str, Any]]) -> Meter:
    """The meter, with the peak FLOP/s of all ranks. Where the peak is measured, all ranks measure at the same time.

    Args:
        settings: of the run.
        topology: all ranks.
        history: on rank 0: the events of earlier starts, which may have measured a higher peak.
    """
    topology.barrier()
    own = peak_of(topology.device, product_dtype(COMPUTE_DTYPES[settings.engine.precision], topology.device))
    peaks = gather(topology, own)
    earlier = [event["peak"] for event in history if isinstance(event.get("peak"), dict)]
    return Meter(
        [_flops_of(settings.at_step(stage.first_step), stage.first_step) for stage in settings.stages],
        peak=topology.broadcast(peaks and peak_of_all(peaks).with_earlier(earlier)),
        total_steps=settings.total_steps,
        device=topology.device,
    )


def _flops_of(settings: Settings, first_step: int) -> StageFlops:
    """The FLOPs of a token of the data in a run of these settings."""
    length, encoder_length = row_lengths(
        settings.objective, settings.data.sequence_length, reads_pairs=settings.model.reads_pairs
    )
    share = length / settings.data.sequence_length  # the meter counts tokens of the data

    def flops(causal: bool) -> float:
        return share * flops_per_token(
            settings.model,
            length,
            causal=causal,
            labelled=settings.objective.labelled_share,
            encoder_length=encoder_length,
            adapter=settings.adapter,
        )

    return StageFlops(first_step, flops(causal=False), flops(causal=True))
