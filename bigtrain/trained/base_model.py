"""The model that an adapter was trained beside: a checkpoint holds only what learned, and names the rest by digests."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping

from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.checkpoint import Checkpoint
from bigtrain.config import Settings
from bigtrain.convert import StartingWeights
from bigtrain.model import Merged
from bigtrain.rundir import RunState
from bigtrain.trained.trained_weights import DISTILLATION, trained_weights
from bigtrain.trained.weight_source import weight_source


def base_of(settings: Settings) -> StartingWeights:
    """The weights of `model.init_from` that a model of these settings has. Raises BigtrainError: there are none."""
    assert settings.model.init_from is not None  # the settings have seen to it
    return weight_source(settings.model.init_from).for_model(settings.model)


def require_base(base: StartingWeights, checkpoint: Checkpoint) -> None:
    """Refuse a base that a checkpoint's adapter was not trained beside.

    Raises:
        BigtrainError: names the weights that differ.
    """
    what = f"{base.folder} is not the base that the adapter in {checkpoint.location} was trained beside"
    stored = {name: digest for name, digest in _stored(checkpoint).items() if not name.startswith(DISTILLATION)}
    _require(base.digests, stored, what, "set model.init_from to the folder that the run was started from")


def frozen_digests(settings: Settings, checkpoint: Checkpoint | None, of_teacher: Mapping[str, str]) -> dict[str, str]:
    """The digests of all weights that a run's model has and does not train: of an adapter's base, and of a teacher.

    Args:
        settings: of the run.
        checkpoint: that the run goes on from, which has to have been trained beside them.
        of_teacher: of `teacher_digests`.

    Raises:
        BigtrainError: they are not there, or the checkpoint was trained beside others.
    """
    digests: dict[str, str] = {}
    if settings.adapter.method != "none":
        base = base_of(settings)
        digests |= base.digests
        if checkpoint is not None:
            require_base(base, checkpoint)
    if checkpoint is not None:
        stored = {name: digest for name, digest in _stored(checkpoint).items() if name.startswith(DISTILLATION)}
        what = f"what distillation names is not the teacher of the model in {checkpoint.location}"
        _require(of_teacher, stored, what, "set the section distillation as the run was started with")
    return {**digests, **of_teacher}


def _stored(checkpoint: Checkpoint) -> dict[str, str]:
    return RunState.of(checkpoint.manifest.state).base


def _require(found: Mapping[str, str], stored: Mapping[str, str], what: str, fix: str) -> None:
    if differing := sorted(name for name in stored.keys() | found.keys() if stored.get(name) != found.get(name)):
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise BigtrainError(
            what,
            found=f"another {', '.join(differing[:4])}{more}",
            wanted=f"{len(stored)} weights with the digests in the checkpoint's manifest",
            fix=fix,
        )


def weights_of(settings: Settings, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """All weights of a run's model at a checkpoint, whole, each read at every request: those of a base, too.

    Raises:
        BigtrainError: here or at a request: the checkpoint is damaged, or the base is another one.
    """
    trained = trained_weights(settings, checkpoint)
    if settings.adapter.method == "none":
        return trained
    base = base_of(settings)
    require_base(base, checkpoint)
    return ChainMap(trained, base)  # type: ignore[arg-type]  # nothing is written to it


def plain_weights(settings: Settings, weights: Mapping[str, Tensor], merge: bool) -> Mapping[str, Tensor]:
    """The weights of a run's model as those of a model without an adapter.

    Args:
        settings: of the run.
        weights: of `weights_of`.
        merge: whether the user asks to merge an adapter into them.

    Raises:
        BigtrainError: an adapter is to be left unmerged, cannot be merged, or is not there.
    """
    method = settings.adapter.method
    if merge and not settings.adapter.low_rank:
        raise BigtrainError(
            "there is nothing to merge",
            found=f"adapter.method {method}",
            wanted="lora or dora, which change matrices that are there",
            fix="leave --merge out" if method == "none" else "use the run with `bigtrain eval` and `bigtrain generate`",
        )
    if method != "none" and not merge:
        raise BigtrainError(
            "this run has trained an adapter, which this format has no place for",
            found=f"adapter.method {method}",
            wanted="a model without an adapter",
            fix="merge it with --merge, or write it for peft: --to peft",
        )
    return Merged(weights, settings.adapter) if merge else weights
