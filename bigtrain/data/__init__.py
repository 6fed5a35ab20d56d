"""From raw text to the tensors of a training step.

Build time, `bigtrain data build`. It runs in parallel processes, and a killed build continues where it stopped:

    corpus          documents, in pieces of about a megabyte          build/corpus/
      |
    clean           rules keep, rewrite or remove each document       build/clean/
      |               classifiers and n-gram models for them          build/rule_models/
    decontaminate   removes documents that hold an evaluation text    build/decontaminate.py
      |
    deduplicate     keeps the first of equal, or nearly equal, texts  build/dedup/
      |               every removal is counted for `data funnel`      build/funnel.py
    tokenizer       byte-level BPE, one for all sources               build/build_tokenizer.py
      |
    shards          token ids, document by document, with hashes      build/build_source.py, format/
      |               train/ and validation/, split by document
    packs           optional: which documents share a training row    build/pack/

Train time. Nothing is scanned, and the state is {consumed_samples, plan_id}:

    plan            sample number --> source, epoch, sequence         order/
      |
    packing         sequence --> spans of tokens in shards            batch/packing.py
      |
    store           memory-mapped shards, or verified blocks of       store/
      |               shards at a URL, cached on local disk
    batch           rows of tokens, labels, positions, boundaries     batch/assemble.py
      |               micro-batches of this rank, from a thread       batch/loader.py
    kept            what a teacher said of a row, by its address      batch/kept.py, format/kept_outputs.py
    validation      the same held-out rows every time                 batch/validation.py

A run opens its data with

    packings = open_packings(settings.data, open_datasets(settings.data, model_vocab_size=settings.model.vocab_size))
    plan = make_plan(settings.data, settings.train, packings)
    with Loader(plan, packings, first_sample=consumed_samples, ...) as loader:
        for batch in loader: ...

run_data.py     all that a run opens of its data, in one object
provenance/     which documents are in a step's batch, which samples hold a document, and the data card
store/verify.py checks every byte of the data

Imports go down only: provenance, batch | build, store, order, format. pyproject.toml has the contract.
"""

from bigtrain.data.batch.batch import LabelCounts, MicroBatch, RankBatch, format_digest, micro_batches_of
from bigtrain.data.batch.kept import KeptOutputs, digest_of_inputs
from bigtrain.data.batch.loader import Loader
from bigtrain.data.batch.packing import Packing, held_out_packing, open_packings
from bigtrain.data.batch.planning import make_plan, require_samples
from bigtrain.data.batch.unlabelled import find_unlabelled
from bigtrain.data.batch.validation import validation_batches
from bigtrain.data.build.build import build_datasets
from bigtrain.data.build.corpus import AnsweredQuestion, describe_skipped, read_documents, read_questions
from bigtrain.data.build.funnel import Count, Funnel, read_funnels
from bigtrain.data.build.progress import BuildProgress
from bigtrain.data.build.rule_models.kneser_ney import ORDER as NGRAM_ORDER
from bigtrain.data.build.rule_models.kneser_ney import NGramModel
from bigtrain.data.build.rule_models.train_classifier import ClassifierOptions, TrainedClassifier, train_classifier
from bigtrain.data.build.rule_models.train_ngram import NGramOptions, TrainedNGrams, train_ngrams
from bigtrain.data.build.rule_scores import ScoredDocuments, score_by_classifier, score_by_perplexity
from bigtrain.data.format.chat_template import ChatTemplate
from bigtrain.data.format.documents import Conversation, Document
from bigtrain.data.format.hashing import identity
from bigtrain.data.format.kept_outputs import (
    FILE_BYTES,
    KEEP_AGAIN,
    KeptFolder,
    KeptManifest,
    KeptPiece,
    KeptRequest,
    KeptSource,
)
from bigtrain.data.format.labels import LabelScheme
from bigtrain.data.format.tokenizer import (
    TOKENIZER_FILE,
    DataTokenizer,
    check_vocabulary,
    end_of_text_id,
    load_tokenizer,
    open_chat_template,
    tokenizer_hash,
    vocabulary_size,
)
from bigtrain.data.format.tokenizer_content import (
    CHAT_TEMPLATE,
    BeginOfText,
    TokenizerContent,
    decode_ids,
    encode_text,
    read_chat_template,
)
from bigtrain.data.order.plan import Plan, SampleAddress, SampleAddresses
from bigtrain.data.provenance.card import Card, card_as_markdown, data_card
from bigtrain.data.provenance.provenance import (
    DocumentPart,
    SampleContents,
    appearances_of,
    contents_of,
    digest_of,
    digest_part,
)
from bigtrain.data.run_data import (
    RunData,
    common_labels,
    evaluation_batches,
    open_objective,
    open_token_bytes,
    summaries_of,
)
from bigtrain.data.store.document_index import index_datasets
from bigtrain.data.store.file_shares import FileShares
from bigtrain.data.store.mirror import is_mirror, open_mirror
from bigtrain.data.store.spot_check import spot_check
from bigtrain.data.store.store import Dataset, open_datasets
from bigtrain.data.store.stored_document import find_document
from bigtrain.data.store.verify import VerifyReport, verify

__all__ = [
    "CHAT_TEMPLATE",
    "FILE_BYTES",
    "KEEP_AGAIN",
    "NGRAM_ORDER",
    "TOKENIZER_FILE",
    "AnsweredQuestion",
    "BeginOfText",
    "BuildProgress",
    "Card",
    "ChatTemplate",
    "ClassifierOptions",
    "Conversation",
    "Count",
    "DataTokenizer",
    "Dataset",
    "Document",
    "DocumentPart",
    "FileShares",
    "Funnel",
    "KeptFolder",
    "KeptManifest",
    "KeptOutputs",
    "KeptPiece",
    "KeptRequest",
    "KeptSource",
    "LabelCounts",
    "LabelScheme",
    "Loader",
    "MicroBatch",
    "NGramModel",
    "NGramOptions",
    "Packing",
    "Plan",
    "RankBatch",
    "RunData",
    "SampleAddress",
    "SampleAddresses",
    "SampleContents",
    "ScoredDocuments",
    "TokenizerContent",
    "TrainedClassifier",
    "TrainedNGrams",
    "VerifyReport",
    "appearances_of",
    "build_datasets",
    "card_as_markdown",
    "check_vocabulary",
    "common_labels",
    "contents_of",
    "data_card",
    "decode_ids",
    "describe_skipped",
    "digest_of",
    "digest_of_inputs",
    "digest_part",
    "encode_text",
    "end_of_text_id",
    "evaluation_batches",
    "find_document",
    "find_unlabelled",
    "format_digest",
    "held_out_packing",
    "identity",
    "index_datasets",
    "is_mirror",
    "load_tokenizer",
    "make_plan",
    "micro_batches_of",
    "open_chat_template",
    "open_datasets",
    "open_mirror",
    "open_objective",
    "open_packings",
    "open_token_bytes",
    "read_chat_template",
    "read_documents",
    "read_funnels",
    "read_questions",
    "require_samples",
    "score_by_classifier",
    "score_by_perplexity",
    "spot_check",
    "summaries_of",
    "tokenizer_hash",
    "train_classifier",
    "train_ngrams",
    "validation_batches",
    "verify",
    "vocabulary_size",
]
