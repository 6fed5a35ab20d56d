"""The decoder in plain PyTorch: it knows no engine, and no data beyond a packed micro-batch.

families                a name -> choices, and names at Hugging Face
decoder                 embedding -> blocks -> norm -> head
  embedding, rotary     tokens and positions in, loss or logits out
  norm, feed_forward    choices of a block
  attention             projections around
    attention_backends  varlen | blockwise | sdpa | reference
loss                    cross-entropy without all logits
activation_checkpointing, initialize, counts, generate
"""

from bigtrain.model.counts import count_parameters, flops_per_token
from bigtrain.model.decoder import Decoder, build_model
from bigtrain.model.generate import generate

__all__ = ["Decoder", "build_model", "count_parameters", "flops_per_token", "generate"]
