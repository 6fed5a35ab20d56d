"""A forward pass of shapes: which tensors autograd keeps for the backward pass, as PyTorch's formulas say.

    x = tape.linear(x, "q_proj")       a new tensor; x is kept, if the weight learns
    x = tape.norm(x, "input_norm")     a new tensor; x and its statistics are kept

A tensor is kept once, however many operators keep it. Sizes are those of one token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from bigtrain.config import ModelSettings
from bigtrain.model.adapter_parts import DOWN, LORA_A, LORA_B, MAGNITUDE, UP
from bigtrain.model.shapes.computation import Computation
from bigtrain.model.shapes.parameters import EACH, READ, ParameterShape, Uses

MadeBy = Literal["input", "product", "attention", "cheap"]
"""`input`: of a block. `product`: of a matrix product. `attention`: of attention or a recurrence. `cheap`: all else."""


@dataclass(frozen=True)
class KeptTensor:
    """A tensor that may wait for the backward pass."""

    what: str
    width: float
    """Numbers for each of its tokens."""
    itemsize: float
    """Bytes of each."""
    tokens: Uses | None = EACH
    """For which tokens there is one; None: `width` numbers in all, whatever the tokens."""
    made_by: MadeBy = "cheap"
    divided: bool = False
    """Whether ranks of tensor parallelism have a part of it each."""
    product: tuple[int, int] | None = None
    """Columns and rows of the matrix of which it is the product."""
    grad: bool = True
    """Whether its own gradient is needed."""

    def bytes(self, tokens: float, *, read: float = 0.0, labelled: float = 0.0, tensor_parallel: int = 1) -> float:
        """Bytes on one rank.

        Args:
            tokens: of the sequence, on this rank.
            read: tokens that an encoder reads.
            labelled: tokens with a label.
            tensor_parallel: ranks that share each matrix.
        """
        if self.tokens is None:
            count = 1.0
        else:
            count = self.tokens.own * tokens + self.tokens.read * read + self.tokens.labelled * labelled
        return self.width * self.itemsize * count / (tensor_parallel if self.divided else 1)


class Tape:
    """Records a forward pass through one part of a model."""

    def __init__(
        self,
        settings: ModelSettings,
        computation: Computation,
        parameters: Mapping[str, ParameterShape],
        *,
        stack: str = "",
        block: str = "",
        tokens: Uses = EACH,
        lora_dropout: float = 0.0,
    ) -> None:
        """Args:
        settings: of this part.
        computation: how it is computed.
        parameters: of this part, by their names in it.
        stack: `encoder.` where it is the encoder's; for the names of what all blocks of a stack share.
        block: what the names of all other tensors begin with.
        tokens: which go through it.
        lora_dropout: of its adapters.
        """
        self.settings, self.computation, self.parameters = settings, computation, parameters
        self.stack, self.block, self.tokens = stack, block, tokens
        self.itemsize, self.lora_dropout = computation.itemsize, lora_dropout
        self.length = computation.read_length if tokens == READ else computation.length
        """Tokens of a document."""
        self.kept: dict[str, KeptTensor] = {}
        """What the backward pass needs, in the order in which it was first kept."""
        self.results: dict[str, KeptTensor] = {}
        """The results of matrix products and attention: what selective recomputation keeps, needed or not."""

    def keep(self, *tensors: KeptTensor) -> None:
        """Keep tensors for the backward pass."""
        for tensor in tensors:
            self.kept.setdefault(tensor.what, tensor)

    def has(self, module: str) -> bool:
        """Whether this part has a module with a weight."""
        return f"{module}.weight" in self.parameters

    def learns(self, parameter: str) -> bool:
        """Whether a parameter is there and learns."""
        return parameter in self.parameters and self.parameters[parameter].learns

    def new(
        self, what: str, *sources: KeptTensor, width: float | None = None, itemsize: float | None = None
    ) -> KeptTensor:
        """A tensor made of others, like the first of them where nothing else is given."""
        first = sources[0]
        return replace(
            first,
            what=self.block + what,
            width=first.width if width is None else width,
            itemsize=first.itemsize if itemsize is None else itemsize,
            made_by="cheap",
            product=None,
            grad=any(source.grad for source in sources),
        )

    def fixed(self, what: str, numbers: float, itemsize: float) -> KeptTensor:
        """A tensor whose size does not depend on the tokens."""
        return KeptTensor(self.block + what, numbers, itemsize, None)

    def shared(self, what: str, width: float, itemsize: float, tokens: Uses | None = None) -> KeptTensor:
        """A tensor of which all blocks of a stack keep the same one."""
        return KeptTensor(self.stack + what, width, itemsize, tokens, grad=False)

    def result(self, tensor: KeptTensor) -> KeptTensor:
        """The same, known as the result of a product or of attention."""
        self.results[tensor.what] = tensor
        return tensor

    def linear(self, x: KeptTensor, module: str) -> KeptTensor:
        """A linear layer, with its adapter where it has one."""
        output = self._product(x, module, f"{module}.weight")
        if f"{module}.{LORA_A}" in self.parameters:
            return self._low_rank(x, output, module)
        if f"{module}.{DOWN}" in self.parameters:
            inner = self._product(output, f"{module}.down", f"{module}.{DOWN}")
            up = self._product(self.activation(inner, "gelu"), f"{module}.up", f"{module}.{UP}")
            return self.new(f"{module}.adapted", output, up)
        return output

    def _product(self, x: KeptTensor, what: str, weight: str) -> KeptTensor:
        matrix = self.parameters[weight]
        if matrix.learns:
            self.keep(x)
        output = replace(
            self.new(what, x, width=matrix.outputs, itemsize=self.itemsize),
            made_by="product",
            product=(matrix.inputs, matrix.outputs),
            divided=matrix.split == 0 or (x.divided and matrix.split != 1),
            grad=x.grad or matrix.learns or self.learns(weight.removesuffix("weight") + "bias"),
        )
        return self.result(output)

    def _low_rank(self, x: KeptTensor, output: KeptTensor, module: str) -> KeptTensor:
        """LoRA, or DoRA, whose products with magnitudes need what they multiply."""
        dropped = self.dropped(x, f"{module}.lora", self.lora_dropout)
        thin = self._product(dropped, f"{module}.lora_A", f"{module}.{LORA_A}")
        change = self._product(thin, f"{module}.lora_B", f"{module}.{LORA_B}")
        if f"{module}.{MAGNITUDE}" in self.parameters:
            matrix = self.parameters[f"{module}.weight"]
            whole = self.fixed(f"{module}.changed_weight", matrix.numel, self.itemsize)
            self.result(replace(whole, made_by="product", product=(thin.product or (0, 0))[::-1]))
            again = self.lora_dropout > 0
            base = self._product(dropped, f"{module}.of_dropped", f"{module}.weight") if again else output
            scaled = self.new(f"{module}.scaled_change", change)
            self.keep(base, scaled, self.fixed(f"{module}.ratio", matrix.outputs, self.itemsize))
            self.keep(self.fixed(f"{module}.row_lengths", matrix.outputs, 4))
            if base.grad:
                self.keep(self.fixed(f"{module}.ratio_less_one", matrix.outputs, self.itemsize))
        return self.new(f"{module}.adapted", output, change)

    def norm(self, x: KeptTensor, module: str, groups: float = 1) -> KeptTensor:
        """A norm over the last dimension; x as it is where there is none.

        Args:
            x: its input.
            module: its name.
            groups: norms for each token: heads that are normalised one by one.
        """
        if not self.has(module):
            return x
        output = self.new(f"{module}.normalised", x)
        output = replace(output, grad=x.grad or self.learns(f"{module}.weight"))
        if not output.grad:
            return output
        on_cpu = self.computation.device == "cpu"
        statistics = replace(
            self.new(f"{module}.statistics", x, width=groups, itemsize=4), divided=x.divided and groups > 1
        )
        match self.settings.norm:
            case "rms_norm":
                self.keep(x, statistics)
            case "layer_norm":
                itemsize = self.itemsize if on_cpu else 4  # CPU kernels keep mean and deviation in the type of x
                self.keep(x, replace(statistics, width=2 * groups, itemsize=itemsize))
            case "rms_norm_zero_centered":
                wide = x if self.itemsize == 4 else self.new(f"{module}.wide", x, itemsize=4)
                self.keep(wide, statistics)
                self.keep(self.fixed(f"{module}.scale", self.parameters[f"{module}.weight"].numel, 4))
                if on_cpu:  # not one kernel, but its definition
                    self.keep(self.new(f"{module}.scaled", x, itemsize=4))
        return output

    def activation(self, x: KeptTensor, name: str) -> KeptTensor:
        """An activation function: relu needs its result, and the others what they were given."""
        local = x.what.removeprefix(self.block)
        result = self.new(f"{local}.{name}", x)
        if x.grad:
            self.keep(result if name.startswith("relu") else x)
        return self.new(f"{local}.squared", x) if name == "relu2" else result

    def multiplied(self, what: str, left: KeptTensor, right: KeptTensor) -> KeptTensor:
        """A product of numbers, one by one."""
        if right.grad:
            self.keep(left)
        if left.grad:
            self.keep(right)
        return self.new(what, left, right)

    def dropped(self, x: KeptTensor, place: str, rate: float) -> KeptTensor:
        """Dropout: the key of each token is kept, and no mask."""
        if not rate:
            return x
        if x.grad:
            self.keep(replace(self.new(f"{place}.dropout_keys", x, width=1, itemsize=8), divided=False))
        return self.new(f"{place}.dropped", x)

    def scaled(self, x: KeptTensor, what: str, factor: float) -> KeptTensor:
        """x times a number."""
        return x if factor == 1 else self.new(what, x)
