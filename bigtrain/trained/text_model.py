"""A model that continues text: of a run, of a Hugging Face folder, or of a folder that `bigtrain import` wrote.

A folder at Hugging Face is read as transformers reads it, without transformers: the tokens that its tokenizer puts
around a text, and those that end one by its generation_config.json. Weights have the type that they have in the files,
whatever config.json says. A prompt of a run begins as its documents do where the tokenizer puts a token before a text:
see `bigtrain/data/format/tokenizer_content.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from tokenizers import Tokenizer

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings, Settings
from bigtrain.convert import (
    MODEL,
    HuggingFaceWeights,
    Imported,
    common_dtype,
    is_compressed,
    read_hf,
    read_special_ids,
    read_tokenizer,
)
from bigtrain.data import DataTokenizer, check_vocabulary, encode_text, end_of_text_id, vocabulary_size
from bigtrain.model import Ended, LanguageModel, Sampling, build_model, generate, require_decoder, require_room
from bigtrain.trained.text_stream import Characters, StopStrings
from bigtrain.trained.trained import TrainedModel

logger = logging.getLogger(__name__)

Show = Callable[[int, str, Ended | None], None]
"""Called with the number of a prompt and each piece of its completion as soon as it is final. The last piece, which may
be empty, comes with the reason why the text ends."""


@dataclass(frozen=True)
class Continuation:
    """A prompt and how a model continued it."""

    prompt: str
    completion: str
    """The text after the prompt, up to a stop string or the end of the text."""
    tokens: list[int]
    """All tokens that were drawn, with those of a stop string or the end of the text."""
    ended: Ended


@dataclass(frozen=True)
class Continuations:
    """How a model continued prompts, and how long it took."""

    texts: list[Continuation]
    seconds: float
    """Of all of it, prompts included."""


@dataclass(frozen=True, kw_only=True)
class GeneratedTexts:
    """The texts that a model continued."""

    model: str
    step: int | None
    """Of the checkpoint; null for a folder, which has one model."""
    prompt: str | None = None
    """Only where there was one prompt, as the next."""
    completion: str | None = None
    texts: list[Continuation]
    tokens_per_second: float
    """Tokens that were drawn over the time that it took, prompts included."""

    @classmethod
    def of(cls, model: Path, step: int | None, made: Continuations) -> GeneratedTexts:
        """The texts of a model at a step."""
        alone = made.texts[0] if len(made.texts) == 1 else None
        return cls(
            model=str(model),
            step=step,
            prompt=None if alone is None else alone.prompt,
            completion=None if alone is None else alone.completion,
            texts=made.texts,
            tokens_per_second=round(sum(len(text.tokens) for text in made.texts) / made.seconds, 1),
        )


@dataclass(frozen=True)
class TextModel:
    """A decoder or an encoder-decoder with its tokenizer. An encoder-decoder reads a prompt as a whole document, and
    its completion is the text that it writes."""

    decoder: LanguageModel
    tokenizer: Tokenizer
    end_of_text: tuple[int, ...]
    """The tokens that end a text."""
    beginning: int | None
    """The token that stands for an empty prompt; None where the model has learned of none what follows it."""
    step: int | None = None
    """Of the checkpoint, where it is one."""
    adds_special_tokens: bool = False
    """Whether a prompt gets the tokens that the tokenizer puts around a text."""
    decoder_start: int | None = None
    """Of an encoder-decoder: the token that its decoder's texts start with."""
    two_sided_prompts: bool = False
    """Whether the tokens of a prompt see those after them: of a model that learned by the objective `prefix`."""

    @classmethod
    def open(cls, path: Path, step: int | None = None) -> TextModel:
        """Load a model.

        Args:
            path: a run directory, or a folder with config.json or model.yaml.
            step: of a run's checkpoint. Default: the newest verified one.

        Raises:
            BigtrainError: there is no model, or it is incomplete, of an unknown family, or an encoder.
        """
        if (path / "config.json").is_file():
            read = _of_hugging_face
        elif (path / MODEL).is_file() and not is_compressed(path):
            read = _of_import
        else:
            trained = TrainedModel.open(path, step)
            return _of_run(trained.model, trained.settings, trained.step)
        if step is not None:
            raise BigtrainError(
                f"{path} holds one model, without steps", found=f"--step {step}", fix="leave --step out"
            )
        return read(path)

    @classmethod
    def in_training(cls, decoder: LanguageModel, settings: Settings) -> TextModel:
        """The model that a run is training, with its present weights."""
        return _of_run(decoder, settings, None)

    @property
    def context(self) -> int:
        """Tokens that the model reads at most."""
        return self.decoder.settings.max_position_embeddings - self.decoder.virtual_tokens

    def shown(self, prompt: str) -> str:
        """A prompt as it is shown in front of its completion."""
        return prompt if self.decoder_start is None else f"{prompt}\n"

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
        begun_with = ids if self.decoder_start is None else [[self.decoder_start]] * len(ids)
        texts = [_Text(self.tokenizer, tokens, stop) for tokens in begun_with]

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
                begun_with[first : first + batch_size],
                read=None if self.decoder_start is None else ids[first : first + batch_size],
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                two_sided_prompts=self.two_sided_prompts,
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
        """The tokens of a prompt: one that starts a text where it is empty.

        Raises:
            BigtrainError: the tokenizer cannot encode it, the model has no embedding of one of its tokens, or it is
                empty and the model has learned of no token what follows it.
        """
        ids = encode_text(self.tokenizer, prompt, add_special_tokens=self.adds_special_tokens)
        if not ids and self.beginning is None:
            raise BigtrainError(
                "a prompt is empty, and this model has no token that begins a text",
                found="a model whose documents begin with their first token",
                fix="give a prompt; or build data in another data.dir, where documents get a begin, and train on them",
            )
        ids = ids or [self.beginning or 0]
        if max(ids) >= self.decoder.settings.vocab_size:
            raise BigtrainError(
                "the tokenizer gives a prompt a token that the model has no embedding of",
                found=f"id {max(ids)}",
                wanted=f"ids below {self.decoder.settings.vocab_size}, model.vocab_size",
                fix="fetch model and tokenizer together",
            )
        return ids


