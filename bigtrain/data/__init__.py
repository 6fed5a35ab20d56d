"""From raw text to the tensors of a training step.

Build time, `bigtrain data build` (processes in parallel; killed at any moment, it goes on):

    corpus            documents, in pieces of about a megabyte        corpus/, documents.py
      |
    clean             rules keep, rewrite or remove each of them      clean/, filters.py, selection.py
      |
    decontaminate     those that hold an evaluation text go           decontaminate.py
      |
    dedup             of (nearly) equal texts the first is kept       dedup/
      |                 (both are counted, for `data funnel`)          funnel.py, funnel_page.py
    tokenizer         byte-level BPE, one for all sources             build_tokenizer.py, tokenizer.py
      |
    token ids         each document closed by end-of-text             tokenization.py, workers.py
      |
    shards            *.tok, *.doc, manifest.json (format 1)          build_source.py, shards.py, manifest.py
                      train/ and validation/, split by document       layout.py: where all of it lies

                      rows of documents, where packing asks for it      pack/

Train time (nothing is scanned, nothing is stored but {consumed_samples, plan_id}):

    plan              sample number -> (source, epoch, sequence)      planning.py, plan.py = skips.py +
      |                                                                 mixture.py (quotas.py) + shuffle.py
    packing           sequence -> spans of tokens of a shard          packing.py
      |
    store             memory-mapped shards, or verified blocks of     store.py
      |               shards behind a URL, cached on local disk       mirror.py = remote.py + block_cache.py
      |
    rows              tokens, labels, positions, boundaries           assemble.py, unlabelled.py
      |
    loader            this rank's micro-batches, in the background    loader.py, batch.py
                      and the same held-out rows every time           validation.py

A run opens its data with

    packings = open_packings(settings.data, open_datasets(settings.data, model_vocab_size=settings.model.vocab_size))
    plan = make_plan(settings.data, settings.train, packings)
    with Loader(plan, packings, first_sample=consumed_samples, ...) as loader:
        for batch in loader: ...

Afterwards, and in advance, `provenance.py` says which documents are in a step's batch, and runs the plan backwards to
say in which samples a document is (`stored_document.py` finds it, `document_index.py` at once). `card.py` sums it up.

`verify.py` checks every byte; `ngram.py` gives the perplexities that a model should beat.
"""

from bigtrain.data.batch.batch import MicroBatch, RankBatch, format_digest
from bigtrain.data.batch.loader import Loader
from bigtrain.data.batch.packing import Packing, open_packings
from bigtrain.data.batch.planning import make_plan, require_samples
from bigtrain.data.batch.validation import validation_batches
from bigtrain.data.build.build import build_datasets
from bigtrain.data.build.funnel import Funnel, read_funnels
from bigtrain.data.format.tokenizer import load_tokenizer, tokenizer_hash
from bigtrain.data.order.plan import Plan, SampleAddress
from bigtrain.data.store.mirror import open_mirror
from bigtrain.data.store.store import Dataset, open_datasets
from bigtrain.data.store.verify import VerifyReport, verify

__all__ = [
    "Dataset",
    "Funnel",
    "Loader",
    "MicroBatch",
    "Packing",
    "Plan",
    "RankBatch",
    "SampleAddress",
    "VerifyReport",
    "build_datasets",
    "format_digest",
    "load_tokenizer",
    "make_plan",
    "open_datasets",
    "open_mirror",
    "open_packings",
    "read_funnels",
    "require_samples",
    "tokenizer_hash",
    "validation_batches",
    "verify",
]
