"""From the plan to the tensors of a training step.

    Plan.locate_many --> Packing.spans --> assemble --> AssembledRows --> micro-batches --> RankBatch
                              |                              |
                      store/: tokens of shards       unlabelled.py: documents that lose their labels

planning.py    the settings of a run --> its plan
packing.py     which tokens of a dataset are in which sequence: concatenated, best-fit or buckets
assemble.py    rows of tokens, labels, positions and document boundaries
batch.py       micro-batches as tensors, and their digest
kept.py        what a teacher said of rows, by their addresses
loader.py      the batches of one rank, prepared in a thread
validation.py  the same held-out rows every time
"""
