"""DeepSpeed as one class: forward and backward of a micro-batch, step, state.

The engine knows the model only as a module that returns the sum of the loss over the labelled tokens. A step is

    for inputs in micro_batches:                       # any number; it is not announced
        engine.forward_backward(inputs, scale)         # scale = 1 / labelled tokens of the global batch
    result = engine.step(learning_rate)                # this call is the boundary

and its gradient is that of the mean loss over all labelled tokens of the global batch, whatever the world size, the
number of micro-batches and the number of labels in each.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bigtrain.base import BigtrainError, altered, reached
from bigtrain.checkpoint import Fragment
from bigtrain.config import Settings
from bigtrain.engine.copies import Part, copies, parts
from bigtrain.engine.deepspeed_config import deepspeed_config
from bigtrain.engine.deepspeed_import import import_deepspeed
from bigtrain.engine.fragments import fragments, owned_ranges, owners, places
from bigtrain.engine.held import held_bytes
from bigtrain.engine.muon import Muon
from bigtrain.engine.optimizer import build_optimizer, create_moments
from bigtrain.engine.topology import Topology

_SCALER_STATE = {"cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"}


def _checked_scaler(state: Mapping[str, float]) -> Mapping[str, float]:
    scale = state.get("cur_scale", 1.0)
    if state.keys() <= _SCALER_STATE and 0 < scale < math.inf and all(map(math.isfinite, state.values())):
        return state
    raise BigtrainError(
        "the checkpoint has a state of the loss scaling that this version does not know",
        found=repr(dict(state))[:200],
        wanted=f"numbers for {', '.join(sorted(_SCALER_STATE))}",
        fix="use the version of bigtrain that wrote the checkpoint, or an older checkpoint",
    )


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping; inf where it was not finite."""
    applied: bool
    """Whether the weights changed. False: the gradient was not finite, and weights and moments are as before."""


