"""The `data` section: from raw text to the order of the training samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, PositiveFloat, field_validator, model_validator

from bigtrain.config.rope_scaling import RopeScaling
from bigtrain.config.section import NonNegativeFloat, OpenUnitInterval, PositiveInt, Section, UserPath
from bigtrain.config.source_settings import SourceSettings

SHORTEST_PAIR = 8
"""Tokens in a row of two segments, at least."""


class TokenizerSettings(Section):
    """The tokenizer: trained on the sources, or read from a finished `tokenizer.json`."""

    path: UserPath | None = None
    """A `tokenizer.json` (or the Hugging Face folder that holds one) to use as it is. Default: train one."""
    vocab_size: PositiveInt = 8192
    """Size of a trained byte-level BPE vocabulary, special tokens included."""
    min_frequency: PositiveInt = 2
    """A pair seen less often than this is never merged."""
    end_of_text: str = "<|endoftext|>"
    """The special token that closes each document."""
    begin_of_text: str = "auto"
    """What each document begins with, so that something predicts its first token. `auto`: the token that the
    tokenizer puts before a text, as Llama 3's and Gemma's do, or else end_of_text, as GPT-2 was trained. A token such
    as `<s>`: that one. `none`: nothing, as in data that the first versions built. Only a token that the tokenizer puts
    there, or that is named here, also begins prompts and the texts of exported models. Data that are built already
    keep their begin."""
    additional_special_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Further special tokens, such as `[MASK]`, that an objective needs. A tokenizer that is trained counts them in
    vocab_size; one at `path` that lacks them gets them after its last id."""
    separator: str | None = None
    """The special token between two texts of a document, such as `[SEP]`. Sources of two texts need one, such as pairs
    of sentences, or questions with their contexts."""
    chat_template: UserPath | None = None
    """A Jinja file: how conversations become text. Default: the template that came with the tokenizer at `path`."""
    train_bytes: PositiveInt = 50_000_000
    """Bytes of text that a tokenizer is trained on, taken evenly from the sources."""


class PhaseSettings(Section):
    """A change of the mixture, of the length of the samples or of the rotation, from a point of the training on."""

    from_tokens: PositiveInt
    """Tokens trained on before the phase starts: rounded up to a whole sample, or to a whole step where more than the
    weights changes."""
    weights: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """Shares of the mixture by the name of the source. A source that is not named gives nothing in this phase. Default:
    as before the phase."""
    sequence_length: PositiveInt | None = None
    """Tokens in one sample from this phase on. A step holds as many tokens as before, in fewer or more samples.
    Default: as before."""
    rope_theta: PositiveFloat | None = None
    """From this phase on, model.rope_theta is this. Default: as before."""
    rope_scaling: RopeScaling | None = None
    """From this phase on, model.rope_scaling is this. Default: as before."""
    new_epoch: bool = False
    """Start a new epoch of every source with this phase. false: a source gives what it has not given in its epoch.
    A packing other than `concat` needs true for another sequence_length, and so does a run that trained before its
    configuration had the phase."""

    @field_validator("weights")
    @classmethod
    def _something_is_drawn(cls, value: dict[str, float]) -> dict[str, float]:
        if value and not any(value.values()):
            raise ValueError("every weight is 0; give at least one source a weight above 0")
        return value

    @property
    def rotation(self) -> dict[str, Any]:
        """The keys of the model that change with it."""
        values = {"rope_theta": self.rope_theta, "rope_scaling": self.rope_scaling}
        return {key: value for key, value in values.items() if value is not None}

    @property
    def starts_stage(self) -> bool:
        """Whether it starts with a whole step, because more than the weights changes."""
        return self.new_epoch or self.sequence_length is not None or bool(self.rotation)

    @model_validator(mode="after")
    def _something_changes(self) -> PhaseSettings:
        if not self.weights and not self.starts_stage:
            raise ValueError("a phase changes nothing; give it weights, sequence_length, rope_theta or rope_scaling")
        return self


class SequenceCut(NamedTuple):
    """One way in which the training documents are cut into sequences, for some of the phases."""

    sequence_length: int
    phase: int | None
    """The phase with which it starts; None for the start of the run."""
    new_epoch: bool
    """Whether every source starts a new epoch with it."""


