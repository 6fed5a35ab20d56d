"""Exchange with what other tools read and write.

families          what each family is at Hugging Face: one table for both directions, made of
  config_keys, rope_keys    rows between config.json and the section model
  layouts                   how tensors become others, and back
config_json       config.json <-> settings; what cannot be expressed
weights           every tensor there and what it is made of here
shards            .safetensors files, written and read one tensor at a time
export_hf         weights, settings and tokenizer -> a Hugging Face folder
import_hf         a Hugging Face folder -> a folder for model.init_from
imported          that folder
verify            a folder as `transformers` sees it against our own model
gguf, gguf_vocabulary, llama_cpp    a file for llama.cpp, and the same comparison with it
"""

from bigtrain.convert.config_json import obstacles
from bigtrain.convert.export_hf import export_hf
from bigtrain.convert.import_hf import import_hf
from bigtrain.convert.imported import Imported
from bigtrain.convert.verify import compare_with_transformers

__all__ = ["Imported", "compare_with_transformers", "export_hf", "import_hf", "obstacles"]
