"""What one block keeps for its backward pass: the modules of `bigtrain.model` once more, on a tape of shapes."""

from __future__ import annotations

from dataclasses import replace

from bigtrain.model.shapes.parameters import EACH, GATES
from bigtrain.model.shapes.tape import KeptTensor, Tape


def block(tape: Tape, x: KeptTensor, *, local: bool = False, encoded: KeptTensor | None = None) -> KeptTensor:
    """A `Block`: its input to its output.

    Args:
        tape: with the parameters of the block.
        x: its input.
        local: whether its positions are those of layers with sliding attention.
        encoded: what its decoder attends to.
    """
    settings = tape.settings
    scale, rate = settings.residual_multiplier, settings.hidden_dropout

    def branch(output: KeptTensor, place: str) -> KeptTensor:
        return tape.scaled(tape.dropped(output, place, rate), f"{place}.scaled", scale)

    def attended(x: KeptTensor) -> KeptTensor:
        if settings.position_embedding == "transformer_xl":
            return relative_attention(tape, x)
        return attention(tape, x, "self_attn", local=local)

    if settings.norm_position == "post_residual":
        x = tape.new("attention_sum", x, branch(attended(x), "attention"))
        x = tape.norm(x, "attention_output_norm")
        if encoded is not None:
            x = tape.new(
                "cross_attention_sum", x, branch(attention(tape, x, "cross_attn", encoded=encoded), "cross_attention")
            )
            x = tape.norm(x, "cross_attention_output_norm")
        x = tape.new("feed_forward_sum", x, branch(fed(tape, x), "feed_forward"))
        return tape.norm(x, "mlp_output_norm")
    found = tape.norm(attended(tape.norm(x, "input_layernorm")), "attention_output_norm")
    found = branch(found, "attention")
    residual = x if settings.parallel_residual else tape.new("attention_sum", x, found)
    if encoded is not None:
        seen = attention(tape, tape.norm(residual, "cross_attention_layernorm"), "cross_attn", encoded=encoded)
        seen = tape.norm(seen, "cross_attention_output_norm")
        residual = tape.new("cross_attention_sum", residual, branch(seen, "cross_attention"))
    inner = fed(tape, tape.norm(residual, "post_attention_layernorm"))
    inner = branch(tape.norm(inner, "mlp_output_norm"), "feed_forward")
    return tape.new("output", residual, found, inner)


def attention(
    tape: Tape, x: KeptTensor, module: str, *, local: bool = False, encoded: KeptTensor | None = None
) -> KeptTensor:
    """A `SelfAttention`, or with what an encoder made a `CrossAttention`."""
    settings, crosses = tape.settings, encoded is not None
    drops = settings.attention_dropout > 0
    read = x if encoded is None else encoded
    query, key, value = (
        tape.linear(source, f"{module}.{name}") for source, name in ((x, "q_proj"), (read, "k_proj"), (read, "v_proj"))
    )
    of_heads = settings.qk_norm == "head"
    query = tape.norm(query, f"{module}.q_norm", settings.num_attention_heads if of_heads else 1)
    key = tape.norm(key, f"{module}.k_norm", settings.key_value_heads if of_heads else 1)
    if settings.position_embedding == "rope" and not crosses:
        query, key = (_rotated(tape, each, local) for each in (query, key))
    if tape.computation.sequence_parallel:
        query, key, value = (_again(tape, each, "exchanged") for each in (query, key, value))
    kernel = tape.computation.kernel(settings, crosses=crosses)
    if drops and query.grad:
        keys = tape.new(f"{module}.dropout_keys", query, width=settings.num_attention_heads, itemsize=8)
        tape.keep(keys)
    if kernel == "sdpa":
        output = _by_document(tape, query, key, value, module)
    else:
        output = _flash(tape, query, key, value, module, kernel)
    if tape.computation.sequence_parallel:
        output = _again(tape, output, "exchanged")
    return tape.linear(output, f"{module}.o_proj")


def _again(tape: Tape, x: KeptTensor, how: str, itemsize: float | None = None) -> KeptTensor:
    """A tensor of the same width."""
    return tape.new(f"{x.what.removeprefix(tape.block)}.{how}", x, itemsize=itemsize)


def _rotated(tape: Tape, x: KeptTensor, local: bool) -> KeptTensor:
    if x.grad:
        tape.keep(*rotary(tape, local))
    return _again(tape, x, "rotated")


def rotary(tape: Tape, local: bool) -> list[KeptTensor]:
    """Cosine and sine of every token's angles, for all blocks; of layers with sliding attention other ones."""
    kind = "local_rotary" if local and tape.settings.local_rope_theta is not None else "rotary"
    width = tape.settings.rotary_width
    return [tape.shared(f"{kind}_{part}", width, tape.itemsize, tape.tokens) for part in ("cosine", "sine")]


