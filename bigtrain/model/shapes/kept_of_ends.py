"""What a model keeps outside its blocks: the embeddings before them, the head and the loss after them."""

from __future__ import annotations

from dataclasses import replace

from bigtrain.model.shapes.kept_of_recurrence import token_vectors
from bigtrain.model.shapes.parameters import LABELLED, head_uses
from bigtrain.model.shapes.tape import KeptTensor, Tape


def embedded(tape: Tape, *, learns: bool) -> KeptTensor:
    """What enters the first block, from the embedding of tokens.

    Args:
        tape: with the parameters of the stack outside of its blocks.
        learns: whether the embedding of tokens does.
    """
    settings = tape.settings
    if settings.character_filters:
        x = token_vectors(tape, tape.tokens)
    else:
        x = KeptTensor(f"{tape.block}embedding", settings.embedding_width, tape.itemsize, tape.tokens, grad=learns)
    if settings.embedding_multiplier != 1:
        if settings.embedding_multiplier == "sqrt_hidden_size" and learns and not settings.character_filters:
            tape.keep(tape.fixed("embedding_factor", 1, tape.itemsize))
        x = tape.new("scaled_embedding", x)
    if settings.recurrent:
        return x
    for module in ("embed_token_types", "embed_positions"):
        if tape.learns(f"{module}.weight"):
            tape.keep(tape.new(f"{module}.numbers", x, width=1, itemsize=8))
            x = replace(x, grad=True)
    if settings.position_embedding in ("learned", "sinusoidal") or settings.type_vocab_size:
        x = tape.new("sum_of_embeddings", x)
    if tape.learns("relative_attention_bias.weight"):
        distances = 2 * tape.length - 1 if settings.two_sided else tape.length
        tape.keep(tape.shared("distance_buckets", distances, 8))
    x = tape.dropped(tape.norm(x, "embed_norm"), "embedding", settings.embedding_dropout)
    return tape.linear(x, "embed_projection") if tape.has("embed_projection") else x


def head(tape: Tape, hidden: KeptTensor, name: str = "head") -> None:
    """The head and the loss.

    Args:
        tape: with the parameters outside of blocks.
        hidden: the last states.
        name: of what is kept; multi-token prediction computes the head again.
    """
    settings = tape.settings
    if settings.task_head != "none":
        _task_head(tape, hidden)
        return
    if head_uses(settings) == LABELLED:
        if settings.architecture == "encoder":  # of two streams the second one has these places alone
            tape.keep(KeptTensor("labelled_places", 1, 8, LABELLED))
        hidden = replace(tape.new("labelled_states", hidden), tokens=LABELLED)
    if tape.has("lm_head.dense"):
        dense = tape.linear(hidden, "lm_head.dense")
        hidden = tape.norm(tape.activation(dense, settings.head_act or settings.hidden_act), "lm_head.norm")
    # The loss has its gradients already; see `bigtrain.model.loss`.
    weight = "lm_head.weight" if "lm_head.weight" in tape.parameters else "embed_tokens.weight"
    if hidden.grad:
        tape.keep(tape.new(f"{name}.gradient_of_states", hidden, itemsize=tape.computation.product_itemsize))
    if tape.learns(weight):
        tape.keep(tape.fixed(f"{name}.gradient_of_weight", tape.parameters[weight].numel, 4))
    if tape.learns("lm_head.bias"):
        tape.keep(tape.fixed(f"{name}.gradient_of_bias", settings.vocab_size, 4))


def _task_head(tape: Tape, hidden: KeptTensor) -> None:
    settings = tape.settings
    answers = settings.task_head == "question_answering"
    if not answers:
        tape.keep(KeptTensor("labelled_places", 1, 8, LABELLED))
        hidden = replace(tape.new("labelled_states", hidden), tokens=LABELLED)
    transform, rate = settings.transform_of_task, settings.classifier_dropout
    if transform != "none":
        dense = tape.linear(tape.dropped(hidden, "task head", rate if transform == "tanh" else 0), "task_head.dense")
        if transform == "norm":
            hidden = tape.norm(tape.activation(dense, settings.head_act or settings.hidden_act), "task_head.norm")
        else:
            hidden = tape.new("pooled", dense)
            tape.keep(hidden)  # tanh needs its result
    logits = tape.linear(tape.dropped(hidden, "classifier", rate), "task_head.classifier")
    tape.keep(tape.new("log_probabilities", logits, itemsize=4))
    if answers:  # places of each document's tokens, which of them are there, and which are asked for
        for name, width, itemsize in (("places", 1, 8), ("within", 2, 1), ("asked", 2, 1)):
            tape.keep(tape.new(f"answers.{name}", logits, width=width, itemsize=itemsize))
    else:
        tape.keep(tape.new("chosen_labels", logits, width=1, itemsize=8), tape.fixed("number_of_labels", 1, 4))


def next_token(tape: Tape, x: KeptTensor, embedding: KeptTensor) -> KeptTensor:
    """What enters the block of a module of multi-token prediction.

    Args:
        tape: with the parameters of the module.
        x: the stream after the block before it.
        embedding: of the tokens that follow.
    """
    own, others = tape.norm(x, "hidden_norm"), tape.norm(embedding, "embedding_norm")
    joined = tape.new("joined", own, others, width=2 * own.width)
    return tape.linear(joined, "projection")
