"""The decoder in plain PyTorch: it knows no engine, and no data beyond a packed micro-batch.

families                a name -> choices, and names at Hugging Face
decoder                 embedding -> blocks -> norm -> head
  embedding, rotary     tokens and positions in, loss or logits out
  norm, feed_forward    choices of a block
  attention             projections around
    attention_backends  varlen | blockwise | sdpa | reference
loss                    cross-entropy without all logits
execution               how it is computed: back-end, what is recomputed, which ranks share sequences
  activation_checkpointing, sequence_parallel, float8
initialize, counts, generate
"""

from bigtrain.model.counts import count_parameters, flops_per_token
from bigtrain.model.decoder import Decoder, build_model
from bigtrain.model.generate import generate
from bigtrain.model.initialize import initialize
from bigtrain.model.sequence_parallel import SequenceParallel

__all__ = [
    "Decoder",
    "SequenceParallel",
    "build_model",
    "count_parameters",
    "flops_per_token",
    "generate",
    "initialize",
]
