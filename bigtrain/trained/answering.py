"""Answers of a model to questions about contexts, as texts: what `bigtrain eval RUN --answers FILE` measures.

A context that is longer than a row is read in windows, each with the question. The likeliest span of all windows is the
answer, unless no answer is likelier: the start and end at the first token (Devlin et al., 2019, section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from bigtrain.config import Settings
from bigtrain.data import AnsweredQuestion, DataTokenizer
from bigtrain.model import LanguageModel
from bigtrain.objective import best_span

WINDOWS_AT_ONCE = 16


class _Window(NamedTuple):
    """A question with a part of its context, as the model reads it."""

    ids: list[int]
    types: list[int]
    first: int
    """Where the context begins in it."""
    offsets: list[tuple[int, int]]
    """The characters of each token of the context."""


@dataclass(frozen=True)
class QuestionReader:
    """Makes windows of questions, as the data of a run have them."""

    tokenizer: DataTokenizer
    separator: int
    length: int
    """Tokens of a row."""
    stride: int
    most_asked: int
    """Tokens of a question."""

    @classmethod
    def of(cls, settings: Settings) -> QuestionReader:
        """As the data of a run are made. Raises BigtrainError where they are not there."""
        tokenizer = DataTokenizer.open(settings.data.dir)
        source = next(each for each in settings.data.sources if each.kind == "squad")  # no other kind has answers
        separator = settings.data.tokenizer.separator
        assert separator is not None  # the settings have seen to it
        return cls(
            tokenizer=tokenizer,
            separator=tokenizer.special_id(separator),
            length=settings.data.sequence_length,
            stride=source.doc_stride,
            most_asked=source.max_query_length,
        )

    def windows(self, question: AnsweredQuestion) -> Iterator[_Window]:
        """The windows of a question; none where the context has no token, or the question leaves no room for one."""
        encode = self.tokenizer.for_documents().encode
        asked = encode(question.question, add_special_tokens=False).ids[: self.most_asked]
        context = encode(question.context, add_special_tokens=False)
        head = [*self.tokenizer.begin_of_text.ids, *asked, self.separator]
        room = self.length - len(head) - 1
        for start in range(0, len(context.ids) if room > 0 else 0, min(self.stride, max(room, 1))):
            ids = context.ids[start : start + room]
            types = [0] * len(head) + [1] * (len(ids) + 1)
            yield _Window([*head, *ids, self.tokenizer.end_id], types, len(head), context.offsets[start : start + room])
            if start + room >= len(context.ids):
                return


@torch.no_grad()
def answer(
    model: LanguageModel, settings: Settings, questions: Sequence[AnsweredQuestion], device: torch.device
) -> dict[str, str]:
    """The answer to each question by its name; "" where there is none.

    Args:
        model: with the head of question_answering.
        settings: of its run.
        questions: to answer.
        device: where the model is.
    """
    reader = QuestionReader.of(settings)
    windows = [(question, window) for question in questions for window in reader.windows(question)]
    scores: dict[str, tuple[float, str]] = {}
    nothing: dict[str, float] = {}
    typed = settings.model.type_vocab_size > 1
    for first in range(0, len(windows), WINDOWS_AT_ONCE):
        some = windows[first : first + WINDOWS_AT_ONCE]
        read = _logits(model, [window for _, window in some], device, typed)
        for (question, window), logits in zip(some, read, strict=True):
            none = float(logits[0].sum())
            nothing[question.name] = min(none, nothing.get(question.name, none))
            start, end, score = best_span(logits[window.first : -1], anywhere=True)
            if question.name not in scores or score > scores[question.name][0]:
                characters = window.offsets[start][0], window.offsets[end][1]
                scores[question.name] = score, question.context[slice(*characters)].strip()
    found = dict.fromkeys((question.name for question in questions), "")
    return found | {name: text for name, (score, text) in scores.items() if score > nothing[name]}


def _logits(
    model: LanguageModel, windows: Sequence[_Window], device: torch.device, typed: bool
) -> Iterator[np.ndarray]:
    """[T, 2] of each window: they are read as the documents of one row."""
    ends = np.cumsum([0, *(len(window.ids) for window in windows)])
    ids = [token for window in windows for token in window.ids]
    types = [kind for window in windows for kind in window.types]
    places = [place for window in windows for place in range(len(window.ids))]
    tensors = [torch.tensor([values], device=device) for values in (ids, places)]
    bounds = torch.tensor(ends, dtype=torch.int32, device=device)
    others = {"token_type_ids": torch.tensor([types], device=device)} if typed else {}
    logits = model.task_logits(*tensors, bounds, max(len(window.ids) for window in windows), **others)
    for first, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        yield logits[0, first:end].double().cpu().numpy()
