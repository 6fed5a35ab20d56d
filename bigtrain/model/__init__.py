"""The models in plain PyTorch: they know no engine, and no data beyond a packed micro-batch.

PyTorch itself is imported with the first name that needs it: shapes and counts do not.

build                   the one that the settings name
language_model          what the packages above need of any of them
  decoder, encoder      a token sees those before it, or its whole document
  encoder_decoder       a decoder that attends to an encoder; what all of them are is in
transformer             embedding -> blocks -> norm -> head
  positions, rotary     where a token stands: vectors, a rotation, or a bias on scores
  embedding             tokens in; loss or logits out
  task_head             or classes, or where answers are
  block                 norms, attention and a feed-forward half around the residual stream
    norm, feed_forward, activations
    experts, router     a mixture in the place of the feed-forward layer
    attention           projections around
      attention_rule    which tokens a token sees, and what is added to their scores
      attention_backends  varlen | flex | cpp | blockwise | sdpa | reference
  dropout               what training drops, by the address of a row
  context               what all layers know of the tokens at hand
adapters                what learns beside a frozen model, and which of its layers have it: adapted, in layers/
multi_token             further blocks that predict further ahead
auxiliary               what is learned beside the loss
loss                    cross-entropy without all logits
  loss_softmax          of a chunk, in PyTorch or in
  loss_kernel           one Triton kernel
execution               how it is computed: back-end, what is recomputed, which ranks share sequences
  activation_checkpointing, sequence_parallel, tensor_parallel, float8, cpu_products
  cpu_kernels           what PyTorch lacks for CPUs, in C++: attention, the loss's softmax, dropout, transposing
initial_weights, layer_depth
shapes/                 parameters, products and attention from the settings alone: without PyTorch, as are
  adapter_parts, counts
compression/            which weights are pruned, and matrices of small integers
recurrent, recurrent_encoder_decoder     without attention from token to token; what they are made of is in recurrence/
generation              prompts in, continuations out
  cache                 where each row stands, and keys and values, or states, of the tokens so far
  sampling              from logits to the next token
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bigtrain.base import deferred
from bigtrain.model.adapter_parts import (
    LORA_A,
    LORA_B,
    MAGNITUDE,
    PREFIX_KEY,
    PREFIX_VALUE,
    PROMPT,
    TASK_HEAD,
    is_of_adapter,
)
from bigtrain.model.counts import count_active_parameters, count_learning_parameters, count_parameters
from bigtrain.model.shapes.activations import BlockActivations, ModelActivations, activations
from bigtrain.model.shapes.computation import Computation
from bigtrain.model.shapes.loss_memory import LossMemory, loss_memory, most_rows
from bigtrain.model.shapes.model_shapes import AttentionShape, BlockShape, ModelShapes, flops_per_token, model_shapes
from bigtrain.model.shapes.parameters import ParameterShape, Uses
from bigtrain.model.shapes.tape import KeptTensor

if TYPE_CHECKING:
    from bigtrain.model.adapters import Merged, first_magnitude
    from bigtrain.model.build import build_model
    from bigtrain.model.compression.compressed import CompressedWeights
    from bigtrain.model.compression.gptq import gptq
    from bigtrain.model.compression.linears import block_of, linear_layers
    from bigtrain.model.compression.pruning import (
        keep_of_all,
        keep_of_groups,
        keep_of_rows,
        keep_of_tensor,
        wanda_scores,
    )
    from bigtrain.model.compression.quantisation import BITS, QuantisedMatrix, quantised
    from bigtrain.model.cpu.cpu_kernels import lacking_for_cpu_kernels
    from bigtrain.model.cpu.cpu_products import product_dtype
    from bigtrain.model.decoder import Decoder
    from bigtrain.model.distillation import Distillation
    from bigtrain.model.encoder import Encoder
    from bigtrain.model.encoder_decoder import EncoderDecoder
    from bigtrain.model.generation import Completion, Ended, generate, require_decoder, require_room
    from bigtrain.model.initial_weights import initialize
    from bigtrain.model.language_model import LanguageModel
    from bigtrain.model.layers.adapted import row_lengths
    from bigtrain.model.layers.rotary import attention_factor, effective_theta, original_context, rotary_frequencies
    from bigtrain.model.loss.soft_labels import Likeliest, likeliest
    from bigtrain.model.recurrent import Recurrent
    from bigtrain.model.recurrent_encoder_decoder import RecurrentEncoderDecoder
    from bigtrain.model.sampling import Sampling
    from bigtrain.model.sequence_parallel import SequenceParallel
    from bigtrain.model.transformer import Transformer
else:
    __getattr__ = deferred(__name__, __file__)

__all__ = [
    "BITS",
    "LORA_A",
    "LORA_B",
    "MAGNITUDE",
    "PREFIX_KEY",
    "PREFIX_VALUE",
    "PROMPT",
    "TASK_HEAD",
    "AttentionShape",
    "BlockActivations",
    "BlockShape",
    "Completion",
    "CompressedWeights",
    "Computation",
    "Decoder",
    "Distillation",
    "Encoder",
    "EncoderDecoder",
    "Ended",
    "KeptTensor",
    "LanguageModel",
    "Likeliest",
    "LossMemory",
    "Merged",
    "ModelActivations",
    "ModelShapes",
    "ParameterShape",
    "QuantisedMatrix",
    "Recurrent",
    "RecurrentEncoderDecoder",
    "Sampling",
    "SequenceParallel",
    "Transformer",
    "Uses",
    "activations",
    "attention_factor",
    "block_of",
    "build_model",
    "count_active_parameters",
    "count_learning_parameters",
    "count_parameters",
    "effective_theta",
    "first_magnitude",
    "flops_per_token",
    "generate",
    "gptq",
    "initialize",
    "is_of_adapter",
    "keep_of_all",
    "keep_of_groups",
    "keep_of_rows",
    "keep_of_tensor",
    "lacking_for_cpu_kernels",
    "likeliest",
    "linear_layers",
    "loss_memory",
    "model_shapes",
    "most_rows",
    "original_context",
    "product_dtype",
    "quantised",
    "require_decoder",
    "require_room",
    "rotary_frequencies",
    "row_lengths",
    "wanda_scores",
]
