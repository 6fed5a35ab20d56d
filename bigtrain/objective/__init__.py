"""What is learned from a sample: rows of token ids become the inputs and labels of a model.

rows            token ids as the data have them, and what the model is given   rows.py
randomness      by the address of a row, never by rank, time or batch          randomness.py
objective       what every objective does; which one the settings ask for      objective.py
  causal        the next token                                                 causal.py
  fill_in_the_middle  the same, middles of documents after their ends         fill_in_the_middle.py, segments.py
  prefix        the same, after starts that are seen from both sides             prefix.py
  masked        tokens that were hidden                                        masked.py
                and whether sentences follow each other                        sentence_pairs.py
  permutation   some tokens, in a random order                                 permutation.py, subsets.py
  denoising     documents that were corrupted, by an encoder-decoder           denoising.py, parts.py, subsets.py
  translation   targets of source texts, by an encoder-decoder                translation.py, parts.py
  mixture       several of these, in turns                                     mixture.py
  classification, token_classification, extractive_qa, chat: labels of the data  labelled.py
metrics         how well such labels are predicted                             metrics.py
  span_corruption  spans of them, by an encoder-decoder                        span_corruption.py, parts.py, subsets.py

It is numpy alone, and knows neither a model nor files. The loader calls `prepare` after packing:

    TokenRows, keys of their addresses  --prepare-->  PreparedRows

Row i of `prepare(rows, keys)` is `prepare` of row i alone: so what a sample becomes is the same on any number of ranks,
in any micro-batch, and after every restart.
"""

from bigtrain.objective.causal import Causal
from bigtrain.objective.denoising import Denoising
from bigtrain.objective.fill_in_the_middle import FillInTheMiddle
from bigtrain.objective.labelled import Chat, Classification, ExtractiveQa, TokenClassification
from bigtrain.objective.masked import Masked
from bigtrain.objective.metrics import AnswerMetric, ClassMetric, LabelMetric, best_span, make_metric
from bigtrain.objective.mixture import ObjectiveMixture
from bigtrain.objective.objective import Objective, ObjectiveVocabulary, make_objective, row_lengths
from bigtrain.objective.permutation import Permuted
from bigtrain.objective.prefix import Prefix
from bigtrain.objective.randomness import AddressKeys
from bigtrain.objective.rows import EncoderRows, PreparedRows, TokenRows
from bigtrain.objective.sentence_pairs import PAIR_TOKENS, SentencePairs
from bigtrain.objective.span_corruption import SpanCorruption, span_lengths
from bigtrain.objective.translation import SOURCE, TARGET, Translation

__all__ = [
    "PAIR_TOKENS",
    "SOURCE",
    "TARGET",
    "AddressKeys",
    "AnswerMetric",
    "Causal",
    "Chat",
    "ClassMetric",
    "Classification",
    "Denoising",
    "EncoderRows",
    "ExtractiveQa",
    "FillInTheMiddle",
    "LabelMetric",
    "Masked",
    "Objective",
    "ObjectiveMixture",
    "ObjectiveVocabulary",
    "Permuted",
    "Prefix",
    "PreparedRows",
    "SentencePairs",
    "SpanCorruption",
    "TokenClassification",
    "TokenRows",
    "Translation",
    "best_span",
    "make_metric",
    "make_objective",
    "row_lengths",
    "span_lengths",
]
