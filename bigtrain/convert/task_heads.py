"""The classes of transformers that models with the head of a task are, by the kind of family.

What is not here has no class: transformers' T5ForTokenClassification, for example, has no decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigtrain.convert.config_keys import labels, start_and_end
from bigtrain.convert.family import Head, Module

_CLASS = {
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
}
_NOISE = frozenset({"classifier_dropout"})
_OUTPUTS = (("qa_outputs", "classifier"),)
_CLASSIFIER = (("classifier", "classifier"),)


def _head(
    name: str,
    task: str,
    modules: tuple[tuple[str, str], ...],
    *,
    only: Mapping[str, tuple[Any, ...]] | None = None,
    noise: frozenset[str] = frozenset(),
    classes: int = 2,
    starts: tuple[str, str] | None = None,
    suffix: str = "",
) -> Head:
    """A class of transformers.

    Args:
        name: what its name begins with.
        task: the task_head.
        modules: pairs of their name and ours within the task_head.
        only: keys of config.json that may have these values only.
        noise: keys of dropout in the head.
        classes: how many classes there are where config.json is silent.
        starts: what begins names of the language model's tensors, and what begins them here.
        suffix: what follows the name of the task.
    """
    texts = task == "sequence_classification"
    return Head(
        architecture=name + _CLASS[task] + suffix,
        settings={"task_head": task},
        modules=tuple(Module(theirs, (f"task_head.{ours}",)) for theirs, ours in modules),
        keys=(start_and_end() if task == "question_answering" else labels(classes),),
        only={**({"problem_type": (None, "single_label_classification")} if texts else {}), **(only or {})},
        training_only=noise,
        starts=starts,
    )


def of_decoder(
    name: str,
    tasks: tuple[str, ...] = tuple(_CLASS),
    *,
    classifier: str = "score",
    answers_start: tuple[str, str] | None = None,
) -> tuple[Head, ...]:
    """A text's class is scored at its last token, without a bias.

    Args:
        name: what the names of its classes begin with.
        tasks: for which it has one.
        classifier: of tokens, its name.
        answers_start: question_answering: what begins names of the language model's tensors, and what begins them here.
    """
    heads = {
        "sequence_classification": _head(name, "sequence_classification", (("score", "classifier"),)),
        "token_classification": _head(name, "token_classification", ((classifier, "classifier"),), noise=_NOISE),
        "question_answering": _head(name, "question_answering", _OUTPUTS, starts=answers_start),
    }
    return tuple(heads[task] for task in tasks)


def of_pooled(name: str, pooler: str, dropout: str) -> tuple[Head, ...]:
    """bert, albert: what the pooler makes of a text's first token is classified.

    Args:
        name: what the names of its classes begin with.
        pooler: the name of its layer.
        dropout: the key of the classifier's dropout.
    """
    noise = frozenset({dropout})
    pooled = ((pooler, "dense"), *_CLASSIFIER)
    return (
        Head(f"{name}ForPreTraining", {"sentence_head": True}),
        _head(name, "sequence_classification", pooled, noise=noise),
        _head(name, "token_classification", _CLASSIFIER, noise=noise),
        _head(name, "question_answering", _OUTPUTS),
    )


ROBERTA = (
    _head(
        "Roberta",
        "sequence_classification",
        (("classifier.dense", "dense"), ("classifier.out_proj", "classifier")),
        noise=_NOISE,
    ),
    _head("Roberta", "token_classification", _CLASSIFIER, noise=_NOISE),
    _head("Roberta", "question_answering", _OUTPUTS),
)
MODERNBERT = tuple(
    _head(
        "ModernBert",
        task,
        (("head.dense", "dense"), ("head.norm", "norm"), *_CLASSIFIER),
        only={"classifier_pooling": ("cls",)} if task == "sequence_classification" else {},
        noise=_NOISE,
    )
    for task in _CLASS
)
_OF_BART = (("classification_head.dense", "dense"), ("classification_head.out_proj", "classifier"))
BART = (
    _head("Bart", "sequence_classification", _OF_BART, noise=_NOISE, classes=3),
    _head("Bart", "question_answering", _OUTPUTS),
)
T5 = (
    _head("T5", "sequence_classification", _OF_BART, noise=_NOISE, starts=("", "transformer.")),
    _head("T5", "question_answering", _OUTPUTS),
)
XLNET = (
    _head(
        "XLNet",
        "sequence_classification",
        (("sequence_summary.summary", "dense"), ("logits_proj", "classifier")),
        only={"summary_type": ("last",), "summary_use_proj": (True,), "summary_activation": ("tanh",)},
        noise=frozenset({"summary_last_dropout"}),
    ),
    _head("XLNet", "token_classification", _CLASSIFIER),
    _head("XLNet", "question_answering", _OUTPUTS, suffix="Simple"),
)
