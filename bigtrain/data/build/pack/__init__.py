"""Packing as part of the build: which parts of documents share a training row.

    best_fit.py    cuts only documents longer than a row, and packs the parts with little padding
    buckets.py     cuts documents into powers of two; a row has parts of one length
    sentence_pairs.py  rows of two segments of whole sentences
    documents.py   what a packing knows of documents
    pack_shard.py  packs the documents of a shard by one of them
    build_pack.py  packs a dataset; format/pack_file.py has the format of the files

`concat` needs no pack: its rows follow from the offsets of the documents (batch/packing.py).
"""

from bigtrain.data.format.pack_file import PackManifest, PackRecord, ShardPack, find_packs

__all__ = ["PackManifest", "PackRecord", "ShardPack", "find_packs"]
