"""A source of `data.sources`: where documents come from, and what is known of their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from bigtrain.config.cleaning import CleanStep
from bigtrain.config.section import NonNegativeFloat, PathOrUrl, PositiveInt, Section, UserPath

LabelKind = Literal["parts", "classes", "tags", "answers", "turns"]
"""What the label of a token means.

`parts`: the text of a pair that it is in. `classes`: the class of its document. `tags`: the tag of the word that begins
with it. `answers`: question, context, or the answer in it. `turns`: whether an assistant wrote it.
"""

TASKS: Mapping[str, Mapping[str, int]] = {
    "glue": {"cola": 1, "sst2": 1, "mrpc": 2, "qqp": 2, "mnli": 2, "qnli": 2, "rte": 2, "wnli": 2},
    "super_glue": {"boolq": 2, "cb": 2, "rte": 2, "wic": 2},
}
"""The tasks of a kind, and how many texts a document of each has."""
OTHER_TASKS = {
    "stsb": "its labels are numbers, which is regression",
    "copa": "it is a choice among several texts",
    "multirc": "it is a choice among several texts",
    "record": "it is a choice among several texts",
    "wsc": "it is about two places in a text",
}
"""Tasks that are not read, and why."""
WEB_METADATA = ("url", "date", "language")
"""What records of web archives say beside their content."""


class SourceSettings(Section):
    """One corpus: where its documents come from, and its share of the mixture."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """A name of your choice. Folders, metrics and reports use it."""
    kind: Literal[
        "python_stdlib",
        "text",
        "jsonl",
        "parquet",
        "huggingface",
        "megatron",
        "gettext",
        "csv",
        "text_lines",
        "imdb",
        "glue",
        "super_glue",
        "conll",
        "squad",
        "chat",
        "warc",
    ]
    """`python_stdlib`: the standard library of the running Python; `text`: files, one document each, also those in
    `.zip` and `.tar` archives; `warc`: web archives, of pages (WARC) or of their texts (WET); `jsonl`: one JSON object
    a line; `parquet`: one row a document; `huggingface`: a dataset of the `datasets` library; `megatron`:
    token ids that Megatron-LM's preprocess_data.py wrote (`.bin` and `.idx`) with the tokenizer at tokenizer.path;
    `gettext`: pairs of a message and its translation, from catalogues (`.po`). With labels to fine-tune on: `csv`: rows
    with a header, separated by tabs in a `.tsv`; `text_lines`: a text a line, and labels_path; `imdb`: folders `pos`
    and `neg` of reviews; `glue`, `super_glue`: the files of a task; `conll`: columns of words and tags; `squad`:
    questions with answers in a context, SQuAD 1.1 or 2.0; `chat`: JSON lines of conversations, as `messages` (OpenAI's
    form) or `conversations` (ShareGPT's)."""
    path: PathOrUrl | None = None
    """A file, a folder or a glob, on this machine or at a URL such as s3://bucket/folder. imdb: the folder above `pos`
    and `neg`. huggingface: a hub id or a local folder. megatron: the prefix of a pair of files, one of the pair, a
    folder or a glob."""
    held_out_path: PathOrUrl | None = None
    """What is held out, in place of data.validation.fraction: a path like `path`, such as `SST-2/dev.tsv`. Nothing of
    `path` is held out then."""
    members: Annotated[str, Field(min_length=1)] = "*"
    """text: of an archive, the files whose names match this pattern, such as `*.txt`, as in fnmatch."""
    text_field: str = "text"
    """jsonl, parquet, huggingface, csv: the field or column that holds the text. jsonl, parquet: a field in a field by
    its dotted path, such as `message.content`."""
    metadata: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """jsonl, parquet, warc: fields that are kept beside each document, such as `[url, date]`, for `bigtrain data
    where`. A field in a field is named by its dotted path. warc has url, date and language. Nothing is trained on
    them."""
    text_pair_field: str | None = None
    """jsonl, csv: the field of a second text, with label_field. data.tokenizer.separator stands between the two."""
    label_field: str | None = None
    """jsonl, csv: the field that holds the class of the document: a text, a whole number or a boolean."""
    tokens_field: str | None = None
    """jsonl: the field with the list of words of a text, with tags_field."""
    tags_field: str | None = None
    """jsonl: the field with the list of tags of the words."""
    spans_field: str | None = None
    """jsonl: the field with a list of spans of the text, each `{"start": 0, "end": 5, "label": "name"}` in characters.
    The words in a span get the tags `B-name`, `I-name`; the others `O`."""
    label_names: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """jsonl, csv, text_lines, conll: the labels, in the order of their numbers; any other is refused. Default: those
    that the files have, in order."""
    labels_path: UserPath | None = None
    """text_lines: a file with a label on each line, for the lines of the file at `path`."""
    task: str | None = None
    """glue: cola, sst2, mrpc, qqp, mnli, qnli, rte or wnli. super_glue: boolq, cb, rte or wic."""
    doc_stride: PositiveInt = 128
    """squad: tokens from the start of a window of a long context to the start of the next one."""
    max_query_length: PositiveInt = 64
    """squad: tokens of a question, at most; what is longer is cut."""
    target_field: str | None = None
    """jsonl: the field that holds the target of a pair, such as the translation of text_field. A document is the two
    texts, and each token has a label that says in which of them it is."""
    package: str | None = None
    """gettext: an installed Python package, such as django, whose message catalogues are read in place of a path."""
    languages: tuple[str, ...] = ()
    """gettext: the languages of the catalogues, such as `de`, by the name of their folder. With several, each source
    begins with `>>de<< `. Default: all."""
    content: Literal["source", "documentation"] = "source"
    """python_stdlib: the source files, or the documentation strings in them."""
    subset: str | None = None
    """huggingface: the configuration name of a dataset that has several."""
    split: str = "train"
    """huggingface: the split to read."""
    streaming: bool = False
    """huggingface: read rows as they arrive instead of storing the dataset on this machine first."""
    weight: NonNegativeFloat | None = None
    """Share of the mixture, relative to the other sources. 0: only a later phase draws from it. Default: in proportion
    to its tokens. Give a weight to all sources or to none; a weight of 0 may always be given."""
    max_epochs: PositiveFloat | None = None
    """Draw each of its tokens at most this many times. After that, the other sources share what it would have given.
    Default: no limit."""
    license: str | None = None
    """The licence of its documents, for the data card. It changes nothing that is built or trained."""
    on_null: Literal["refuse", "skip"] = "refuse"
    """jsonl, parquet, huggingface: what to do about a null in place of a text; glue: about a row without all of its
    cells. `refuse` stops the build; `skip` leaves the document out, and `bigtrain data funnel` counts it."""
    max_document_bytes: PositiveInt = 32 << 20
    """All kinds of text but squad: the most bytes of a document, and of the line that holds it. A longer one
    stops the build before it takes all memory: a worker needs about 100 times the bytes of a document. A longer page
    of a web archive is left out and counted."""
    clean: tuple[CleanStep, ...] = ()
    """Rules that each document passes, in this order, before it is tokenized. A document that a rule refuses is
    removed; some rules rewrite it. An item is the name of a rule, or `name: {threshold: value}`."""

    @property
    def exact_weight(self) -> Fraction | None:
        """The weight as it was typed, without binary rounding: 0.1 is one tenth."""
        return None if self.weight is None else Fraction(repr(self.weight))

    @property
    def labels(self) -> LabelKind | None:
        """What the labels of its tokens mean; None where it has none."""
        if self.kind in _LABELS_OF_KIND:
            return _LABELS_OF_KIND[self.kind]
        given = [labels for key, labels in _LABELS_OF_KEY.items() if getattr(self, key) is not None]
        return given[0] if given else None

    @property
    def separated(self) -> bool:
        """Whether a document has two texts, between which data.tokenizer.separator stands."""
        if self.task is not None:
            return TASKS[self.kind][self.task] == 2
        return self.kind == "squad" or self.text_pair_field is not None

    @property
    def fits_rows(self) -> bool:
        """Whether its documents are made for rows of data.sequence_length tokens: none is longer."""
        return self.labels not in (None, "parts")

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> SourceSettings:
        if self.kind == "gettext" and (self.path is None) == (self.package is None):
            raise ValueError(f"source {self.name!r} of kind 'gettext' needs a path or a package, and not both")
        if self.kind not in ("python_stdlib", "gettext") and not self.path:
            raise ValueError(f"source {self.name!r} of kind {self.kind!r} needs a path")
        for key, kinds in _KINDS_OF_KEY.items():
            value = getattr(self, key)
            # The default is accepted for every kind, because a run's config.yaml writes every key.
            if self.kind not in kinds and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"source {self.name!r} of kind {self.kind!r} has no {key}, found {value!r}; "
                    f"remove it: {key} is for {', '.join(kinds)} only"
                )
        if self.labels == "parts" and self.clean:
            raise ValueError(f"source {self.name!r} holds pairs, which clean would tear apart; remove clean")
        if self.labels is not None and self.clean:
            raise ValueError(f"source {self.name!r} holds labels of texts, which clean would change; remove clean")
        if self.kind == "megatron" and self.clean:
            raise ValueError(
                f"source {self.name!r} of kind 'megatron' holds token ids, which clean cannot read; remove clean"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_known(self) -> SourceSettings:
        where = f"source {self.name!r} of kind {self.kind!r}"
        given = [key for key in _LABELS_OF_KEY if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{where} has {' and '.join(given)}, which are labels of several kinds; keep one")
        if (self.tokens_field is None) != (self.tags_field is None):
            raise ValueError(f"{where} needs tokens_field and tags_field, found one of the two")
        if self.text_pair_field is not None and self.label_field is None:
            raise ValueError(f"{where} has a text_pair_field and no label_field; name the field of the class")
        if self.kind == "text_lines" and self.labels_path is None:
            raise ValueError(f"{where} needs labels_path, a file with a label on each line")
        if self.label_names and self.labels not in ("classes", "tags"):
            raise ValueError(f"{where} has label_names and no labels; name the field that holds them, or remove it")
        if len(set(self.label_names)) != len(self.label_names):
            raise ValueError(f"{where} has a name twice in label_names")
        if self.kind in TASKS and self.task not in TASKS[self.kind]:
            reason = f"; {self.task} is not read: {OTHER_TASKS[self.task]}" if self.task in OTHER_TASKS else ""
            raise ValueError(f"{where} needs a task among {', '.join(TASKS[self.kind])}, found {self.task}{reason}")
        if self.kind == "warc" and (unknown := [name for name in self.metadata if name not in WEB_METADATA]):
            raise ValueError(f"{where} has no metadata {unknown[0]!r}; it has {', '.join(WEB_METADATA)}")
        if len(set(self.metadata)) != len(self.metadata):
            raise ValueError(f"{where} has a name twice in metadata")
        return self


_LABELS_OF_KIND: Mapping[str, LabelKind] = {
    "gettext": "parts",
    "text_lines": "classes",
    "imdb": "classes",
    "glue": "classes",
    "super_glue": "classes",
    "conll": "tags",
    "squad": "answers",
    "chat": "turns",
}
_LABELS_OF_KEY: Mapping[str, LabelKind] = {
    "target_field": "parts",
    "label_field": "classes",
    "tags_field": "tags",
    "spans_field": "tags",
}
"""What the labels of a source mean that has one of these keys."""
_LABELLED = ("csv", "imdb", "glue", "super_glue", "conll", "squad", "chat")
_DOCUMENT_BY_DOCUMENT = (
    "text",
    "jsonl",
    "parquet",
    "huggingface",
    "gettext",
    "text_lines",
    "warc",
    *(kind for kind in _LABELLED if kind != "squad"),
)
"""The kinds of files that hold texts, each document by itself."""
_KINDS_OF_KEY: Mapping[str, tuple[str, ...]] = {
    "path": (*_DOCUMENT_BY_DOCUMENT, "squad", "megatron"),
    "held_out_path": ("text", "jsonl", "parquet", "warc", *_LABELLED),
    "members": ("text",),
    "metadata": ("jsonl", "parquet", "warc"),
    "target_field": ("jsonl",),
    "package": ("gettext",),
    "languages": ("gettext",),
    "text_field": ("jsonl", "parquet", "huggingface", "csv"),
    "text_pair_field": ("jsonl", "csv"),
    "label_field": ("jsonl", "csv"),
    "tokens_field": ("jsonl",),
    "tags_field": ("jsonl",),
    "spans_field": ("jsonl",),
    "label_names": ("jsonl", "csv", "text_lines", "conll"),
    "labels_path": ("text_lines",),
    "task": ("glue", "super_glue"),
    "doc_stride": ("squad",),
    "max_query_length": ("squad",),
    "content": ("python_stdlib",),
    "subset": ("huggingface",),
    "split": ("huggingface",),
    "streaming": ("huggingface",),
    "on_null": ("jsonl", "parquet", "huggingface", "glue"),
    "max_document_bytes": _DOCUMENT_BY_DOCUMENT,
}
"""The kinds that a key is for."""
