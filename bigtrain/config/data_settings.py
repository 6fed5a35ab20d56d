"""The `data` section: from raw text to the order of the training samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from bigtrain.config.cleaning import CleanStep
from bigtrain.config.section import NonNegativeFloat, OpenUnitInterval, Section, UserPath


class TokenizerSettings(Section):
    """Where the tokenizer comes from: trained on the sources, or a finished `tokenizer.json`."""

    path: UserPath | None = None
    """A `tokenizer.json` (or the Hugging Face folder that holds one) to use as it is. Default: train one."""
    vocab_size: PositiveInt = 8192
    """Size of a trained byte-level BPE vocabulary, special tokens included."""
    min_frequency: PositiveInt = 2
    """A pair seen less often than this is never merged."""
    end_of_text: str = "<|endoftext|>"
    """The special token that closes each document."""
    train_bytes: PositiveInt = 50_000_000
    """How much text a tokenizer is trained on, taken evenly over the sources."""


class SourceSettings(Section):
    """One corpus: where its documents come from and how much of the mixture it makes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """A name of your choice; a folder is called by it, and metrics and reports too."""
    kind: Literal["python_stdlib", "text", "jsonl", "parquet", "huggingface", "megatron"]
    """`python_stdlib`: the standard library of the running Python; `text`: files, one document each; `jsonl`: one
    JSON object a line; `parquet`: one row a document; `huggingface`: a dataset of the `datasets` library; `megatron`:
    token ids that Megatron-LM's preprocess_data.py wrote (`.bin` and `.idx`) with the tokenizer at tokenizer.path."""
    path: str | None = None
    """text, jsonl, parquet: a file, folder or glob, also behind a URL such as s3://bucket/folder. huggingface: a hub id
    or a local folder. megatron: the prefix of a pair of files, one of them, a folder or a glob."""
    text_field: str = "text"
    """jsonl, parquet, huggingface: the field or column that holds the text."""
    content: Literal["source", "documentation"] = "source"
    """python_stdlib: the source files, or the documentation strings in them."""
    subset: str | None = None
    """huggingface: the configuration name of a dataset that has several."""
    split: str = "train"
    """huggingface: the split to read."""
    streaming: bool = False
    """huggingface: read rows as they arrive instead of storing the dataset on this machine first."""
    weight: NonNegativeFloat | None = None
    """Share of the mixture, relative to the other sources; 0 for a source that only a later phase draws from. Default:
    in proportion to its tokens. Give it for all sources or for none, those with 0 aside."""
    max_epochs: PositiveFloat | None = None
    """Draw from it at most this many times over; from there on the other sources share what it would have made.
    Default: no bound."""
    license: str | None = None
    """The licence of its documents, for the data card. It changes nothing that is built or trained."""
    clean: tuple[CleanStep, ...] = ()
    """Rules that each document passes in this order before it is tokenized: the first that refuses it removes it, and
    some rewrite it. An item is the name of a rule, or `name: {threshold: value}`."""

    @property
    def exact_weight(self) -> Fraction | None:
        """The weight as it was typed, without binary rounding: 0.1 is one tenth."""
        return None if self.weight is None else as_typed(self.weight)

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> SourceSettings:
        if self.kind != "python_stdlib" and not self.path:
            raise ValueError(f"source {self.name!r} of kind {self.kind!r} needs a path")
        kinds_of_key = {
            "path": ("text", "jsonl", "parquet", "huggingface", "megatron"),
            "text_field": ("jsonl", "parquet", "huggingface"),
            "content": ("python_stdlib",),
            "subset": ("huggingface",),
            "split": ("huggingface",),
            "streaming": ("huggingface",),
        }
        for key, kinds in kinds_of_key.items():
            value = getattr(self, key)
            # Its default is let through wherever it stands: it says nothing, and a run's config.yaml writes every key.
            if self.kind not in kinds and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"source {self.name!r} of kind {self.kind!r} has no {key}, found {value!r}; "
                    f"remove it: {key} is for {', '.join(kinds)} only"
                )
        if self.kind == "megatron" and self.clean:
            raise ValueError(
                f"source {self.name!r} of kind 'megatron' holds token ids, which clean cannot read; remove clean"
            )
        return self


