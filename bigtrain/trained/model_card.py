"""The model card: the README.md of an exported model, in the form that the Hugging Face hub reads."""

from __future__ import annotations

from typing import Any

from bigtrain.base import __version__
from bigtrain.config import Settings
from bigtrain.data import Card, card_as_markdown
from bigtrain.model import count_parameters


def model_card(settings: Settings, step: int, validation: list[dict[str, Any]], data: Card | None) -> str:
    """The card of a model at a step, as Markdown with the hub's metadata in front.

    Args:
        settings: of the run.
        step: of the checkpoint.
        validation: the records of the sources' validation losses at that step, if it was evaluated.
        data: its data card; None where the data are missing.
    """
    model, train = settings.model, settings.train
    samples = settings.batches.consumed_after(step)
    lengths = " and ".join(f"{length:,}" for length in settings.data.sequence_lengths)
    classes = f"one of {model.num_labels} classes."
    task, loader, use = {
        "decoder": ("text-generation", "CausalLM", "continues text and follows no instructions."),
        "encoder": ("fill-mask", "MaskedLM", "predicts tokens of a text."),
        "two_stream": ("text-generation", "CausalLM", "predicts tokens of a text, in any order."),
        "encoder_decoder": ("text2text-generation", "Seq2SeqLM", "writes one text after reading another."),
        "sequence_classification": ("text-classification", "SequenceClassification", f"gives a text {classes}"),
        "token_classification": ("token-classification", "TokenClassification", f"gives tokens {classes}"),
        "question_answering": ("question-answering", "QuestionAnswering", "finds the answer to a question in a text."),
    }[model.architecture if model.task_head == "none" else model.task_head]
    loader = f"AutoModelFor{loader}"
    kind = "It is a base model: it" if model.task_head == "none" else "It"
    paragraphs = [
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags:\n- bigtrain\n---",
        f"# {settings.run_dir.name}",
        f"A `{model.family}` {model.architecture} with {count_parameters(model):,} parameters and a context of "
        f"{model.max_position_embeddings:,} tokens, trained with bigtrain {__version__} to step {step:,} of "
        f"{settings.total_steps:,}: {samples:,} samples of {lengths} tokens, in batches of "
        f"{train.global_batch_size:,}. {kind} {use}",
        f"```python\nfrom transformers import {loader}, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n'
        f'model = {loader}.from_pretrained("path/to/this/folder")\n```',
    ]
    if validation:
        rows = [f"| {v['source']} | {v['loss']:.4f} | {v['perplexity']:.2f} | {v['tokens']:,} |" for v in validation]
        head = ["| held-out documents of | loss | perplexity | tokens |", "| --- | --- | --- | --- |"]
        paragraphs += ["## Validation", "\n".join([*head, *rows])]
    paragraphs.append(
        card_as_markdown(data, heading="## Training data") if data else "## Training data\n\nNot at hand."
    )
    return "\n\n".join(paragraphs).rstrip() + "\n"