def _flash(tape: Tape, query: KeptTensor, key: KeptTensor, value: KeptTensor, module: str, kernel: str) -> KeptTensor:
    """A kernel that writes no scores: it keeps what it was given, its output, and statistics of each softmax."""
    heads, settings = tape.settings.num_attention_heads, tape.settings
    itemsize = tape.computation.product_itemsize if kernel == "blockwise" else tape.itemsize
    if itemsize != tape.itemsize:
        query, key, value = (_again(tape, each, "widened", itemsize) for each in (query, key, value))
    output = replace(tape.new(f"{module}.attended", query, key, value), made_by="attention")
    count = 2 if kernel == "blockwise" else 1
    statistics = replace(output, what=f"{tape.block}{module}.softmax_statistics", width=count * heads, itemsize=4)
    tape.result(output)
    tape.result(statistics)
    if output.grad:
        tape.keep(query, key, value, output, statistics)
        if settings.position_embedding in ("alibi", "t5") and module == "self_attn":
            tape.keep(distance_bias(tape))
    if itemsize != tape.itemsize:
        return tape.new(f"{module}.narrowed", output, itemsize=tape.itemsize)
    return output


def distance_bias(tape: Tape) -> KeptTensor:
    """[H, L], or on both sides [H, 2 L - 1], for all blocks of a stack."""
    distances = 2 * tape.length - 1 if tape.settings.two_sided else tape.length
    return tape.shared("distance_bias", tape.settings.num_attention_heads * distances, tape.itemsize)


def _by_document(tape: Tape, query: KeptTensor, key: KeptTensor, value: KeptTensor, module: str) -> KeptTensor:
    """PyTorch's own attention, document by document. Without dropout it is a flash kernel, and its output lies heads
    first, so it is copied. With dropout a weight for each pair of a query and a key is kept, before and after it."""
    heads = tape.settings.num_attention_heads
    keys = tape.computation.read_length if module == "cross_attn" else tape.length
    joined = tape.new(f"{module}.joined", query, key, value)
    if not joined.grad:
        return joined
    tape.keep(query, key, value)
    if tape.settings.attention_dropout:
        weights = tape.new(f"{module}.weights", query, width=heads * keys, itemsize=4)
        tape.keep(weights, _again(tape, weights, "dropped", tape.itemsize))
        if not tape.settings.two_sided and module == "self_attn":
            tape.keep(tape.fixed(f"{module}.hidden", keys * keys, 1))  # for documents of one length once
        return joined
    output = replace(_again(tape, joined, "heads_first"), made_by="attention")
    statistics = replace(output, what=f"{tape.block}{module}.softmax_statistics", width=heads, itemsize=4)
    tape.keep(tape.result(output), tape.result(statistics))
    if tape.computation.ordered:
        tape.keep(tape.new(f"{module}.visible", query, width=keys, itemsize=tape.itemsize))
    return joined


def relative_attention(tape: Tape, x: KeptTensor) -> KeptTensor:
    """A `RelativeAttention`, of one or two streams: as `attention`, with keys for distances."""
    settings = tape.settings
    heads, inner = settings.num_attention_heads, settings.num_attention_heads * settings.head_width
    content = replace(x, tokens=EACH)
    query = tape.linear(x, "self_attn.q_proj")
    key, value = (tape.linear(content, f"self_attn.{name}") for name in ("k_proj", "v_proj"))
    count = 2 * tape.length - 1
    projected = replace(
        tape.fixed("self_attn.keys_of_distances", count * inner, tape.itemsize),
        made_by="product",
        product=(settings.hidden_size, inner),
    )
    tape.keep(
        distances(tape),
        tape.result(projected),
        tape.new("self_attn.by_distance", query),
        tape.new("self_attn.products_with_distances", query, width=heads * count),
    )
    if settings.attention_dropout:
        tape.keep(tape.new("self_attn.dropout_keys", query, width=heads, itemsize=8))
    by_content = tape.new("self_attn.by_content", query)
    if tape.computation.device == "cuda":
        output = _flash(tape, by_content, key, value, "self_attn", "flex")
    else:
        output = tape.new("self_attn.joined", query, key, value)
        wide = tape.itemsize if settings.attention_dropout else 4
        tape.keep(_again(tape, by_content, "ordered", wide))
        for stream in range(1 + (x.tokens != EACH)):
            tape.keep(*(_again(tape, each, f"ordered_{stream}", wide) for each in (key, value)))
        pairs = [("weights", heads, 4), ("distances", 1, 8), ("hidden", 1, 1)]
        if settings.attention_dropout:
            pairs.append(("dropped_weights", heads, tape.itemsize))
        for name, width, itemsize in pairs:
            tape.keep(tape.new(f"self_attn.{name}", query, width=width * tape.length, itemsize=itemsize))
    return tape.linear(output, "self_attn.o_proj")


def distances(tape: Tape) -> KeptTensor:
    """[2 L - 1, C], the vectors of the distances to both sides, for all blocks."""
    return tape.shared("distances", (2 * tape.length - 1) * tape.settings.hidden_size, tape.itemsize)


