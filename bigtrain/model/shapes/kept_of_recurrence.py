"""What recurrent models keep beside their layers: the order of steps, first states, and attention between documents."""

from __future__ import annotations

from bigtrain.model.shapes.parameters import READ, Uses
from bigtrain.model.shapes.tape import KeptTensor, Tape


def in_steps(tape: Tape, x: KeptTensor) -> KeptTensor:
    """Tokens in the order of the steps of a recurrence, and where each of them was."""
    step_order = tape.new("step_order", x, width=_orders(tape), itemsize=8)
    tape.keep(step_order, tape.fixed("step_sizes", tape.length, 8))
    return tape.new("in_steps", x)


def steps(tape: Tape, x: KeptTensor) -> KeptTensor:
    """What is left of `Sequences`, which layers that are computed again need: in all three places for each token, and
    three for each document."""
    return tape.new("step_order_again", x, width=3 - _orders(tape) + 3 / tape.length, itemsize=8)


def _orders(tape: Tape) -> int:
    """Orders of the tokens that are kept: an encoder reads in the reverse one, too."""
    return 3 if tape.tokens == READ else 2


def token_vectors(tape: Tape, tokens: Uses) -> KeptTensor:
    """A `CharacterEmbedding`: convolutions over the bytes of each different token, and highway layers.

    Args:
        tape: with the parameters outside of layers.
        tokens: whose vectors are made.
    """
    settings = tape.settings
    symbols = settings.max_token_bytes + 2
    each = KeptTensor(f"{tape.block}characters", 1, tape.itemsize, tokens.times(tape.computation.distinct))
    tape.keep(
        tape.new("bytes", each, width=symbols, itemsize=8),
        tape.new("bytes.present", each, width=symbols, itemsize=1),
        tape.new("bytes.vectors", each, width=symbols * settings.character_size),
    )
    for width, filters in enumerate(settings.character_filters, start=1):
        windows = symbols - width + 1
        tape.keep(
            tape.new(f"windows_{width}.outside", each, width=windows, itemsize=1),
            *(tape.new(f"windows_{width}.{name}", each, width=filters) for name in ("maximum", "tanh")),
            tape.new(f"windows_{width}.scores", each, width=windows * filters),
        )
        if width > 1:  # those of one byte are its vectors
            tape.keep(tape.new(f"windows_{width}", each, width=windows * width * settings.character_size))
    x = tape.new("features", each, width=settings.embedding_width)
    for number in range(settings.highway_layers):
        tape.keep(x, *(tape.new(f"highway_{number}.{name}", x) for name in ("gate", "transform")))
        x = tape.new(f"highway_{number}", x)
    tape.keep(KeptTensor(f"{tape.block}place_of_token", 1, 8, tokens))
    return KeptTensor(f"{tape.block}embedding", settings.embedding_width, tape.itemsize, tokens)


def start(tape: Tape, encoded: KeptTensor) -> None:
    """The first states of a decoder, from the last ones of its encoder: one for each document."""
    settings = tape.settings
    of_document = 1 / tape.computation.read_length
    width, layers = settings.hidden_size, settings.decoder_layers
    ends = tape.new("last_states", encoded, width=width * of_document)
    tape.keep(ends, tape.new("first_states", ends, width=layers * width * of_document))


def attended(tape: Tape, states: KeptTensor, read: KeptTensor) -> KeptTensor:
    """A `DocumentAttention` and the readout after it.

    Args:
        tape: with the parameters outside of layers.
        states: of the decoder.
        read: of the encoder.
    """
    settings = tape.settings
    if settings.attention_score == "additive":
        tape.keep(tape.linear(states, "attention.query"), tape.linear(read, "attention.key"))
    elif tape.itemsize != 4:  # scores are float32
        tape.keep(*(tape.new(f"wide_{each.what}", each, itemsize=4) for each in (states, read)))
    else:
        tape.keep(states)
    weights = tape.new("attention_weights", states, width=tape.computation.read_length, itemsize=4)
    tape.keep(weights)
    if tape.itemsize != 4:
        tape.keep(tape.new("narrow_attention_weights", weights, itemsize=tape.itemsize))
    joined = tape.new("states_and_contexts", states, width=2 * settings.hidden_size)
    output = tape.new("readout.tanh", tape.linear(joined, "readout"))
    tape.keep(output)
    return output
