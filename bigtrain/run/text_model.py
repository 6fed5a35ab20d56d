"""A model that continues text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from tokenizers import Tokenizer

from bigtrain.data.tokenizer import vocabulary_size
from bigtrain.model import Decoder, Ended, Sampling, generate, require_room
from bigtrain.run.text_stream import Characters, StopStrings
from bigtrain.run.trained import TrainedModel

Show = Callable[[int, str, Ended | None], None]
"""Called with the number of a prompt and each piece of its completion as soon as it is sure; with the last piece, which
may be empty, comes why the text ends."""


@dataclass(frozen=True)
class Continuation:
    """What a model made of a prompt."""

    prompt: str
    completion: str
    """What comes after the prompt, up to a stop string or the end of the text."""
    tokens: list[int]
    """All that were drawn, those of a stop string or the end of the text included."""
    ended: Ended


@dataclass(frozen=True)
class Continuations:
    """What a model made of prompts, and how fast."""

    texts: list[Continuation]
    seconds: float

    def as_record(self) -> dict[str, Any]:
        """For JSON; tokens per second are those drawn, over all the time that it took, prompts included."""
        tokens = sum(len(text.tokens) for text in self.texts)
        texts = [asdict(text) for text in self.texts]
        alone = {key: texts[0][key] for key in ("prompt", "completion")} if len(texts) == 1 else {}
        return {**alone, "texts": texts, "tokens_per_second": round(tokens / self.seconds, 1)}


@dataclass(frozen=True)
class TextModel:
    """A decoder with its tokenizer."""

    decoder: Decoder
    tokenizer: Tokenizer
    end_of_text: tuple[int, ...]
    """The tokens that end a text; the first begins one where the tokenizer has no other token for it."""
    step: int | None = None
    """Of the checkpoint, where it is one."""
    adds_special_tokens: bool = False
    """Whether texts begin as the tokenizer's file says (with a token, for some); a run's documents begin bare."""

    @classmethod
    def open(cls, path: Path, step: int | None = None) -> TextModel:
        """Load the model of a run directory.

        Args:
            path: where it lies.
            step: of a run's checkpoint. Default: the newest verified one.

        Raises:
            BigtrainError: there is no model, or one that is not whole or not known.
        """
        trained = TrainedModel.open(path, step)
        end_of_text = trained.tokenizer.token_to_id(trained.settings.data.tokenizer.end_of_text)
        assert end_of_text is not None  # the data were built with it
        return cls(trained.model, trained.tokenizer, (end_of_text,), trained.step)

    @property
    def context(self) -> int:
        """Tokens that the model reads at most."""
        return self.decoder.settings.max_position_embeddings

    def continue_texts(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        stop: Sequence[str] = (),
        batch_size: int = 32,
        show: Show = lambda number, text, ended: None,
    ) -> Continuations:
        """Continue prompts; an empty one starts a text.

        Args:
            prompts: the texts.
            max_new_tokens: how many to add at most.
            sampling: how tokens are drawn.
            stop: a text ends before the first of these strings.
            batch_size: how many are continued side by side; it changes no text.
            show: see `Show`.

        Raises:
            BigtrainError: a prompt does not fit into the model's context.
        """
        begun = perf_counter()
        ids = [self.encode(prompt) for prompt in prompts]
        require_room(ids, self.context)
        texts = [_Text(self.tokenizer, prompt, stop) for prompt in ids]

        def read(number: int, token: int) -> bool:
            if token in self.end_of_text:
                return False
            if text := texts[number].add(token):
                show(number, text, None)
            return texts[number].stopped

        def end(number: int, why: Ended) -> None:
            rest = texts[number].end()
            texts[number].ended = "stop" if texts[number].stopped else why
            show(number, rest, texts[number].ended)

        made: list[Continuation] = []
        for first in range(0, len(ids), batch_size):
            rows = generate(
                self.decoder,
                ids[first : first + batch_size],
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                end_of_text=self.end_of_text,
                vocab_size=vocabulary_size(self.tokenizer),
                stops=lambda row, token, first=first: read(first + row, token),  # type: ignore[misc]
                ends=lambda row, why, first=first: end(first + row, why),  # type: ignore[misc]
            )
            for number, row in enumerate(rows, start=first):
                text = texts[number]
                made.append(Continuation(prompts[number], text.shown, row.tokens, text.ended))
        return Continuations(made, perf_counter() - begun)

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a prompt: one that starts a text where it is empty."""
        ids: list[int] = self.tokenizer.encode(prompt, add_special_tokens=self.adds_special_tokens).ids
        return ids or [self.end_of_text[0]]


class _Text:
    """A completion while it is made."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._characters, self._stop_strings = Characters(tokenizer, prompt), StopStrings(stop)
        self.shown = ""
        self.ended: Ended = "length"

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stop_strings.found

    def add(self, token: int) -> str:
        """What may be shown after another token."""
        return self._show(self._stop_strings.add(self._characters.add(token)))

    def end(self) -> str:
        """What is still to be shown when no token follows."""
        return self._show(self._stop_strings.add(self._characters.end()) + self._stop_strings.end())

    def _show(self, text: str) -> str:
        self.shown += text
        return text
