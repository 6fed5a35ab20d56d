"""From a checkpoint to what other tools load.

hf            weights, settings and tokenizer -> a Hugging Face folder
shards        named tensors -> one or several .safetensors files with an index
verify        a folder as `transformers` sees it against our own model
"""

from bigtrain.convert.hf import export_hf
from bigtrain.convert.verify import compare_with_transformers

__all__ = ["compare_with_transformers", "export_hf"]
