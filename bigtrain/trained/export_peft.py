"""Export of a run's adapter for peft, with a check that it computes the same on its base."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.checkpoint import load_weights
from bigtrain.convert import export_peft
from bigtrain.data import open_mirror
from bigtrain.engine import COMPUTE_DTYPES
from bigtrain.model import TASK_HEAD, is_of_adapter
from bigtrain.rundir import RunDirectory
from bigtrain.trained.base_model import base_of, weights_of
from bigtrain.trained.checkpoint_settings import open_with_settings
from bigtrain.trained.export import ComparedWithTransformers, checked, require_known_attention, write_folder


@dataclass(frozen=True)
class PeftExport(ComparedWithTransformers):
    """The adapter of a checkpoint that was written for peft."""

    out: str
    step: int
    method: str
    """Of the adapter, such as `lora`."""
    base: str
    """The Hugging Face model of its base, as adapter_config.json names it."""
    modules: int
    """Modules of that model that are adapted; with virtual tokens its layers."""
    parameters: int
    """Of the adapter, with those of modules that learned as a whole."""
    dtype: str
    """The precision of the training, such as `bf16`."""
    largest_logit_difference: float | None
    """Between peft and bigtrain; null where they were not compared, as the two below."""
    greedy_tokens: int | None
    """How many were drawn with each of the two."""
    greedy_tokens_alike: int | None
    """How many of these are the same."""


def export_run_to_peft(
    run: Path, out: Path, *, step: int | None, check: bool, report: Callable[[str], None]
) -> PeftExport:
    """Write the adapter of a checkpoint as a folder for peft, in the precision that it was trained in.

    Args:
        run: a run directory.
        out: the folder to make.
        step: of the checkpoint. Default: the newest verified one.
        check: load it with peft onto the base and compare; without peft it is skipped with a message. For that the base
            is written to a temporary folder, and memory holds the model in float32.
        report: called with each line of progress.

    Raises:
        BigtrainError: the run has no adapter, peft has none of its kind, `out` holds something else, or the check
            fails.
    """
    settings, checkpoint = open_with_settings(RunDirectory.of_existing_run(run), step)
    require_known_attention(settings, "peft")
    if settings.adapter.method == "none":
        raise BigtrainError(
            f"{run} has no adapter that peft could load",
            found="adapter.method none",
            wanted="a run with adapter.method lora or dora",
            fix="export the model as a whole: --to hf",
        )
    open_mirror(settings.data)  # the tokenizer may be at a URL
    weights, base = weights_of(settings, checkpoint), base_of(settings)
    trained = [name for name in load_weights(checkpoint) if not is_of_adapter(name)]
    dtype, base_name = COMPUTE_DTYPES[settings.engine.precision], base.name
    compared: dict[str, Any] = {}

    def compare(made: Path) -> None:
        with TemporaryDirectory(prefix="bigtrain-base-") as name:
            folder = Path(name) / "hf"
            if check:
                head = {name: weights[name] for name in trained if name.startswith(TASK_HEAD)}  # the base has none
                write_folder(ChainMap(head, base), settings, folder)  # type: ignore[arg-type]  # it is only read
            adapter = settings.adapter, made
            compared.update(checked(folder, weights, settings.model, dtype, report if check else None, adapter=adapter))

    written = export_peft(
        weights,
        trained,
        settings.model,
        settings.adapter,
        out,
        base=base.digests,
        base_name=base_name,
        dtype=dtype,
        check=compare,
    )
    return PeftExport(
        out=str(out),
        step=checkpoint.step,
        method=settings.adapter.method,
        base=base_name,
        modules=written.modules,
        parameters=written.parameters,
        dtype=settings.engine.precision,
        **compared,
    )
