"""Putting a run together: from settings to a `TrainingRun` that stands where the last start left it.

Whatever can be wrong is found here, before the first step and before anything is written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
import xxhash

from bigtrain.base.errors import BigtrainError
from bigtrain.base.faults import reached
from bigtrain.base.format import quantity
from bigtrain.base.version import __version__
from bigtrain.checkpoint import Checkpoint, Places, Saver, Search, load, newest_verified
from bigtrain.checkpoint.compatibility import Change
from bigtrain.config import Settings
from bigtrain.convert import Imported, obstacles
from bigtrain.data import Plan
from bigtrain.data.format.tokenizer import TOKENIZER_FILE
from bigtrain.data.run_data import RunData
from bigtrain.engine.agreement import on_every_rank, on_first_rank, raise_first
from bigtrain.engine.construction import construction, whole_parameters
from bigtrain.engine.engine import Engine
from bigtrain.engine.precision import COMPUTE_DTYPES
from bigtrain.engine.requirements import check_machine
from bigtrain.engine.topology import Topology, start
from bigtrain.health.heartbeat import Pulse
from bigtrain.health.out_of_memory import enough_memory
from bigtrain.health.spikes import Guard
from bigtrain.health.stragglers import OwnWork
from bigtrain.health.watchdog import Watchdog
from bigtrain.model import (
    Decoder,
    SequenceParallel,
    build_model,
    count_parameters,
    flops_per_token,
    initialize,
    product_dtype,
)
from bigtrain.observe.meter import Meter
from bigtrain.observe.peak_flops import peak_of, peak_of_all
from bigtrain.observe.terminal import log_to
from bigtrain.observe.tracking import ALERTS, Tracker, remembered_run_id
from bigtrain.rundir.counted_seconds import CountedSeconds
from bigtrain.rundir.decisions import read_decisions, with_decisions
from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.json_lines import JsonLines, read_json_lines
from bigtrain.rundir.start_clock import Phases, clock
from bigtrain.rundir.starts import number_of_next_start
from bigtrain.train.cadence import Cadence, history_of
from bigtrain.train.continuation import check_continuation
from bigtrain.train.dry_run import dry_run
from bigtrain.train.expected_parameters import check_expected_parameters
from bigtrain.train.stop import StopRequest
from bigtrain.train.superseded import remove_void
from bigtrain.train.training import TrainingRun
from bigtrain.trained.samples import one_rank_can_sample

logger = logging.getLogger(__name__)


@contextmanager
def open_run(settings: Settings) -> Iterator[TrainingRun]:
    """Everything that training needs, at the step of the newest verified checkpoint.

    Raises:
        BigtrainError: on every rank, when anything is wrong on any; then nothing of an earlier start was changed.
    """
    phases = Phases()
    stop = StopRequest()
    stop.listen()
    check_expected_parameters(settings.model)
    with ranks(settings) as topology, ExitStack() as held:
        directory, pulse = RunDirectory(settings.run_dir), Pulse()
        watchdog = Watchdog.start(pulse, settings.guard, topology, directory)
        held.callback(watchdog.stop)
        check_machine(settings, topology)
        phases.end("process group")
        data = on_every_rank(topology, lambda: RunData.open(settings))
        pulse.beat()
        phases.end("data")
        on_first_rank(topology, lambda: claim(directory))
        held.callback(directory.unlock)
        decisions = on_first_rank(topology, lambda: read_decisions(directory.decisions))
        if decisions:
            settings = with_decisions(settings, decisions)
            data = on_every_rank(topology, lambda: data.replanned(settings))
        places = on_every_rank(topology, lambda: Places.of(directory.root, settings.checkpoint))
        remove_void(places, decisions, topology)
        layout = layout_of(settings, topology)
        search = newest_verified(places, ranks=topology, layout=layout)
        pulse.beat()
        changes = on_first_rank(topology, lambda: check_continuation(directory, search, settings, data.plan, decisions))
        first_sample = search.newest.manifest.cursor.consumed_samples if search.newest else 0
        loader = on_every_rank(
            topology,
            lambda: data.loader(
                settings.train.micro_batch_size, first_sample, rank=topology.data_rank, world_size=topology.data_size
            ),
        )
        held.callback(loader.close)
        phases.end("checkpoint search")

        log_to(topology.rank, directory.rank_log(topology.rank))
        engine, state = engine_at(search.newest, settings, topology)
        pulse.beat()
        phases.end("model and checkpoint")
        guard = Guard.of(settings, data.plan)
        guard.restore({} if changes else state.get("guard", {}))
        step = search.newest.step if search.newest else 0
        durable_step = None if search.newest and places.is_local(search.newest) else step
        saver = Saver(places, topology.behind(), settings.checkpoint, layout=layout, durable_step=durable_step)
        held.callback(saver.close)
        watchdog.saving_since = lambda: saver.saving_since
        saver.reserve(engine.fragments(), engine.rng_state())
        dry_run(engine, settings, topology)
        phases.end("dry run")
        keeps_records = topology.rank == 0
        if keeps_records:
            directory.write_config(settings)
        history = list(read_json_lines(directory.events)) if keeps_records else []
        number = number_of_next_start(history)
        run = TrainingRun(
            settings=settings,
            topology=topology,
            directory=directory,
            data=data,
            loader=loader,
            engine=engine,
            guard=guard,
            decisions=decisions,
            places=places,
            meter=meter_for(settings, topology),
            tracker=tracker_for(settings, history, state) if keeps_records else Tracker(),
            saver=saver,
            stop=stop,
            step=step,
            own_work=OwnWork(settings, topology),
            pulse=pulse,
            metrics=JsonLines(directory.metrics, number) if keeps_records else None,
            events=JsonLines(directory.events, number) if keeps_records else None,
            counted=CountedSeconds(directory.metrics) if keeps_records else None,
            cadence=cadence_for(settings, topology, history) if keeps_records else None,
        )
        held.callback(lambda: run.loader.close())  # after a rewind it has another one
        held.callback(run.tracker.finish, {}, exit_code=1)  # if something goes wrong; else it is finished by then
        watchdog.alert = run.tracker.alert_and_wait
        phases.end("meter and tracker")
        introduce(run, search, phases)
        tell_of_changes(run, changes)
        stop.training_begins()
        yield run


@contextmanager
def ranks(settings: Settings) -> Iterator[Topology]:
    """The process group, left in order whenever all ranks leave it together.

    A rank that fails alone goes without a word to the others: they may be inside a collective and would never answer.
    """
    engine = settings.engine
    topology = start(engine.process_group_timeout_minutes, engine.tensor_parallel_size, engine.sequence_parallel_size)
    try:
        yield topology
    except BigtrainError as error:
        if error.shared:
            topology.shutdown()
        raise
    except BaseException:
        logger.exception("this rank ended with an error that is not the user's")
        raise
    topology.barrier()
    topology.shutdown()


def claim(directory: RunDirectory) -> None:
    """Make the run directory ours.

    Raises:
        BigtrainError: it holds somebody else's files, or another job is at work there.
    """
    directory.refuse_foreign()
    directory.lock()


def engine_at(checkpoint: Checkpoint | None, settings: Settings, topology: Topology) -> tuple[Engine, dict[str, Any]]:
    """A new engine that stands where the checkpoint does, or before step 1; and the run's own state of then."""
    with enough_memory(settings, topology, "the model with its optimizer's state"):
        model = new_model(settings, topology, fill=checkpoint is None)
        engine = Engine(model, settings, topology)
    if checkpoint is not None:
        return engine, restore(engine, checkpoint, topology)
    model.set_router_moves({})
    return engine, {}