class Engine:
    """A model under training, with float32 master weights spread over the ranks as the ZeRO stage says.

    Only parameters are state: a model with persistent buffers would lose them in a checkpoint.
    """

    def __init__(self, model: nn.Module, settings: Settings, topology: Topology) -> None:
        """Wrap a model whose initial weights are the same on every rank.

        With bf16 the weights are rounded to bfloat16 first and the float32 masters start from the rounded values.

        Raises:
            BigtrainError: `engine.deepspeed` holds a key that bigtrain sets, or one of `optimizer.groups` is for no
                parameter.
        """
        deepspeed = import_deepspeed()
        self._stage = settings.engine.zero_stage
        self.scales_loss = settings.engine.precision == "fp16"
        self._max_grad_norm = settings.optimizer.max_grad_norm
        self._device = topology.device
        # Ranks that share matrices have the same loss: the first one reports it.
        self._reports_loss = topology.tensor_size == 1 or topology.shard_rank == 0
        # Stage 3 divides by the number of ranks and cannot be configured otherwise; the other stages sum.
        self._gradient_factor = topology.world_size if self._stage == 3 else 1
        self._optimizer = build_optimizer(model, settings.optimizer)
        # DeepSpeed warns of optimizers that it does not know; ours are tested with every stage.
        deepspeed.runtime.zero.utils.ZERO_SUPPORTED_OPTIMIZERS.append(type(self._optimizer))
        if self._stage == 0:
            self._grad_norm = 0.0
            self._optimizer.register_step_pre_hook(self._clip_gradients)
        self._deepspeed, *_ = deepspeed.initialize(
            model=model,
            optimizer=self._optimizer,
            config=deepspeed_config(settings),
            dist_init_required=False,
        )
        self._wrapper = self._deepspeed.optimizer
        self._ranges = owned_ranges(model, self._optimizer, self._wrapper, self._stage)
        self._owners = owners(self._optimizer, self._wrapper, self._stage)
        self._places = places(model, topology, self._stage)
        create_moments(self._optimizer, self._owners)
        self.first_loss_scaler = self.loss_scaler()
        """Of float16, before step 1: for `restore`."""
        if isinstance(self._optimizer, Muon):
            self._optimizer.locate(list(self._owners), self._ranges, spread=self._stage > 0)

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        module: nn.Module = self._deepspeed.module
        return module

    def forward_backward(
        self,
        inputs: Mapping[str, Any],
        scale: float | torch.Tensor,
        forward: AbstractContextManager[None] | None = None,
    ) -> torch.Tensor:
        """Add the gradient of scale * loss sum to what this step has gathered so far; of several loss terms, each with
        a scale of its own, that of the sum over them.

        Args:
            inputs: keyword arguments of the model's forward, on the engine's device.
            scale: 1 / number of labelled tokens in the global batch, all ranks and micro-batches together. [terms]
                where the model returns the sums of several terms: 1 / the number of labels of each.
            forward: entered for the time of the forward pass.

        Returns:
            The loss sum over this rank's part of the micro-batch, unscaled, float32 scalar or [terms], without a graph.
            Added up over all ranks, every label counts once.
        """
        with forward or nullcontext():
            reached("forward")
            loss: torch.Tensor = altered("loss", self._deepspeed(**inputs))
        reached("backward")
        scaled = loss * (scale * self._gradient_factor)
        self._deepspeed.backward(scaled.sum() if scaled.dim() else scaled, scale_wrt_gas=False)
        return self._reported(loss.detach())

    def step(self, learning_rate: float) -> StepResult:
        """Reduce the gradient over the ranks, clip it, update the weights at this learning rate, and forget it."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        try:
            self._deepspeed.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            raise BigtrainError(
                "the gradients overflow float16 even without loss scaling",
                found="a loss scale of 1",
                fix="lower optimizer.learning_rate, or use engine.precision bf16 in a new run",
            ).on_all_ranks() from error
        norm = self._grad_norm if self._stage == 0 else float(self._deepspeed.get_global_grad_norm())
        return StepResult(norm, applied=math.isfinite(norm))

    def rehearse(self, micro_batches: Iterable[Mapping[str, Any]]) -> None:
        """A step that leaves no trace: forward, backward and reduction, with a gradient of NaN, which is never applied.

        Weights, moments, step counters, the loss scaler, the model's buffers and torch's random generators are what
        they were. Every rank has to call it, with as many micro-batches.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        random, scaler = self.rng_state(), self.loss_scaler()
        if scaler:  # at its minimum an overflow would be an error
            self._wrapper.loss_scaler.cur_scale = 2.0**16
        for inputs in micro_batches:
            self.forward_backward(inputs, math.nan)
        with _quiet_deepspeed():  # it would warn of an overflow
            result = self.step(0.0)
        assert not result.applied
        if scaler:
            vars(self._wrapper.loss_scaler).update(scaler)
        for buffer, before in buffers:
            buffer.copy_(before)
        self.set_rng_state(random)

    @torch.no_grad()
    def evaluate(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The loss sum over this rank's part of one batch, float32 scalar or [terms], in evaluation mode.

        Every rank has to call it equally often.
        """
        self.module.eval()
        loss: torch.Tensor = self.module(**inputs)
        self.module.train()
        return self._reported(loss)

    @torch.no_grad()
    def token_losses(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The loss of every token of one batch, float32 [B, T] (of this rank's own tokens, where sequences are shared),
        in evaluation mode; 0 where there is no label.

        Every rank has to call it equally often.
        """
        self.module.eval()
        losses: torch.Tensor = self.module(**inputs, each_token=True)
        self.module.train()
        return losses

    def fragments(self) -> list[Fragment]:
        """This rank's part of the training state, as views: master weights and the optimizer's moments."""
        return fragments(self._optimizer, self._ranges, self._places)

    def copies(self) -> dict[str, torch.Tensor]:
        """The weights on this rank, as the model computes with them, that other ranks have the same of, by name."""
        return copies(self.module, self._stage)

    def parts(self) -> list[Part]:
        """This rank's part of the weights as the model computes with them, beside the master it was made from."""
        return parts(self.module, self._ranges, self._stage)

    def held_bytes(self) -> dict[str, int]:
        """Bytes on this rank's device that are weights, master weights, moments and, before `step`, gradients."""
        return held_bytes(self.module, self._wrapper, self.fragments(), self._device)

    @property
    def optimizer_steps(self) -> int:
        """Steps that the optimizer has applied; AdamW's bias correction depends on them."""
        return int(next(iter(self._optimizer.state.values()))["step"])

    def restore(self, optimizer_steps: int, loss_scaler: Mapping[str, float] | None = None) -> None:
        """After new values were copied into the fragments: set the step counters and refresh the model's weights.

        Every rank has to call it.
        """
        if loss_scaler and self.scales_loss:
            vars(self._wrapper.loss_scaler).update(_checked_scaler(loss_scaler))
        for state in self._optimizer.state.values():
            state["step"].fill_(optimizer_steps)
        if self._stage in (1, 2):
            self._wrapper.update_lp_params()
        elif self._stage == 3:
            _refresh_stage_3(self._wrapper)

    def loss_scaler(self) -> dict[str, float]:
        """The state of float16's dynamic loss scaling, for `restore`; empty where nothing is scaled."""
        if not self.scales_loss:
            return {}
        return {name: value for name, value in vars(self._wrapper.loss_scaler).items() if name in _SCALER_STATE}

    def rng_state(self) -> dict[str, torch.Tensor]:
        """The state of torch's random generators on this rank, uint8."""
        state = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._device)
        return state

    def set_rng_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put the generators back where `rng_state` found them."""
        torch.set_rng_state(state["cpu"])
        if self._device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self._device)

    def _reported(self, loss: torch.Tensor) -> torch.Tensor:
        return loss if self._reports_loss else torch.zeros_like(loss)

    def _clip_gradients(self, *_: object) -> None:
        """Stage 0, between reduction and update: what ZeRO's optimizers do themselves."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._grad_norm = float(norm)
        if not math.isfinite(self._grad_norm):
            self._grad_norm = math.inf
            self._optimizer.zero_grad()  # the optimizers leave a parameter without gradient alone
        elif self._max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)


@contextmanager
def _quiet_deepspeed() -> Iterator[None]:
    logger = import_deepspeed().utils.logging.logger
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _refresh_stage_3(wrapper: Any) -> None:
    """Copy the masters into the partitioned weights, and gather again those that stay whole on every rank."""
    wrapper._partition_all_parameters()
    wrapper.invalidate_secondary_tensor()  # ZeRO++'s second copies are of the weights before
    for sub_group in range(len(wrapper.fp16_groups)):
        wrapper._reassign_or_swap_out_partitioned_parameters(sub_group)
    if kept_whole := wrapper.persistent_parameters:
        kept_whole[0].partition(kept_whole)
        kept_whole[0].all_gather(kept_whole)