def fed(tape: Tape, x: KeptTensor) -> KeptTensor:
    """The feed-forward half of a block."""
    return experts(tape, x) if tape.has("mlp.router") else feed_forward(tape, x)


def feed_forward(tape: Tape, x: KeptTensor) -> KeptTensor:
    """A `FeedForward`."""
    settings = tape.settings
    if settings.gated_mlp:
        gate, up = tape.linear(x, "mlp.gate_proj"), tape.linear(x, "mlp.up_proj")
        inner = tape.multiplied("mlp.gated", tape.activation(gate, settings.hidden_act), up)
    else:
        inner = tape.activation(tape.linear(x, "mlp.up_proj"), settings.hidden_act)
    return tape.linear(tape.dropped(inner, "activation", settings.activation_dropout), "mlp.down_proj")


def experts(tape: Tape, x: KeptTensor) -> KeptTensor:
    """A `MixtureOfExperts`: the router in float32, and the rows of a token once for each of its experts."""
    settings, chosen = tape.settings, tape.settings.num_experts_per_tok
    count = settings.num_experts
    logits = tape.linear(x, "mlp.router")
    if logits.grad:
        wide = logits if tape.itemsize == 4 else tape.new("mlp.router.wide", logits, itemsize=4)
        tape.keep(wide)
        for name, width, itemsize in (
            ("probabilities", count, 4),
            ("experts", chosen, 8),
            ("normaliser", 1, 4),
            ("labelled", 1, 4),
            ("row_counts", count / tape.length, 4),  # of a document
        ):
            tape.keep(tape.new(f"mlp.router.{name}", logits, width=width, itemsize=itemsize))
        if settings.norm_topk_prob:
            for name, width in (("chosen", chosen), ("sum", 1)):
                tape.keep(tape.new(f"mlp.router.{name}", logits, width=width, itemsize=4))
        for name in ("order", "places"):
            tape.keep(tape.new(f"mlp.experts.{name}", x, width=chosen, itemsize=8))
        tape.keep(tape.fixed("mlp.experts.ends", count, 4))
    rows = tape.new("mlp.experts.rows", x, width=chosen * settings.hidden_size)
    gate, up = (_grouped(tape, rows, f"mlp.experts.{name}_proj") for name in ("gate", "up"))
    gated = tape.multiplied("mlp.experts.gated", tape.activation(gate, settings.hidden_act), up)
    weights = tape.new("mlp.experts.weights", logits, width=chosen, itemsize=tape.itemsize)
    inner = tape.multiplied("mlp.experts.weighted", gated, weights)
    outputs = _grouped(tape, inner, "mlp.experts.down_proj")
    return tape.new("mlp.experts.sum", outputs, width=settings.hidden_size)


def _grouped(tape: Tape, rows: KeptTensor, name: str) -> KeptTensor:
    """The product of each expert's rows with its matrix."""
    matrix = tape.parameters[name]
    tape.keep(rows)
    width = tape.settings.num_experts_per_tok * matrix.outputs
    shape = matrix.inputs, matrix.outputs
    return tape.result(replace(tape.new(name, rows, width=width), made_by="product", product=shape))


def recurrent_layer(tape: Tape, x: KeptTensor, module: str, width: int) -> KeptTensor:
    """A `RecurrentLayer`: gates and states in float32, for a gradient that is gathered over all steps at once.

    Args:
        tape: with the parameters of the block.
        x: [N, C], in step order.
        module: the prefix of its parameters' names, with a dot; empty for a block that is one.
        width: of its state.
    """
    cell = tape.settings.cell
    tape.linear(x, f"{module}input_gates")
    if tape.itemsize != 4:  # the weight, too: it is multiplied in float32
        tape.keep(tape.fixed(f"{module}state_weight", GATES[cell] * width * width, 4))
    first = {"lstm": 2 if module == "" and tape.settings.reads_pairs else 1, "gru": 1}[cell]
    tape.keep(tape.new(f"{module}first_states", x, width=first * width / tape.length, itemsize=4))  # of a document
    parts = {"lstm": (("states", 1), ("cells", 1), ("gates", 4)), "gru": (("states", 1), ("gates", 3), ("reset", 1))}
    for name, count in parts[cell]:
        made = tape.new(f"{module}{name}", x, width=count * width, itemsize=4)
        made = tape.result(replace(made, made_by="attention"))
        tape.keep(made)
    states = tape.new(f"{module}states", x, width=width, itemsize=4)
    return states if tape.itemsize == 4 else tape.new(f"{module}narrowed", states, itemsize=tape.itemsize)


def bidirectional_layer(tape: Tape, x: KeptTensor) -> KeptTensor:
    """A `BidirectionalLayer`: two halves, the second one over reversed documents."""
    half = tape.settings.hidden_size // 2
    ahead = recurrent_layer(tape, x, "ahead.", half)
    recurrent_layer(tape, tape.new("reversed", x), "back.", half)
    return tape.new("output", ahead, width=2 * half)
