"""Checkpoints that know neither ZeRO stage nor world size, and cannot be half there.

The life of a checkpoint of step 100:

    engine.fragments()                 every rank: (name, kind, shape, offset, flat float32 piece) of what it owns
        |  save
    .step-00000100.staging/            every rank writes one file, hashing as it goes, and fsyncs it
        state-00000-of-00002.safetensors
        state-00001-of-00002.safetensors
        |  all ranks agree that all files are durable; one failure anywhere is an error everywhere
        manifest.json                  rank 0, last: size and hash of each file, cursor, settings, versions
        |  rename, fsync of the parent: committed
    step-00000100/
        |  newest_verified: sizes and hashes, falling back to older ones with a reason
        |  load: each rank copies the overlaps of what lies in the files with what it owns now
    engine.fragments()                 any other stage, any other world size

Nothing is pickled. `load_weights` reads the float32 weights without an engine or a process group.
"""

from bigtrain.checkpoint.compatibility import check_compatible
from bigtrain.checkpoint.fragment import MASTER, Fragment, Shard
from bigtrain.checkpoint.load import Loaded, load, load_weights
from bigtrain.checkpoint.manifest import Cursor, Manifest, read_manifest
from bigtrain.checkpoint.ranks import ALONE, Ranks
from bigtrain.checkpoint.save import save
from bigtrain.checkpoint.store import (
    Checkpoint,
    Rejected,
    Search,
    list_checkpoints,
    newest_verified,
    prune,
    verify,
)

__all__ = [
    "ALONE",
    "MASTER",
    "Checkpoint",
    "Cursor",
    "Fragment",
    "Loaded",
    "Manifest",
    "Ranks",
    "Rejected",
    "Search",
    "Shard",
    "check_compatible",
    "list_checkpoints",
    "load",
    "load_weights",
    "newest_verified",
    "prune",
    "read_manifest",
    "save",
    "verify",
]
