"""Checkpoints that know neither ZeRO stage nor world size, and cannot be half there.

The life of a checkpoint of step 100:

    engine.fragments()                 every rank: (name, kind, shape, offset, flat float32 piece) of what it owns
        |  Saver.save: copy into an image of the file, in host memory; the training goes on
        |  behind it: hash, write, fsync; every rank one file
    .step-00000100.staging/
        state-00000-of-00002.safetensors
        state-00001-of-00002.safetensors
        |  all ranks agree that all files are durable; one failure anywhere is an error everywhere
        manifest.json                  rank 0, last: size and hash of each file, cursor, settings, versions
        |  rename, fsync of the parent: committed
    step-00000100/                     in a folder, or behind a URL; with checkpoint.local_dir on each node's disk first
        |  prune: what `keep` does not keep, never the newest verified one
        |  newest_verified: sizes and hashes, falling back to older ones with a reason
        |  load: each rank copies the overlaps of what lies in the files with what it owns now
    engine.fragments()                 any other stage, any other world size

fragment.py      a flat piece of a named tensor          overlap.py        what two pieces share
tensor_file.py   a rank's fragments as one file          manifest.py       what a checkpoint is, and its hashes
storage.py       where files lie: folder.py or object_store.py; each says how it commits
commit.py        how the ranks make a checkpoint         saver.py          doing that beside the training
checkpoint.py    one checkpoint, and verifying it        storage_tiers.py  the tiers, and the newest good one
load.py          files to fragments, or whole tensors    retention.py      which may go
compare.py       in what two differ                      compatibility.py  whether today's settings may go on from it
ranks.py         agreement

Nothing is pickled. `load_weights` reads the float32 weights without an engine or a process group.
"""

from bigtrain.checkpoint.checkpoint import Checkpoint, list_checkpoints, verify
from bigtrain.checkpoint.compare import compare
from bigtrain.checkpoint.compatibility import check_compatible
from bigtrain.checkpoint.fragment import MASTER, Fragment, TensorShard
from bigtrain.checkpoint.load import Loaded, Tensors, load, load_weights, reinitialize, tensor_digests
from bigtrain.checkpoint.manifest import CheckpointManifest, Cursor
from bigtrain.checkpoint.open_storage import storage_at
from bigtrain.checkpoint.ranks import ALONE, Ranks
from bigtrain.checkpoint.retention import prune
from bigtrain.checkpoint.saver import Commit, Saver, save
from bigtrain.checkpoint.storage_tiers import Rejected, Search, StorageTiers, newest_verified

__all__ = [
    "ALONE",
    "MASTER",
    "Checkpoint",
    "CheckpointManifest",
    "Commit",
    "Cursor",
    "Fragment",
    "Loaded",
    "Ranks",
    "Rejected",
    "Saver",
    "Search",
    "StorageTiers",
    "TensorShard",
    "Tensors",
    "check_compatible",
    "compare",
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