def new_model(settings: Settings, topology: Topology, *, fill: bool) -> Decoder:
    """The model as the engine wants it; its parameters mean nothing yet unless `fill` asks for the initial weights."""
    with construction(settings, topology):
        model = build_model(
            settings.model,
            attn_implementation=settings.engine.attn_implementation,
            activation_checkpointing=settings.engine.activation_checkpointing,
            activation_memory_budget=settings.engine.activation_memory_budget,
            sequence_parallel=sequence_parallel(topology),
            float8=settings.engine.float8,
        )
    if fill:
        fill_weights(model, settings, topology)
    if settings.engine.compile:
        model.compile_blocks()
    return model


def fill_weights(model: Decoder, settings: Settings, topology: Topology) -> None:
    """Give a new model its first weights: those of `model.init_from`, or random ones.

    Raises:
        BigtrainError: on every rank, when the folder is of another model or tokenizer, or is not what was imported.
    """
    given: Mapping[str, torch.Tensor] = {}
    if settings.model.init_from is not None:
        given = on_every_rank(topology, lambda: starting_weights(settings))
    # At stage 3 what rank 0 writes is sent to all; else every rank has a copy of its own.
    reads = settings.engine.zero_stage < 3 or topology.rank == 0
    error: BigtrainError | None = None
    for name, parameter in whole_parameters(model):
        if name not in given:
            initialize(name, parameter, settings.model, settings.train.seed)
        elif reads and error is None:  # behind an error, go on with the others, who have to be told
            try:
                parameter.data.copy_(given[name])
            except BigtrainError as caught:
                error = caught
    if given:
        raise_first(topology, error)


