"""Making a trained model smaller.

compress.py       a run to a folder: what is to be done, in which order, and what was done
calibration.py    rows of the run's training data, and what layers read of them
layers.py         block after block: measure what its layers read, change them, go on
narrowing.py      whole heads and channels: which stay, and the smaller matrices
"""

from bigtrain.trained.compression.compress import CompressedModel, Compression, compress_run

__all__ = ["CompressedModel", "Compression", "compress_run"]
