"""Does `transformers` compute what we compute?

Both sides get the same random tokens, one after the other, so that memory holds one model in float32 at a time.
transformers sees config.json and the weights alone. Of config.json it does not see what would make it load code, ask
the hub, or round the weights: whatever a stranger wrote there, it loads the numbers that stand in the files.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.config import AdapterSettings, ModelSettings
from bigtrain.convert.config_json import read_config
from bigtrain.convert.shards import INDEX, TensorFolder
from bigtrain.model import LanguageModel, build_model

LARGEST_DIFFERENCE = 1e-3
"""As a share of the largest logit. The order of summation in float32 explains some 1e-5."""

_USUAL_ENDS = {"bart": 2, "t5": 1}
"""The token that ends a text where config.json is silent: transformers looks for it in what an encoder reads."""
_ABOUT_LOADING = frozenset({
    "dtype", "torch_dtype", "use_bfloat16", "auto_map", "_name_or_path", "name_or_path", "_commit_hash",
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal", "torchscript",
    "return_dict", "output_attentions", "output_hidden_states", "gradient_checkpointing",
})  # fmt: skip
"""Keys of config.json that say how weights are loaded or run, and not what is computed."""


@dataclass(frozen=True)
class LogitsComparison:
    """What the two sides have in common."""

    largest_logit_difference: float
    """In float32, with weights as they are in the files."""
    largest_logit: float
    greedy_tokens: int
    """How many positions were compared in the files' own precision."""
    greedy_tokens_alike: int
    """At how many both take the same token."""
    greedy_tokens_apart: int
    """Positions at which the logit of their token is lower than the rounding to that precision explains."""

    def check(self, folder: Path, ignored: Collection[str] = ()) -> None:
        """Raise a BigtrainError unless they compute the same.

        Args:
            folder: at Hugging Face's format.
            ignored: keys of config.json that the user had ignored, which may be the reason.
        """
        limit = LARGEST_DIFFERENCE * max(1.0, self.largest_logit)
        if self.largest_logit_difference <= limit and not self.greedy_tokens_apart:  # false for NaN
            return
        raise BigtrainError(
            f"transformers does not compute what bigtrain computes from {folder}; do not use it",
            found=f"logits that differ by {self.largest_logit_difference:.3g}, and {self.greedy_tokens_apart} of "
            f"{self.greedy_tokens} greedy tokens that rounding does not explain",
            wanted=f"at most {limit:.3g}, and none",
            fix=f"leave out --ignore-key {' '.join(ignored)}: transformers may read it"
            if ignored
            else "report this with the settings: it is a defect of bigtrain",
        )


@torch.no_grad()
def compare_with_transformers(
    folder: Path,
    weights: Mapping[str, Tensor],
    settings: ModelSettings,
    dtype: torch.dtype,
    *,
    adapter: tuple[AdapterSettings, Path] | None = None,
    tokens: int = 64,
    seed: int = 0,
) -> LogitsComparison:
    """Compare what `transformers` loads from a folder with our own model. Needs the extra `hf`, and peft for
    an adapter.

    Args:
        folder: at Hugging Face's format.
        weights: of our model, by our names.
        settings: of our model.
        dtype: of the weights in the folder; where they have several, one that holds each exactly.
        adapter: of our model, with the folder from which peft loads it onto theirs.
        tokens: length of the two sequences compared, cut to the model's context.
        seed: of the random tokens.

    Raises:
        BigtrainError: transformers cannot load the folder, or the weights are not finite numbers.
    """
    length = min(tokens, settings.max_position_embeddings)
    input_ids = torch.randint(settings.vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))
    if settings.task_head != "none":
        input_ids = _as_texts(input_ids, read_config(folder), settings)
    read: dict[str, Any] = {}
    if settings.architecture == "encoder_decoder":  # the encoder reads other tokens, so that the two cannot be mixed up
        read["encoder_input_ids"] = _to_read(input_ids, settings)
    ours = _ours(weights, settings, dtype, None if adapter is None else adapter[0])
    exact = _of_texts(ours.float().logits(input_ids, **read), settings)
    rounded = _of_texts(ours.to(dtype).logits(input_ids, **read), settings).float()
    del ours
    if not exact.isfinite().all():
        raise BigtrainError(
            f"the weights in {folder} give logits that are not finite",
            found="NaN or infinity, computed in float32",
            fix="use an earlier checkpoint of this model, or fetch the folder again",
        )
    their_adapter = None if adapter is None else adapter[1]
    their_exact, their_rounded = _their_logits(folder, input_ids, settings, dtype, their_adapter)
    # Where two tokens lie closer than rounding moves them, either may win.
    noise = 2 * max((rounded - exact).abs().max().item(), (their_rounded - their_exact).abs().max().item())
    their_tokens = their_rounded.argmax(-1, keepdim=True)
    shortfall = exact.max(-1, keepdim=True).values - exact.gather(-1, their_tokens)
    return LogitsComparison(
        largest_logit_difference=float((their_exact - exact).abs().max()),
        largest_logit=float(exact.abs().max()),
        greedy_tokens=input_ids.numel(),
        greedy_tokens_alike=int((their_tokens == rounded.argmax(-1, keepdim=True)).sum()),
        greedy_tokens_apart=int((shortfall > noise).sum()),
    )


def _ours(
    weights: Mapping[str, Tensor], settings: ModelSettings, dtype: torch.dtype, adapter: AdapterSettings | None
) -> LanguageModel:
    with torch.device("meta"):
        model = build_model(settings, attn_implementation="reference", adapter=adapter)
    model = model.to(dtype).to_empty(device="cpu").eval()
    given = set(weights)
    for name, parameter in model.named_parameters():
        if name in given:  # what is for training only may be left out
            parameter.copy_(weights[name])
    return model


