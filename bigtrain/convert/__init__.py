"""Exchange with what other tools read and write.

families          what each family is at Hugging Face: one table for both directions, made of
  family, task_heads        a family's rows, and its classes of transformers by head
  config_keys, rope_keys    rows between config.json and the section model
  layouts                   how tensors become others, and back
config_json       config.json <-> settings; what cannot be expressed
  skipped_keys              what else published files say, which transformers does not read
weights           every tensor there and what it is made of here
shards            .safetensors files, written and read one tensor at a time
export_hf         weights, settings and tokenizer -> a Hugging Face folder
export_peft       an adapter -> a folder for peft
import_hf         a Hugging Face folder -> a folder for model.init_from
imported          that folder
compressed        the same with quantised matrices and a run's settings, of `bigtrain compress`
weight_source     weights that a new run starts from: that folder, or a run
out_folder        the folder that either makes: whole, or not at all
verify            a folder as `transformers` sees it against our own model
gguf, gguf_vocabulary, gguf_quantise, llama_cpp    a file for llama.cpp, and the same comparison with it
"""

from bigtrain.convert.compressed import (
    COMPRESSION_RECORD,
    COMPRESSION_SETTINGS,
    is_compressed,
    refuse_foreign_out,
    write_compressed,
)
from bigtrain.convert.config_json import config_of, obstacles, read_config
from bigtrain.convert.export_hf import export_hf, padding_obstacle
from bigtrain.convert.export_peft import export_peft
from bigtrain.convert.gguf import DTYPES, architecture_of, context_length, export_gguf, refuse_foreign_file
from bigtrain.convert.gguf_quantise import QUANTISED_TYPES, quantise_gguf, require_llama_cpp
from bigtrain.convert.gguf_vocabulary import read_vocabulary
from bigtrain.convert.import_hf import Found, HuggingFaceWeights, import_hf, read_hf, read_special_ids, read_tokenizer
from bigtrain.convert.imported import MODEL, Imported
from bigtrain.convert.llama_cpp import compare_with_llama_cpp
from bigtrain.convert.shards import common_dtype
from bigtrain.convert.verify import compare_with_transformers
from bigtrain.convert.weight_source import StartingWeights, WeightSource
from bigtrain.convert.weights import FOR_TRAINING_ONLY

__all__ = [
    "COMPRESSION_RECORD",
    "COMPRESSION_SETTINGS",
    "DTYPES",
    "FOR_TRAINING_ONLY",
    "MODEL",
    "QUANTISED_TYPES",
    "Found",
    "HuggingFaceWeights",
    "Imported",
    "StartingWeights",
    "WeightSource",
    "architecture_of",
    "common_dtype",
    "compare_with_llama_cpp",
    "compare_with_transformers",
    "config_of",
    "context_length",
    "export_gguf",
    "export_hf",
    "export_peft",
    "import_hf",
    "is_compressed",
    "obstacles",
    "padding_obstacle",
    "quantise_gguf",
    "read_config",
    "read_hf",
    "read_special_ids",
    "read_tokenizer",
    "read_vocabulary",
    "refuse_foreign_file",
    "refuse_foreign_out",
    "require_llama_cpp",
    "write_compressed",
]
