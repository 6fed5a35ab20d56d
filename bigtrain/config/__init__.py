"""Settings: one typed tree, read from YAML, with errors that name the line and the fix.

::

    YAML file + key=value   --load_settings-->   Settings   --dump_settings-->   RUN/config.yaml
                                    |                |
                             BigtrainError           +-- mathematics: the settings that a checkpoint fixes
                      (file:line, both values, fix)  +-- diff: where two configurations differ

    the tree and its docstrings (settings.py)  -->  explain, schema, docs/reference/config.md

settings.py         the whole tree, and the rules that span sections; data_settings.py, model_settings.py,
                    rope_scaling.py, objective_settings.py, adapter_settings.py, compression_settings.py,
                    distillation_settings.py, engine_settings.py, guard_settings.py and cleaning.py hold its larger
                    sections
families.py         the choices that each model family makes
load.py             file and overrides --> Settings; document.py, yaml12.py, overrides.py, problems.py, suggest.py
parallel_sizes.py   how ranks and samples divide
batch_schedule.py   how many samples each step has
training_stage.py   the steps that have one length of samples and one rotation
mathematics.py      which settings change the mathematics, the data plan, or neither
secrets.py          keeps passwords out of everything that a run writes
"""

from bigtrain.config.adapter_settings import AdapterSettings
from bigtrain.config.batch_schedule import BatchSchedule
from bigtrain.config.cleaning import (
    C4Settings,
    ClassifierSettings,
    CleanStep,
    FineWebSettings,
    FixEncodingSettings,
    GopherQualitySettings,
    GopherRepetitionSettings,
    LanguageSettings,
    PerplexitySettings,
    PiiSettings,
    PythonSettings,
)
from bigtrain.config.compression_settings import CompressionSettings
from bigtrain.config.data_settings import (
    DataSettings,
    DecontaminateSettings,
    PhaseSettings,
    SequenceCut,
    SkipSettings,
    TokenizerSettings,
    ValidationSettings,
    as_typed,
)
from bigtrain.config.diff import Difference, diff
from bigtrain.config.distillation_settings import KEPT_CLASSES, KEPT_LOG_PROBS, DistillationSettings
from bigtrain.config.document import read_document
from bigtrain.config.engine_settings import EngineSettings
from bigtrain.config.explain import Explanation, explain, schema
from bigtrain.config.families import FAMILIES
from bigtrain.config.flat import flat
from bigtrain.config.guard_settings import GuardSettings
from bigtrain.config.keys import find, general
from bigtrain.config.load import load_settings
from bigtrain.config.mathematics import kind_of, mathematics
from bigtrain.config.model_settings import DROPOUT_RATES, ModelSettings
from bigtrain.config.objective_settings import ObjectiveChoice, ObjectiveSettings
from bigtrain.config.parallel_sizes import divide_ranks, divide_work, require_whole_partitions, uneven_share
from bigtrain.config.reference import reference
from bigtrain.config.rope_scaling import RopeScaling
from bigtrain.config.secrets import HIDDEN, hide_secrets, is_masked, refuse_masked, with_bare_urls, without_secrets
from bigtrain.config.settings import (
    CheckpointSettings,
    EvaluateSettings,
    OptimizerSettings,
    ParameterGroup,
    ScheduleSettings,
    Settings,
    TrackingSettings,
    TrainSettings,
)
from bigtrain.config.show import dump_settings
from bigtrain.config.source_settings import LabelKind, SourceSettings
from bigtrain.config.training_stage import TrainingStage, first_step_of, staged_batches
from bigtrain.config.yaml12 import to_yaml, to_yaml_line

__all__ = [
    "DROPOUT_RATES",
    "FAMILIES",
    "HIDDEN",
    "KEPT_CLASSES",
    "KEPT_LOG_PROBS",
    "AdapterSettings",
    "BatchSchedule",
    "C4Settings",
    "CheckpointSettings",
    "ClassifierSettings",
    "CleanStep",
    "CompressionSettings",
    "DataSettings",
    "DecontaminateSettings",
    "Difference",
    "DistillationSettings",
    "EngineSettings",
    "EvaluateSettings",
    "Explanation",
    "FineWebSettings",
    "FixEncodingSettings",
    "GopherQualitySettings",
    "GopherRepetitionSettings",
    "GuardSettings",
    "LabelKind",
    "LanguageSettings",
    "ModelSettings",
    "ObjectiveChoice",
    "ObjectiveSettings",
    "OptimizerSettings",
    "ParameterGroup",
    "PerplexitySettings",
    "PhaseSettings",
    "PiiSettings",
    "PythonSettings",
    "RopeScaling",
    "ScheduleSettings",
    "SequenceCut",
    "Settings",
    "SkipSettings",
    "SourceSettings",
    "TokenizerSettings",
    "TrackingSettings",
    "TrainSettings",
    "TrainingStage",
    "ValidationSettings",
    "as_typed",
    "diff",
    "divide_ranks",
    "divide_work",
    "dump_settings",
    "explain",
    "find",
    "first_step_of",
    "flat",
    "general",
    "hide_secrets",
    "is_masked",
    "kind_of",
    "load_settings",
    "mathematics",
    "read_document",
    "reference",
    "refuse_masked",
    "require_whole_partitions",
    "schema",
    "staged_batches",
    "to_yaml",
    "to_yaml_line",
    "uneven_share",
    "with_bare_urls",
    "without_secrets",
]