def starting_weights(settings: Settings) -> Imported:
    """The weights of `model.init_from`, once it is known that model and tokenizer are theirs. Raises BigtrainError."""
    assert settings.model.init_from is not None
    imported = Imported(settings.model.init_from)
    imported.check_tokenizer(settings.data.dir / TOKENIZER_FILE)
    for note in imported.check_model(settings.model):
        logger.warning(note)
    return imported


def sequence_parallel(topology: Topology) -> SequenceParallel | None:
    """The ranks that share each sequence with this one, for the model; None where nobody does."""
    if topology.sequence_size == 1:
        return None
    return SequenceParallel(topology.shard_rank, topology.sequence_size, topology.sharing.group)


def layout_of(settings: Settings, topology: Topology) -> str:
    """A name for what decides which rank owns what of the state; where it is the same, they own the same again."""
    decisive = [topology.world_size, settings.engine.model_dump(), settings.optimizer.model_dump()]
    return xxhash.xxh3_64_hexdigest(json.dumps(decisive, sort_keys=True).encode())


def restore(engine: Engine, checkpoint: Checkpoint, topology: Topology) -> dict[str, Any]:
    """Put the engine where the checkpoint stands; returns the run's own state in it."""
    reached("load")
    loaded = load(checkpoint, engine.fragments(), ranks=topology)
    engine.restore(loaded.manifest.cursor.optimizer_steps, loaded.manifest.state["loss_scaler"])
    if loaded.rng is not None:
        engine.set_rng_state(loaded.rng)
    state = loaded.manifest.state
    cast(Decoder, engine.module).set_router_moves(state.get("router_moves", {}))
    return state


def meter_for(settings: Settings, topology: Topology) -> Meter:
    """The meter, with what counts as 100% of all ranks together; where that is measured, at the same time on all."""
    topology.barrier()
    peak = peak_of(topology.device, product_dtype(COMPUTE_DTYPES[settings.engine.precision], topology.device))
    tokens = settings.data.sequence_length
    return Meter(
        flops_per_token=flops_per_token(settings.model, tokens),
        causal_flops_per_token=flops_per_token(settings.model, tokens, causal=True),
        peak=peak_of_all(topology.all_gather(peak)),
        total_steps=settings.total_steps,
        device=topology.device,
    )


def tracker_for(settings: Settings, history: list[dict[str, Any]], state: Mapping[str, Any]) -> Tracker:
    """The W&B run of all starts: the one that the run's records know, else the one that its checkpoint came from."""
    tracker = Tracker.start(settings, remembered_run_id(history) or state.get("wandb_run_id"))
    if history and history[-1]["event"] == "hang":  # rank 0, which tells W&B, may have been the one that stood still
        tracker.alert("hang", str(history[-1].get("verdict", "")), ALERTS["hang"])
    return tracker


def cadence_for(settings: Settings, topology: Topology, history: list[dict[str, Any]]) -> Cadence | None:
    """What chooses the time between two saves, where that is left to us."""
    if settings.checkpoint.every_minutes != "auto":
        return None
    return Cadence(history_of(history), topology.world_size)