def _as_texts(input_ids: Tensor, config: Mapping[str, Any], settings: ModelSettings) -> Tensor:
    """Rows that end as texts do, and have neither that token nor padding before: by these transformers finds ends.

    Where both are one token, a decoder's text ends before it.
    """
    usual = {"eos_token_id": _USUAL_ENDS.get(config["model_type"])}
    end, padding = (
        _id_in({**usual, **config}.get(key), settings.vocab_size) for key in ("eos_token_id", "pad_token_id")
    )
    free = next(token for token in range(3) if token not in (end, padding))
    for special in (end, padding):
        if special is not None:
            input_ids = input_ids.masked_fill(input_ids == special, free)
    if end is not None and (end != padding or settings.reads_pairs):
        input_ids[:, -1] = end
    return input_ids


def _id_in(ids: Any, vocab_size: int) -> int | None:
    """The first of the ids of a key of config.json, where it is one of the vocabulary."""
    first = next(iter(ids), None) if isinstance(ids, list) else ids
    return first if isinstance(first, int) and 0 <= first < vocab_size else None


def _to_read(input_ids: Tensor, settings: ModelSettings) -> Tensor:
    """What the encoder reads: of texts as many tokens with the same end."""
    if settings.task_head == "none":
        return input_ids.flip(1)
    return torch.cat((input_ids[:, :-1].flip(1), input_ids[:, -1:]), dim=1)


def _of_texts(logits: Tensor, settings: ModelSettings) -> Tensor:
    """The logits [B, 1, classes] of whole texts, or those that there are, of tokens."""
    if settings.task_head != "sequence_classification":
        return logits
    return logits[:, :1] if settings.architecture == "encoder" else logits[:, -1:]


def _computed(model: Any, input_ids: Tensor, inputs: Mapping[str, Any], task: str) -> Tensor:
    """Logits of transformers' model, as ours are. Texts go one by one: it may have no padding token."""
    if task == "none":
        return cast(Tensor, model(input_ids, **inputs).logits)
    rows = []
    for row, ids in enumerate(input_ids):
        own = {
            name: value[row : row + 1] if isinstance(value, Tensor) and len(value) > 1 else value
            for name, value in inputs.items()
        }
        found = model(ids[None], **own)
        answers = task == "question_answering"
        rows.append(torch.stack((found.start_logits, found.end_logits), dim=-1) if answers else found.logits)
    logits = torch.cat(rows)
    return logits[:, None] if task == "sequence_classification" else logits


def _loader(settings: ModelSettings) -> Any:
    """The class of transformers that loads such a model."""
    import transformers

    kind = {
        "sequence_classification": "SequenceClassification",
        "token_classification": "TokenClassification",
        "question_answering": "QuestionAnswering",
        "encoder": "MaskedLM",
        "encoder_decoder": "Seq2SeqLM",
    }
    return getattr(
        transformers, "AutoModelFor" + (kind.get(settings.task_head) or kind.get(settings.architecture, "CausalLM"))
    )


def _their_logits(
    folder: Path, input_ids: Tensor, settings: ModelSettings, dtype: torch.dtype, adapter: Path | None
) -> tuple[Tensor, Tensor]:
    """Logits of transformers' model in float32, and in the type of the files."""
    from transformers.utils import logging

    loader = _loader(settings)
    inputs: dict[str, Any] = {"return_dict": True}
    if settings.architecture == "encoder":
        # roberta would count the positions of tokens that are not padding; a random token may be its padding token
        inputs["position_ids"] = torch.arange(input_ids.shape[1])[None] + settings.position_offset
    elif settings.task_head == "none":
        inputs["use_cache"] = False
    if settings.architecture == "encoder_decoder":
        inputs["decoder_input_ids"], input_ids = input_ids, _to_read(input_ids, settings)
    logging.disable_progress_bar()
    with _config_and_weights(folder) as seen:
        try:
            theirs: Any = loader.from_pretrained(
                seen,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
            if adapter is not None:
                from peft import PeftModel

                theirs = PeftModel.from_pretrained(theirs, adapter)
            theirs.eval()
            exact = _computed(theirs.float(), input_ids, inputs, settings.task_head)
            rounded = _computed(theirs.to(dtype), input_ids, inputs, settings.task_head).float()
        except Exception as error:  # whatever a config.json that is not ours makes it raise
            raise BigtrainError(
                f"transformers cannot compute with {folder}",
                found=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}",
                wanted="a folder that it loads, so that the two can be compared",
                fix="correct the folder, or take it without a comparison: --no-check",
            ) from error
    length = input_ids.shape[1]  # of virtual tokens peft gives logits, too
    return exact[:, -length:], rounded[:, -length:]


@contextmanager
def _config_and_weights(folder: Path) -> Iterator[Path]:
    """A temporary folder with links to the weights of another, and what its config.json says about the model."""
    config = {key: value for key, value in read_config(folder).items() if key not in _ABOUT_LOADING}
    file_of = TensorFolder(folder).files()
    with TemporaryDirectory(prefix="bigtrain-check-") as name:
        seen = Path(name)
        for file in set(file_of.values()):
            (seen / file.name).symlink_to(file.resolve())
        index = {"metadata": {}, "weight_map": {tensor: file.name for tensor, file in file_of.items()}}
        (seen / INDEX).write_text(json.dumps(index), encoding="utf-8")
        (seen / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield seen
