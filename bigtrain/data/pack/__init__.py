"""Packing as an artifact of the build: which parts of documents stand together in a row.

    best_fit.py    documents cut only where they are longer than a row, the parts packed tightly
    buckets.py     documents cut into powers of two, a row of parts of one length
    pack_file.py   what either makes of a shard, as a file; and the manifest of all of them

`concat` needs none of it: its rows follow from the offsets of the documents alone (`packing.py`).
"""

from bigtrain.data.pack.pack_file import PackManifest, PackRecord, ShardPack, manifest_path, pack_path

__all__ = ["PackManifest", "PackRecord", "ShardPack", "manifest_path", "pack_path"]
