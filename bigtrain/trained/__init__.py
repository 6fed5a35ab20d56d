"""Everything that is done with a trained model.

checkpoints.py      the checkpoints of a run: list, verify, compare, prune
  checkpoint_settings.py      one of them with the settings that its weights were trained with
  base_model.py               the model that an adapter was trained beside
stored_model.py     weights and settings of a run's checkpoint, or of a folder that `compress` wrote
trained.py          the model of a checkpoint, without the training engine
  evaluation.py       its validation loss
  right_labels.py     how many labels are the likeliest token
  translation.py      what it writes for the sources of held-out pairs: BLEU and chrF
  ngram.py            baselines: unigram and n-gram models
text_model.py       a model that continues text, of a run or a folder
  text_stream.py      from tokens to text that can be shown
  samples.py          continuations of held-out documents
export.py, export_gguf.py, export_peft.py, importing.py     Hugging Face, llama.cpp and peft, checked against them
teacher.py     what another model learns from
  kept_outputs.py     what it says, written once for many runs
compression/        making it smaller: pruning, quantisation
weight_source.py, starting_weights.py     what a new run starts from: an import, or a checkpoint of a run
  label_names.py      what the data call the classes
  model_card.py       the README.md of an exported model
"""

from bigtrain.trained.base_model import frozen_digests
from bigtrain.trained.checkpoints import (
    CheckpointDifference,
    CommittedCheckpoint,
    PrunedCheckpoints,
    VerifiedCheckpoint,
    describe_checkpoints,
    diff_checkpoints,
    prune_checkpoints,
    say_diff,
    verify_checkpoints,
)
from bigtrain.trained.compression import CompressedModel, Compression, compress_run
from bigtrain.trained.evaluation import Evaluation, SourceLoss, validation_losses
from bigtrain.trained.export import HuggingFaceExport, export_run
from bigtrain.trained.export_gguf import GgufExport, export_run_to_gguf
from bigtrain.trained.export_peft import PeftExport, export_run_to_peft
from bigtrain.trained.importing import ImportedModel, import_model
from bigtrain.trained.kept_outputs import KeptTeacher, keep_outputs, open_kept_outputs
from bigtrain.trained.samples import Sample, draw, one_rank_can_sample, prompts
from bigtrain.trained.starting_weights import starting_weights
from bigtrain.trained.teacher import TEACHER, complete_teacher, open_teacher, teacher_digests
from bigtrain.trained.text_model import GeneratedTexts, TextModel
from bigtrain.trained.trained import evaluate_run
from bigtrain.trained.weight_source import verified_step

__all__ = [
    "TEACHER",
    "CheckpointDifference",
    "CommittedCheckpoint",
    "CompressedModel",
    "Compression",
    "Evaluation",
    "GeneratedTexts",
    "GgufExport",
    "HuggingFaceExport",
    "ImportedModel",
    "KeptTeacher",
    "PeftExport",
    "PrunedCheckpoints",
    "Sample",
    "SourceLoss",
    "TextModel",
    "VerifiedCheckpoint",
    "complete_teacher",
    "compress_run",
    "describe_checkpoints",
    "diff_checkpoints",
    "draw",
    "evaluate_run",
    "export_run",
    "export_run_to_gguf",
    "export_run_to_peft",
    "frozen_digests",
    "import_model",
    "keep_outputs",
    "one_rank_can_sample",
    "open_kept_outputs",
    "open_teacher",
    "prompts",
    "prune_checkpoints",
    "say_diff",
    "starting_weights",
    "teacher_digests",
    "validation_losses",
    "verified_step",
    "verify_checkpoints",
]
