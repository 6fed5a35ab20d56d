"""What a model keeps from its forward pass to its backward pass, by part and by recomputation.

before      embeddings, and what all blocks share: angles of rotation, biases of distances, states of an encoder
blocks      each in the order in which it runs
after       the last norm, the head and the loss
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from bigtrain.config import ModelSettings
from bigtrain.model.shapes.computation import Computation
from bigtrain.model.shapes.kept_of_block import (
    bidirectional_layer,
    block,
    distance_bias,
    distances,
    recurrent_layer,
    rotary,
)
from bigtrain.model.shapes.kept_of_ends import embedded, head, next_token
from bigtrain.model.shapes.kept_of_recurrence import attended, in_steps, start, steps
from bigtrain.model.shapes.kept_products import ProductShape, kept_products
from bigtrain.model.shapes.model_shapes import ModelShapes
from bigtrain.model.shapes.parameters import EACH, LABELLED, READ, ParameterShape, Uses, both_streams
from bigtrain.model.shapes.tape import KeptTensor, Tape

Recomputation = Literal["none", "selective", "full", "offloaded"]
"""engine.activation_checkpointing."""


@dataclass(frozen=True)
class BlockActivations:
    """What one pass through a block may keep."""

    input: KeptTensor
    needed: tuple[KeptTensor, ...]
    """What its backward pass needs, the input with it where it does."""
    results: tuple[KeptTensor, ...]
    """The results of matrix products, attention and recurrences, needed or not."""
    beside: tuple[KeptTensor, ...]
    """What computing it again needs beside the input: keys of dropout, a second input."""

    def kept(self, recomputation: Recomputation, products: frozenset[ProductShape] | None) -> Iterator[KeptTensor]:
        """What is kept on the device.

        Args:
            recomputation: `none` keeps what is needed, `selective` the input and results, `full` the input,
                `offloaded` nothing: the input goes to the host.
            products: of selective recomputation: the shapes of the matrices whose products are kept; None: of all.
        """
        if recomputation == "none":
            yield from self.needed
            return
        yield from self.beside
        if recomputation != "offloaded":
            yield self.input
        for each in self.results if recomputation == "selective" else ():
            if products is None or each.made_by != "product" or each.product in products:
                yield each


@dataclass(frozen=True)
class ModelActivations:
    """What a whole forward pass may keep."""

    settings: ModelSettings
    before: tuple[KeptTensor, ...]
    blocks: tuple[BlockActivations, ...]
    after: tuple[KeptTensor, ...]
    head: tuple[KeptTensor, ...]
    context: tuple[KeptTensor, ...]
    """What blocks that are computed again need beside their inputs, and what comes before."""

    def kept(self, recomputation: Recomputation = "none", budget: float = 1.0) -> tuple[KeptTensor, ...]:
        """All tensors that wait for the backward pass, each once.

        Args:
            recomputation: of the blocks (engine.activation_checkpointing).
            budget: engine.activation_memory_budget.
        """
        products = kept_products(self.settings, budget)
        context = self.context if recomputation != "none" else ()
        of_blocks = (each for block in self.blocks for each in block.kept(recomputation, products))
        return tuple(
            {each.what: each for each in (*self.before, *context, *of_blocks, *self.after, *self.head)}.values()
        )


def activations(shapes: ModelShapes, computation: Computation) -> ModelActivations:
    """What a model keeps, as autograd's formulas say, in the order of its forward pass.

    Args:
        shapes: of the model.
        computation: how it is computed.
    """
    return _Pass(shapes, computation).run()


class _Pass:
    """A forward pass through all parts."""

    def __init__(self, shapes: ModelShapes, computation: Computation) -> None:
        self.shapes, self.settings, self.computation = shapes, shapes.settings, computation
        self.lora_dropout = 0.0 if shapes.adapter is None else shapes.adapter.lora_dropout
        self.before: dict[str, KeptTensor] = {}
        self.after: dict[str, KeptTensor] = {}
        self.head: dict[str, KeptTensor] = {}
        self.context: dict[str, KeptTensor] = {}
        self.blocks: list[BlockActivations] = []

    def run(self) -> ModelActivations:
        settings, encoded = self.settings, None
        if settings.reads_pairs:
            encoder = settings if settings.recurrent else settings.encoder_part
            encoded = self._stack(encoder, "encoder.", READ, None)
            self.before[encoded.what] = encoded
        decoder = settings.decoder_part if settings.architecture == "encoder_decoder" else settings
        hidden = self._stack(decoder, "", _tokens(settings), encoded)
        tape = self._ends(decoder, "", _tokens(settings))
        if encoded is not None and settings.recurrent:
            hidden = attended(tape, hidden, encoded)
        hidden = tape.dropped(hidden, "final", settings.final_dropout)
        self.after |= tape.kept
        head_tape = self._ends(decoder, "", _tokens(settings))
        head(head_tape, hidden)
        self._ahead(head_tape)
        self.head |= head_tape.kept
        self._count_experts(tape)
        context = tuple(each for what, each in self.context.items() if what not in self.before)
        before, after, of_head = (tuple(each.values()) for each in (self.before, self.after, self.head))
        return ModelActivations(settings, before, tuple(self.blocks), after, of_head, context)

    def _ends(self, settings: ModelSettings, stack: str, tokens: Uses) -> Tape:
        """A tape for what is outside the blocks of a stack."""
        ends = {each.name.removeprefix(stack): each for each in self.shapes.ends}
        return self._tape(settings, ends, stack, stack, tokens)

    def _tape(
        self, settings: ModelSettings, inside: Mapping[str, ParameterShape], stack: str, block: str, tokens: Uses
    ) -> Tape:
        return Tape(
            settings, self.computation, inside,
            stack=stack, block=block, tokens=tokens, lora_dropout=self.lora_dropout,
        )  # fmt: skip

    def _stack(self, settings: ModelSettings, stack: str, tokens: Uses, encoded: KeptTensor | None) -> KeptTensor:
        """Embeddings, blocks and final norm; the decoder's final norm counts to what comes after the blocks."""
        tape = self._ends(settings, stack, tokens)
        learns = any(each.learns for each in self.shapes.ends if each.name.startswith("embed_tokens."))
        x = self.embedding = embedded(tape, learns=learns)
        if settings.recurrent:
            x = in_steps(tape, x)
            again = steps(tape, x)
            self.context[again.what] = again
            if encoded is not None:
                start(tape, encoded)
        else:
            self._share(tape, settings)
        runs = zip(self.shapes.block_names, self.shapes.blocks, strict=True)
        own = [(name, each) for name, each in runs if name.startswith(f"{stack}layers.")]
        for number, (name, shape) in enumerate(own):
            if settings.recurrent:
                rate = settings.hidden_dropout if number else settings.embedding_dropout
                x = tape.dropped(x, f"input of layer {number}", rate)
            local = any(each.window is not None for each in shape.attentions)
            inside = {each.name: each for each in shape.parameters}
            block_tape = self._tape(settings, inside, stack, f"{name}.{number}.", tokens)
            x = self._block(block_tape, x, local=local, encoded=encoded)
        self.before |= tape.kept
        self.stream = x
        if settings.recurrent:
            return tape.new("states", x)
        end = self._ends(settings, stack, tokens)
        x = end.norm(x, "norm")
        if stack:
            x = end.dropped(x, "final", settings.final_dropout)
        (self.before if stack else self.after).update(end.kept)
        return x

    def _share(self, tape: Tape, settings: ModelSettings) -> None:
        """What blocks that are computed again need beside their inputs."""
        shared = []
        if settings.position_embedding == "rope":
            kinds = (False,) if settings.local_rope_theta is None else (False, True)
            shared += [each for local in kinds for each in rotary(tape, local)]
        if settings.position_embedding in ("alibi", "t5"):
            shared.append(distance_bias(tape))
        if self.settings.architecture in ("decoder", "encoder"):
            shared.append(tape.shared("labelled", 1, 1, tape.tokens))
        if settings.position_embedding == "transformer_xl":
            shared += [distances(tape), tape.shared("query_stream", 2, 8, LABELLED)]
        self.context |= {each.what: each for each in shared}

    def _block(self, tape: Tape, x: KeptTensor, *, local: bool, encoded: KeptTensor | None) -> KeptTensor:
        settings = tape.settings
        if not settings.recurrent:
            output = block(tape, x, local=local, encoded=encoded)
        elif tape.tokens == READ:
            output = bidirectional_layer(tape, x)
        else:
            output = recurrent_layer(tape, x, "", settings.hidden_size)
        beside = []
        if (settings.drops or self.lora_dropout) and not settings.recurrent:
            beside.append(tape.new("dropout_keys", x, width=1, itemsize=8))
        if settings.recurrent and tape.tokens == READ:
            beside.append(tape.new("reversed", x))
        entered = replace(x, made_by="input", divided=False)
        # What a block keeps and neither made nor was given, others keep, too.
        own = {what: each for what, each in tape.kept.items() if what == x.what or what.startswith(tape.block)}
        self.before |= {what: each for what, each in tape.kept.items() if what not in own}
        self.blocks.append(
            BlockActivations(entered, tuple(own.values()), tuple(tape.results.values()), tuple(beside))
        )  # fmt: skip
        return output

    def _ahead(self, ends: Tape) -> None:
        """Multi-token prediction: further blocks, each with the head once more."""
        x, embedding = self.stream, self.embedding
        for name, shape in zip(self.shapes.block_names, self.shapes.blocks, strict=True):
            if not name.startswith("next_token_layers."):
                continue
            outer = {each.name: each for each in shape.parameters}
            tape = self._tape(self.settings, outer, "", f"{name}.", EACH)
            embedding = tape.new("next_embedding", embedding)
            entered = next_token(tape, x, embedding)
            inside = {part.removeprefix("block."): each for part, each in outer.items() if part.startswith("block.")}
            inner = self._tape(self.settings, inside, "", f"{name}.block.", EACH)
            local = any(each.window is not None for each in shape.attentions)
            x = self._block(inner, entered, local=local, encoded=None)
            hidden = tape.norm(x, "norm")
            head(ends, hidden, f"{name}.head")
            labelled = tape.fixed("labelled", 1, 1)
            self.context[labelled.what] = replace(labelled, tokens=EACH)
            self.after |= tape.kept

    def _count_experts(self, ends: Tape) -> None:
        """What routers report, which the model holds until it is asked for it."""
        routers = sum(any(part.name == "mlp.router.weight" for part in each.parameters) for each in self.shapes.blocks)
        if routers:
            loads = ends.fixed("router_loads", routers * self.settings.num_experts, 8)
            self.after[loads.what] = loads


def _tokens(settings: ModelSettings) -> Uses:
    return both_streams(settings) if settings.architecture == "two_stream" else EACH