def introduce(run: TrainingRun, search: Search, phases: Phases) -> None:
    """Say once what this run is and where it starts."""
    settings, topology = run.settings, run.topology
    batch = run.plan.batches.sizes[-1]
    accumulation = batch // (topology.data_size * settings.train.micro_batch_size)
    logger.info(
        f"bigtrain {__version__}: {settings.model.family}, {count_parameters(settings.model):,} parameters, "
        f"{settings.engine.precision}, ZeRO stage {settings.engine.zero_stage}"
    )
    logger.info(
        f"{topology.world_size} process(es) on {topology.device.type}, {torch.get_num_threads()} thread(s) each; "
        f"100% MFU is {run.meter.peak}"
    )
    run.tracker.describe({"peak": run.meter.peak.as_record()})
    logger.info(
        f"{run.total_steps:,} steps of {batch} x {settings.data.sequence_length} = "
        f"{quantity(batch * settings.data.sequence_length)} tokens, in micro-batches of "
        f"{settings.train.micro_batch_size} with {accumulation} accumulated; plan {run.plan.plan_id[:12]}"
    )
    for obstacle in obstacles(settings.model):
        logger.warning(f"this model cannot be exported to Hugging Face: {obstacle}")
    for key in behind_the_end(settings):
        logger.warning(f"{key} begins behind the last step: it changes nothing in this run")
    if settings.evaluate.samples and not one_rank_can_sample(settings):
        logger.warning(
            "evaluate.samples: at ZeRO stage 3, or with tensor or sequence parallelism, no rank has the whole model; "
            f"`bigtrain report {settings.run_dir} --samples {settings.evaluate.samples}` draws them from a checkpoint"
        )
    for dataset in run.held_out:
        if not dataset.tokens:
            logger.warning(f"source {dataset.name} has no held-out documents: it is not evaluated")
    tell_of_decisions(run)
    for passed_over in (*search.elsewhere, *search.rejected):
        checkpoint, problems = passed_over.checkpoint, "; ".join(passed_over.problems)
        run.note("fallback", checkpoint=checkpoint.name, place=checkpoint.location, problems=problems)
        logger.warning(f"{checkpoint.location} is passed over: {problems}")
    start = {
        "world_size": topology.world_size,
        "wandb_run_id": run.tracker.run_id,
        "version": __version__,
        "plan_id": run.plan.plan_id,
        "peak": run.meter.peak.as_record(),
        "clock": clock(),
        "phases": phases.seconds,
    }
    if run.step:
        run.note("resume", from_checkpoint=f"step-{run.step:08d}", **start)
        logger.info(f"step {run.step}  going on from the checkpoint of this step")
        tell_of_another_plan(run, search)
    else:
        run.note("start", **start)


def tell_of_decisions(run: TrainingRun) -> None:
    """Record what an earlier start decided and was killed before it could say so."""
    if run.events is None or not run.decisions:
        return
    told = {event.get("decision") for event in read_json_lines(run.directory.events) if event["event"] == "rewind"}
    for decision in run.decisions:
        if decision.decision not in told:
            run.note_decision(decision)


def tell_of_changes(run: TrainingRun, changes: list[Change]) -> None:
    """Record which settings change the mathematics from here on."""
    for change in changes:
        run.note("change", key=change.key, **{"from": change.then, "to": change.now})
        logger.info(f"step {run.step}  {change.key} changes from {change.then} to {change.now}, as it was allowed to")


def behind_the_end(settings: Settings) -> list[str]:
    """The keys of what would only begin after the schedule."""
    last, tokens = settings.total_steps, settings.train.batches.consumed_after(settings.total_steps)
    phases = [phase.from_tokens >= tokens * settings.data.sequence_length for phase in settings.data.phases]
    skips = [(skip.steps[0] if skip.steps else skip.from_step) > last for skip in settings.data.skip]
    return [f"data.phases.{i}" for i, late in enumerate(phases) if late] + [
        f"data.skip.{i}" for i, late in enumerate(skips) if late
    ]


def tell_of_another_plan(run: TrainingRun, search: Search) -> None:
    """Record that what lies ahead of the run is no longer what it was planned to be."""
    assert search.newest is not None
    then = search.newest.manifest.cursor.plan_id
    if then != run.plan.plan_id:
        before = Plan.from_json(search.newest.manifest.state["plan"])
        sample, parts = run.plan.first_difference(before), run.plan.parts_unlike(before)
        step = None if sample is None else run.plan.batches.step_of(sample)
        run.note(
            "plan",
            from_plan=then,
            to_plan=run.plan.plan_id,
            differs=parts,
            same_before_step=step,
            skip=[skip.model_dump(mode="json", exclude_none=True) for skip in run.settings.data.skip],
        )
        since = "which moves no batch" if step is None else f"from step {step:,} on"
        logger.info(f"step {run.step}  the data plan has changed in {', '.join(parts)}, {since}")
