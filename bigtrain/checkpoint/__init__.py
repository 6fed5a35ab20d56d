"""Checkpoints that do not depend on ZeRO stage or world size, and are committed whole or not at all.

The life of a checkpoint of step 100:

    engine.fragments()                 every rank: (name, kind, shape, offset, flat float32 piece) of what it owns
        |  Saver.save: copy into an image of the file, in host memory; the training continues
        |  in the background: hash, write, fsync; every rank writes one file
    .step-00000100.staging/
        state-00000-of-00002.safetensors
        state-00001-of-00002.safetensors
        |  all ranks agree that all files are durable; a failure of one rank is an error on all
        manifest.json                  rank 0, last: size and hash of each file, which pieces of tensors each one has,
                                       cursor, settings, versions
        |  rename, fsync of the parent: committed
    step-00000100/                     in a folder or at a URL; with checkpoint.local_dir first on a disk of each node
        |  prune: removes what `keep` does not keep, never the newest verified checkpoint
        |  newest_verified: checks sizes and hashes; falls back to older checkpoints, with the reason
        |  load: rank 0 gives each rank the files that hold what it now owns; it reads their headers, and copies
    engine.fragments()                 any other stage, any other world size

fragment.py      a flat piece of a named tensor        overlap.py        the elements that two pieces share
tensor_file.py   a rank's fragments as one file        manifest.py       contents and hashes of a checkpoint
division.py      which file has which pieces, briefly  contents.py       what ranks hold, joined on the way to rank 0
storage.py       the interface of folder.py and object_store.py; open_storage.py chooses one
commit.py        how the ranks commit a checkpoint     saver.py          the same in the background
checkpoint.py    one checkpoint, and its verification  storage_tiers.py  local and durable tier; the newest good one
load.py          files to the fragments of all ranks   filling.py        files to fragments, each element once
tensors.py       whole tensors, for one process        retention.py      which checkpoints are removed
compare.py       the differences of two checkpoints    compatibility.py  whether new settings may continue from it

Only rank 0 of a job reads a manifest, which names every file. The other ranks get what they need of it.

Nothing is pickled. `load_weights` reads the float32 weights without an engine or a process group.
"""

from bigtrain.checkpoint.checkpoint import Checkpoint, list_checkpoints, verify
from bigtrain.checkpoint.compare import compare
from bigtrain.checkpoint.compatibility import Change, changes_since, check_compatible, is_allowed
from bigtrain.checkpoint.folder import Folder
from bigtrain.checkpoint.fragment import MASTER, Fragment, TensorShard
from bigtrain.checkpoint.load import Loaded, load, reinitialize
from bigtrain.checkpoint.manifest import CheckpointManifest, CheckpointSummary, Cursor
from bigtrain.checkpoint.open_storage import storage_at
from bigtrain.checkpoint.retention import prune
from bigtrain.checkpoint.saver import Commit, Saver, save
from bigtrain.checkpoint.storage import Storage
from bigtrain.checkpoint.storage_tiers import Rejected, Search, StorageTiers, newest_verified
from bigtrain.checkpoint.tensors import Tensors, load_weights, tensor_digests

__all__ = [
    "MASTER",
    "Change",
    "Checkpoint",
    "CheckpointManifest",
    "CheckpointSummary",
    "Commit",
    "Cursor",
    "Folder",
    "Fragment",
    "Loaded",
    "Rejected",
    "Saver",
    "Search",
    "Storage",
    "StorageTiers",
    "TensorShard",
    "Tensors",
    "changes_since",
    "check_compatible",
    "compare",
    "is_allowed",
    "list_checkpoints",
    "load",
    "load_weights",
    "newest_verified",
    "prune",
    "reinitialize",
    "save",
    "storage_at",
    "tensor_digests",
    "verify",
]