class PhaseSettings(Section):
    """A change of the mixture from some point of training on."""

    from_tokens: PositiveInt
    """The tokens trained on when it begins, rounded up to a whole sample."""
    weights: dict[str, NonNegativeFloat]
    """Shares of the mixture by the name of the source; one that is not named gives nothing in this phase."""

    @field_validator("weights")
    @classmethod
    def _something_is_drawn(cls, value: dict[str, float]) -> dict[str, float]:
        if not any(value.values()):
            raise ValueError("every weight is 0; give at least one source a weight above 0")
        return value


class SkipSettings(Section):
    """What is not trained on after all: the batches of some steps, or some documents."""

    steps: tuple[PositiveInt, PositiveInt] | None = None
    """First and last step whose batches are left out, in the numbering that the run has with the entries above this
    one. What comes behind them moves forward."""
    source: str | None = None
    """documents: the name of their source."""
    files: str | None = None
    """documents: a pattern such as `*/spam/*.txt` that their file's name matches, as in fnmatch."""
    ids: tuple[Annotated[str, Field(pattern="^[0-9a-f]{32}$")], ...] = ()
    """documents: their ids, as `bigtrain data where` prints them."""
    from_step: PositiveInt = 1
    """documents: from this step on they are in the batch still, so that nothing moves, but have no labels."""
    reason: str
    """Why, for whoever reads this later."""

    @model_validator(mode="after")
    def _one_kind(self) -> SkipSettings:
        documents = self.files is not None or bool(self.ids)
        if (self.steps is not None) == documents:
            raise ValueError("an item of skip has either steps, or files or ids of a source")
        if documents and self.source is None:
            raise ValueError("to skip documents, name their source too")
        if self.steps is not None and (self.source is not None or self.from_step != 1):
            raise ValueError("an item of skip with steps has neither source nor from_step")
        if self.steps is not None and self.steps[0] > self.steps[1]:
            raise ValueError(f"steps {list(self.steps)}: the first comes after the last")
        return self


