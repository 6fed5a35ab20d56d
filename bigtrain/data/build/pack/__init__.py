"""Packing as an artifact of the build: which parts of documents stand together in a row.

    best_fit.py    documents cut only where they are longer than a row, the parts packed tightly
    buckets.py     documents cut into powers of two, a row of parts of one length
    pack_shard.py  either, for the documents of a shard
    pack_file.py   what comes of it as a file, and the manifest of all of them
    build_pack.py  making these for a dataset

`concat` needs none of it: its rows follow from the offsets of the documents alone (`packing.py`).
"""

from bigtrain.data.format.pack_file import MANIFEST_PATTERNS, PackManifest, PackRecord, ShardPack, find_packs

__all__ = ["MANIFEST_PATTERNS", "PackManifest", "PackRecord", "ShardPack", "find_packs"]
