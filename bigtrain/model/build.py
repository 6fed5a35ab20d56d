"""A model from its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bigtrain.config import AdapterSettings, CompressionSettings, ModelSettings
from bigtrain.model.adapters import adapt
from bigtrain.model.compression.compressed import compress_layers
from bigtrain.model.decoder import Decoder
from bigtrain.model.encoder import Encoder
from bigtrain.model.encoder_decoder import EncoderDecoder
from bigtrain.model.execution import Execution
from bigtrain.model.language_model import LanguageModel
from bigtrain.model.layers.float8 import require_float8
from bigtrain.model.recurrent import Recurrent
from bigtrain.model.recurrent_encoder_decoder import RecurrentEncoderDecoder
from bigtrain.model.sequence_parallel import SequenceParallel
from bigtrain.model.two_stream import TwoStream

ARCHITECTURES: Mapping[str, Callable[[ModelSettings, Execution], LanguageModel]] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "encoder_decoder": EncoderDecoder,
    "two_stream": TwoStream,
    "recurrent": Recurrent,
    "recurrent_encoder_decoder": RecurrentEncoderDecoder,
}


def build_model(
    settings: ModelSettings,
    *,
    attn_implementation: str = "auto",
    activation_checkpointing: str = "none",
    activation_memory_budget: float = 1.0,
    sequence_parallel: SequenceParallel | None = None,
    float8: bool = False,
    adapter: AdapterSettings | None = None,
    compression: CompressionSettings | None = None,
) -> LanguageModel:
    """The model of these settings on the current default device, `meta` included. Its weights are still to be filled,
    by `init_weights` or a checkpoint.

    Args:
        settings: the shape.
        attn_implementation: a key of `attention_backends.BACKENDS`, or `auto`.
        activation_checkpointing: `none`, `selective`, `full` or `offloaded`.
        activation_memory_budget: selective: the share of the results of matrix products that is kept.
        sequence_parallel: the ranks that share each sequence with this one.
        float8: let the linear layers of the blocks multiply in 8 bits.
        adapter: what learns in the place of the model's own parameters. Default: these do.
        compression: what its linear layers do to their weights in each pass. Default: nothing.

    Raises:
        BigtrainError: float8 or the adapter does not go with this shape.
    """
    if float8:
        require_float8(settings)
    model = ARCHITECTURES[settings.architecture](
        settings,
        Execution(attn_implementation, activation_checkpointing, activation_memory_budget, sequence_parallel, float8),
    )
    if adapter is not None and adapter.method != "none":
        adapt(model, adapter)
        model.adapter_drops = adapter.lora_dropout > 0
    if compression is not None and compression.is_on:
        compress_layers(model, compression)
    return model