class DedupSettings(Section):
    """Which documents are dropped because an earlier one, in the order of the sources, is the same or nearly so."""

    model_config = ConfigDict(json_schema_extra=lambda schema: _written_alone_too(schema, "method"))

    method: Literal["none", "exact", "near"] = "none"
    """`exact`: equal texts, after cleaning; `near`: those, and texts whose sets of word n-grams have a large part in
    common (MinHash with locality-sensitive hashing), directly or through others. Over both splits. Token ids of a
    megatron source are compared for equality only. It reads and cleans the sources once more."""
    ngram: PositiveInt = 5
    """near: words in one n-gram, in lower case and without punctuation; a shorter document is one by itself."""
    bands: PositiveInt = 14
    """near: two documents are duplicates when all hashes of one band agree: at a Jaccard similarity s with probability
    1 - (1 - s^rows)^bands. FineWeb's 14 bands of 8 rows find 77% of the pairs at 0.75 and 92% at 0.8."""
    rows: PositiveInt = 8
    """near: hashes in one band."""

    @model_validator(mode="before")
    @classmethod
    def _the_method_alone(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value


class DecontaminateSettings(Section):
    """Drops documents that share a long n-gram with texts that a model is evaluated on (Brown et al. 2020, appendix
    C). Token ids of a megatron source are not looked at."""

    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, folders or globs of the evaluation texts: text, .jsonl (also .gz, .zst) or .parquet."""
    text_fields: tuple[str, ...] = ("text",)
    """jsonl, parquet: the fields to read; each that an item has is a text, or each string of a list in it."""
    ngram: PositiveInt = 13
    """Words in one n-gram, in lower case and without punctuation; a shorter evaluation text is an n-gram by
    itself if it has 5 words."""


class ValidationSettings(Section):
    """The held-out documents."""

    fraction: OpenUnitInterval = 0.01
    """Share of the documents held out, chosen by a hash of each document's origin: the same ones every time."""


class DataSettings(Section):
    """From raw text to the order of the training samples."""

    dir: UserPath
    """The folder on this machine where tokenizer and shards are written. Several runs may share one."""
    remote: str | None = None
    """URL (s3://, gs://, https://, ...) that a built `dir` was copied to, to read the shards from there. `dir` is then
    a folder of its own for what has been fetched. Default: the shards are in `dir`."""
    cache_bytes: PositiveInt = 100_000_000_000
    """remote: how much of the disk of `dir` fetched blocks of shards may take; the least recently used go first."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    """The tokenizer."""
    sources: Annotated[list[SourceSettings], Field(min_length=1)]
    """The corpora."""
    phases: tuple[PhaseSettings, ...] = ()
    """Changes of the mixture on the way, in the order of their beginning."""
    skip: tuple[SkipSettings, ...] = ()
    """What is not trained on after all. Add to the end: what a run has seen already cannot be changed."""
    shuffle_blocks: PositiveInt | None = None
    """How many blocks of 32 MiB of a source are mixed with each other at a time. With `remote`, such a window is used
    up before the next is fetched, so cache_bytes need not hold more. Default: every sample of a source is mixed with
    all others, which suits local disks."""
    sequence_length: PositiveInt
    """Tokens in one training sample."""
    dedup: DedupSettings = DedupSettings()
    """Dropping duplicates: the method alone, or `{method: near, bands: 20, ...}`."""
    decontaminate: DecontaminateSettings | None = None
    """Dropping documents that evaluation texts are found in. Default: none are."""
    packing: Literal["concat", "best_fit", "buckets"] = "concat"
    """`concat`: documents one after the other, cut every sequence_length tokens. `best_fit`: only documents longer than
    a sample are cut, and the parts packed into samples with little room left over (Ding et al. 2024). `buckets`: each
    document is cut into parts whose lengths are powers of two, and a sample holds parts of one length
    (Pouransari et al. 2024). Attention stays inside a document in all of them."""
    validation: ValidationSettings = ValidationSettings()
    """The held-out split."""
    shard_tokens: PositiveInt = 100_000_000
    """Tokens in one shard file, about."""
    workers: PositiveInt | None = None
    """Processes that tokenize. Default: one a core. The shards are byte-identical for any number."""

    @field_validator("dir", mode="before")
    @classmethod
    def _dir_is_no_url(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:  # a Path would fold its slashes
            raise ValueError(f"{value} is a URL; write remote: {value}, and as dir a folder on this machine")
        return value

    @field_validator("remote")
    @classmethod
    def _remote_is_a_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"(file:///|[a-z][a-z0-9+.-]*://)[^/]", value):
            raise ValueError(f"{value!r} is no URL such as s3://bucket/folder; a folder on this machine goes into dir")
        return value

    @model_validator(mode="after")
    def _names_and_weights(self) -> DataSettings:
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources have the name {twice[0]!r}")
        at_first = [source for source in self.sources if source.weight != 0]
        if not at_first:
            raise ValueError("every source has the weight 0; give at least one a weight above 0")
        weighted = [source.weight is not None for source in at_first]
        if any(weighted) and not all(weighted):
            missing = at_first[weighted.index(False)].name
            raise ValueError(f"some sources have a weight and {missing!r} has none; give all of them one, or none")
        return self

    @model_validator(mode="after")
    def _sources_are_known(self) -> DataSettings:
        for where, named in (
            *((f"phases.{i}.weights", list(phase.weights)) for i, phase in enumerate(self.phases)),
            *((f"skip.{i}.source", [skip.source]) for i, skip in enumerate(self.skip) if skip.source is not None),
        ):
            _require_known(where, named, [source.name for source in self.sources])
        starts = [phase.from_tokens for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ValueError(f"phases must begin one after the other, found from_tokens {starts}")
        return self

    @model_validator(mode="after")
    def _packing_fits(self) -> DataSettings:
        if self.packing == "buckets" and self.sequence_length & (self.sequence_length - 1):
            raise ValueError(
                f"packing buckets halves sequence_length again and again, found {self.sequence_length}; "
                f"set it to a power of two such as {1 << self.sequence_length.bit_length() - 1}"
            )
        if any(source.kind == "megatron" for source in self.sources) and self.tokenizer.path is None:
            raise ValueError(
                "a source of kind 'megatron' holds token ids; set tokenizer.path to the tokenizer that made them"
            )
        return self


def as_typed(number: float) -> Fraction:
    """A number as it was typed, without binary rounding: 0.1 is one tenth."""
    return Fraction(repr(number))


def _require_known(where: str, named: Sequence[str | None], names: Sequence[str]) -> None:
    for name in named:
        if name not in names:
            raise ValueError(f"{where} names {name!r}, which is none of the sources: {', '.join(names)}")


def _written_alone_too(schema: dict[str, Any], key: str) -> None:
    schema["type"] = ["object", "string"]
    schema["x-alone"] = key  # for overrides of it
    schema["pattern"] = f"^({'|'.join(schema['properties'][key]['enum'])})$"