class SkipSettings(Section):
    """Data that the run leaves out: the batches of some steps, or some documents."""

    steps: tuple[PositiveInt, PositiveInt] | None = None
    """First and last step whose batches are left out, as the run counts steps with the items above this one. Later
    batches move forward."""
    source: str | None = None
    """documents: the name of their source."""
    files: str | None = None
    """documents: a pattern such as `*/spam/*.txt` that their file's name matches, as in fnmatch."""
    ids: tuple[Annotated[str, Field(pattern="^[0-9a-f]{32}$")], ...] = ()
    """documents: their ids, as `bigtrain data where` prints them."""
    from_step: PositiveInt = 1
    """documents: from this step on they have no labels. They stay in the batch, so that no other sample moves."""
    reason: str
    """Why, for later readers."""

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
            raise ValueError(f"steps {list(self.steps)}: the first is after the last")
        return self


class DedupSettings(Section):
    """Deduplication: a document is dropped when an earlier one, in the order of the sources, is equal or nearly
    equal."""

    model_config = ConfigDict(json_schema_extra=lambda schema: _written_alone_too(schema, "method"))

    method: Literal["none", "exact", "near"] = "none"
    """`exact`: texts that are equal after cleaning. `near`: also texts that share a large part of their word n-grams
    (MinHash with locality-sensitive hashing), directly or through other documents. Both splits count. Documents of a
    megatron source are compared for equality only. The build reads and cleans the sources once more."""
    ngram: PositiveInt = 5
    """near: words in one n-gram, in lower case and without punctuation. A shorter document is one n-gram."""
    bands: PositiveInt = 14
    """near: two documents are duplicates when all hashes of a band agree. At a Jaccard similarity s this has the
    probability 1 - (1 - s^rows)^bands. FineWeb's 14 bands of 8 rows find 77% of the pairs at 0.75 and 92% at 0.8."""
    rows: PositiveInt = 8
    """near: hashes in one band."""

    @model_validator(mode="before")
    @classmethod
    def _the_method_alone(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value


class DecontaminateSettings(Section):
    """Drops documents that share a long n-gram with texts that a model is evaluated on (Brown et al. 2020, appendix
    C). Documents of a megatron source are not checked."""

    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, folders or globs of the evaluation texts: text, .jsonl (also .gz, .zst, .bz2, .xz) or .parquet."""
    text_fields: tuple[str, ...] = ("text",)
    """jsonl, parquet: the fields to read. A field holds a text or a list of texts; an item may lack some of the
    fields."""
    ngram: PositiveInt = 13
    """Words in one n-gram, in lower case and without punctuation. A shorter evaluation text is one n-gram if it has
    at least 5 words."""


class ValidationSettings(Section):
    """The held-out documents."""

    fraction: OpenUnitInterval = 0.01
    """Share of the documents that is held out. A hash of a document's origin decides, so the choice is always the
    same."""


class DataSettings(Section):
    """From raw text to the order of the training samples."""

    dir: UserPath
    """The folder on this machine where tokenizer and shards are written. Several runs may share one."""
    remote: str | None = None
    """URL (s3://, gs://, https://, ...) that a built `dir` was copied to, to read the shards from there. `dir` then
    holds what has been fetched, and is another folder. Default: the shards are in `dir`."""
    cache_bytes: PositiveInt = 100_000_000_000
    """remote: bytes that fetched blocks of shards may take in `dir`. The least recently used are removed first."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    """The tokenizer."""
    sources: Annotated[list[SourceSettings], Field(min_length=1)]
    """The corpora."""
    phases: tuple[PhaseSettings, ...] = ()
    """Changes of the mixture, of sequence_length or of the rotation during the run, in the order of their starts."""
    skip: tuple[SkipSettings, ...] = ()
    """Data that the run leaves out. Add items at the end: samples that a run has used cannot be changed."""
    shuffle_blocks: PositiveInt | None = None
    """Size of the shuffle window, in blocks of 32 MiB of a source. With `remote`, a window is used up before the next
    is fetched, so cache_bytes need not hold more. Default: all samples of a source are mixed, which suits local
    disks."""
    sequence_length: PositiveInt
    """Tokens in one training sample, until a phase has another one, and in one sample of the validation."""
    dedup: DedupSettings = DedupSettings()
    """Deduplication: the method alone, or `{method: near, bands: 20, ...}`."""
    decontaminate: DecontaminateSettings | None = None
    """Decontamination: drops documents that contain evaluation texts. Default: off."""
    packing: Literal["concat", "best_fit", "buckets", "sentence_pairs", "next_sentence_pairs"] = "concat"
    """`concat`: documents one after the other, cut every sequence_length tokens. `best_fit`: only documents longer than
    a sample are cut, and the parts are packed with little padding (Ding et al. 2024). `buckets`: each
    document is cut into parts whose lengths are powers of two, and a sample holds parts of one length
    (Pouransari et al. 2024). Attention stays inside a document in all of them. `sentence_pairs`: a sample is two
    consecutive segments of whole sentences, for objective.sentence_task sentence_order. `next_sentence_pairs`: the
    same, but in half of the samples the second segment is of another document, for next_sentence
    (Devlin et al. 2019)."""
    validation: ValidationSettings = ValidationSettings()
    """The held-out split."""
    shard_tokens: PositiveInt = 100_000_000
    """Tokens in one shard file, approximately."""
    workers: PositiveInt | None = None
    """Processes that clean and tokenize. Default: one per core. The shards are byte-identical for any number."""
    document_seconds: PositiveFloat | None = 600.0
    """Seconds that a worker of the build may take for one document; then its process is ended, as it may hang. Null:
    any time."""
    poison_documents: Literal["stop", "skip"] = "stop"
    """What happens when a document ends the process that works on it, twice: for lack of memory, by a fault of a
    library, or after document_seconds. `stop`: the build ends, and names it. `skip`: the build leaves it out, and the
    funnel counts it under `poison`. Inline builds do not isolate documents."""

    @property
    def cuts(self) -> tuple[SequenceCut, ...]:
        """How the training documents are cut into sequences, in the order of the training."""
        cuts = [SequenceCut(self.sequence_length, None, new_epoch=False)]
        for number, phase in enumerate(self.phases):
            length = phase.sequence_length or cuts[-1].sequence_length
            if phase.new_epoch or length != cuts[-1].sequence_length:
                cuts.append(SequenceCut(length, number, phase.new_epoch))
        return tuple(cuts)

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """The different lengths of training samples, in the order in which they come."""
        return tuple(dict.fromkeys(cut.sequence_length for cut in self.cuts))

    @property
    def makes_pairs(self) -> bool:
        """Whether a sample is a pair of segments."""
        return self.packing in ("sentence_pairs", "next_sentence_pairs")

    @property
    def held_out_packing(self) -> str:
        """The packing of held-out documents: `concat` whatever that of the training is, but pairs stay whole."""
        whole = self.makes_pairs or any(source.labels for source in self.sources)
        return self.packing if whole else "concat"

    @property
    def packs(self) -> list[tuple[str, str, int]]:
        """Split, packing and length of every index that a source needs; `concat` needs none."""
        trained = [("train", self.packing, length) for length in self.sequence_lengths]
        wanted = [*trained, ("validation", self.held_out_packing, self.sequence_length)]
        return [pack for pack in wanted if pack[1] != "concat"]

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
            raise ValueError(f"phases must be in the order of their starts, found from_tokens {starts}")
        return self

    @model_validator(mode="after")
    def _packing_fits(self) -> DataSettings:
        for length in self.sequence_lengths:
            if self.packing == "buckets" and length & (length - 1):
                raise ValueError(
                    f"packing buckets halves sequence_length again and again, found {length}; "
                    f"set it to a power of two such as {1 << length.bit_length() - 1}"
                )
        for cut in self.cuts[1:]:
            if self.packing != "concat" and not cut.new_epoch:
                raise ValueError(
                    f"phases.{cut.phase}.sequence_length {cut.sequence_length}: packing {self.packing} puts other "
                    "documents into a row of another length, so no row says what is left of an epoch; set "
                    f"phases.{cut.phase}.new_epoch to true"
                )
        if self.makes_pairs and self.sequence_length < SHORTEST_PAIR:
            raise ValueError(
                f"packing {self.packing} makes two segments and three special tokens, found sequence_length "
                f"{self.sequence_length}; set it to {SHORTEST_PAIR} or more"
            )
        labelled = [source.name for source in self.sources if source.fits_rows]
        if labelled and self.packing != "best_fit":
            raise ValueError(
                f"source {labelled[0]!r} has labels of whole documents: set packing to best_fit, found {self.packing}"
            )
        for source in self.sources:
            if source.kind == "squad" and self.sequence_length < 2 * source.max_query_length:
                raise ValueError(
                    f"source {source.name!r} may have questions of max_query_length {source.max_query_length} tokens, "
                    f"which leave too little of sequence_length {self.sequence_length} to contexts; set it to "
                    f"{2 * source.max_query_length} or more, or lower max_query_length"
                )
        separated = [source.name for source in self.sources if source.separated]
        if separated and self.tokenizer.separator is None:
            raise ValueError(
                f"source {separated[0]!r} has documents of two texts: set tokenizer.separator to the special token "
                "between them, such as '[SEP]'"
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
