"""How far a parameter is from the head, counted in blocks: what layer-wise learning rates depend on."""

from __future__ import annotations

import re

from bigtrain.config import ModelSettings

_BLOCK = re.compile(r"(encoder\.)?layers\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(encoder\.)?(embed_|relative_attention_bias)|mask_embedding")


def layers_to_head(name: str, settings: ModelSettings) -> int:
    """0 for what follows the last block, 1 for the last block, one more for each block before, the most for embeddings.

    Blocks that share weights count once. Of an encoder-decoder the encoder's blocks come before all of the decoder's,
    and the embeddings of both halves before those.

    Args:
        name: of a parameter.
        settings: of its model.
    """
    pairs = settings.reads_pairs
    own = settings.decoder_layers if pairs else settings.distinct_layers
    read = settings.distinct_layers if pairs else 0
    if (block := _BLOCK.match(name)) is not None:
        return own - int(block[2]) + (read if block[1] else 0)
    if _EMBEDDINGS.match(name):
        return own + read + 1
    if name.startswith(("encoder.", "start.")):  # between the two halves
        return own + 1
    return 0