def _of_run(decoder: LanguageModel, settings: Settings, step: int | None) -> TextModel:
    require_decoder(settings.model)
    tokenizer = DataTokenizer.open(settings.data.dir)
    end, begin = tokenizer.end_id, tokenizer.begin_of_text
    if settings.objective.reads_pairs:
        start = tokenizer.vocabulary().id_of(
            settings.objective.first.decoder_start_token, "objective.decoder_start_token"
        )
        shown = tokenizer.for_reading_whole(start)
        return TextModel(decoder, shown, (end,), None, step, adds_special_tokens=True, decoder_start=start)
    learned_before = settings.model.init_from is not None
    beginning = begin.ids[0] if begin.ids else end if learned_before else None
    return TextModel(
        decoder,
        tokenizer.for_prompts(),
        (end,),
        beginning,
        step,
        adds_special_tokens=True,
        two_sided_prompts=settings.objective.name == "prefix",
    )


def _of_hugging_face(folder: Path) -> TextModel:
    settings, weights = read_hf(folder)
    ids = read_special_ids(folder)
    for note in ids.notes:
        logger.warning(note)
    begins = [each for each in ids.begins if each < settings.vocab_size]
    start = ids.decoder_starts[0] if ids.decoder_starts else None
    return _of_folder(folder, settings, weights, ids.ends, begins[0] if begins else None, start)


def _of_import(folder: Path) -> TextModel:
    imported = Imported(folder)
    for note in imported.notes:
        logger.warning(note)
    end_of_text = end_of_text_id(read_tokenizer(folder).library, imported.end_of_text)
    start = imported.decoder_start_id
    return _of_folder(folder, imported.settings, imported, (end_of_text,), end_of_text, start)


def _of_folder(
    folder: Path,
    settings: ModelSettings,
    weights: HuggingFaceWeights | Imported,
    end_of_text: tuple[int, ...],
    beginning: int | None,
    decoder_start: int | None,
) -> TextModel:
    require_decoder(settings)
    content, hidden = read_tokenizer(folder), None
    if settings.architecture != "encoder_decoder":
        decoder_start = None
    elif decoder_start is None:
        raise BigtrainError(
            f"{folder} does not say which token an encoder-decoder's texts start with",
            found="no decoder_start_token_id in generation_config.json and config.json",
            wanted="the id of this token",
            fix="write decoder_start_token_id into config.json, and import the folder again where it was imported",
        )
    else:
        hidden = {decoder_start, *end_of_text, *content.around.begin, *content.around.end}
    tokenizer = content.for_prompts(hidden)
    check_vocabulary(vocabulary_size(tokenizer), settings.vocab_size)
    with torch.device("meta"):
        decoder = build_model(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = decoder.to(common_dtype(weights.dtypes)).to_empty(device=device)
    parameters = dict(decoder.named_parameters())
    decoder.set_router_moves({})
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)
    return TextModel(
        decoder.eval(), tokenizer, end_of_text, beginning, adds_special_tokens=True, decoder_start=decoder_start
    )


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
