"""From raw text to the tensors of a training step.

Build time, `bigtrain data build` (processes in parallel; killed at any moment, it goes on):

    corpus            documents, in pieces of about a megabyte        corpus/, documents.py
      |
    clean             rules keep, rewrite or remove each of them      clean/, selection.py
      |
    dedup             of equal texts the first is kept                dedup.py
      |                 (both are counted, for `data funnel`)          funnel.py
    tokenizer         byte-level BPE, one for all sources             build_tokenizer.py, tokenizer.py
      |
    token ids         each document closed by end-of-text             tokenization.py, workers.py
      |
    shards            *.tok, *.doc, manifest.json (format 1)          build_source.py, shards.py, manifest.py
                      train/ and validation/, split by document       layout.py: where all of it lies

Train time (nothing is scanned, nothing is stored but {consumed_samples, plan_id}):

    plan              sample number -> (source, epoch, sequence)      plan.py = quotas.py + permutation.py
      |
    store             memory-mapped shards, or verified blocks of     store.py
                      shards behind a URL, cached on local disk       mirror.py = remote.py + block_cache.py
      |
    packing           rows of tokens, labels, positions, boundaries   packing.py
      |
    loader            this rank's micro-batches, in the background    loader.py, batch.py
                      and the same held-out rows every time           validation.py

A run opens its data with

    datasets = open_datasets(settings.data, model_vocab_size=settings.model.vocab_size)
    plan = Plan.from_datasets(datasets, settings.data, settings.train.seed)
    with Loader(plan, datasets, first_sample=consumed_samples, ...) as loader:
        for batch in loader: ...

Afterwards, and in advance, `provenance.py` says which documents are in a step's batch, and runs the plan backwards to
say in which samples a document is (`stored_document.py` finds it, `document_index.py` at once). `card.py` sums it up.

`verify.py` checks every byte; `ngram.py` gives the perplexities that a model should beat.
"""

from bigtrain.data.batch import MicroBatch, RankBatch, format_digest
from bigtrain.data.build import build
from bigtrain.data.funnel import Funnel, read_funnels
from bigtrain.data.loader import Loader
from bigtrain.data.mirror import open_mirror
from bigtrain.data.ngram import Yardsticks
from bigtrain.data.packing import IGNORED
from bigtrain.data.plan import Plan, SampleAddress
from bigtrain.data.store import Dataset, open_datasets
from bigtrain.data.tokenizer import load_tokenizer, tokenizer_hash
from bigtrain.data.validation import validation_batches
from bigtrain.data.verify import VerifyReport, verify

__all__ = [
    "IGNORED",
    "Dataset",
    "Funnel",
    "Loader",
    "MicroBatch",
    "Plan",
    "RankBatch",
    "SampleAddress",
    "VerifyReport",
    "Yardsticks",
    "build",
    "format_digest",
    "load_tokenizer",
    "open_datasets",
    "open_mirror",
    "read_funnels",
    "tokenizer_hash",
    "validation_batches",
    "verify",
]
