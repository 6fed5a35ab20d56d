"""The ground floor: settings, and errors that help.

::

    YAML file + key=value   --load_settings-->   Settings   --dump_settings-->   RUN/config.yaml
                                    |                |
                             BigtrainError           +-- mathematics: what a checkpoint pins
                      (file:line, both values, fix)  +-- diff: two runs side by side

    the tree and its docstrings (settings.py)  -->  explain, schema, docs/reference/config.md
"""

from bigtrain.base.errors import BigtrainError
from bigtrain.config.batch_schedule import BatchSchedule
from bigtrain.config.data_settings import DataSettings, SourceSettings, TokenizerSettings, ValidationSettings
from bigtrain.config.diff import Difference, diff
from bigtrain.config.engine_settings import EngineSettings
from bigtrain.config.explain import Explanation, explain, schema
from bigtrain.config.load import load_settings
from bigtrain.config.mathematics import mathematics
from bigtrain.config.model_settings import ModelSettings, RopeScaling
from bigtrain.config.settings import (
    CheckpointSettings,
    EvaluateSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    TrackingSettings,
    TrainSettings,
)
from bigtrain.config.show import dump_settings

__all__ = [
    "BatchSchedule",
    "BigtrainError",
    "CheckpointSettings",
    "DataSettings",
    "Difference",
    "EngineSettings",
    "EvaluateSettings",
    "Explanation",
    "ModelSettings",
    "OptimizerSettings",
    "RopeScaling",
    "ScheduleSettings",
    "Settings",
    "SourceSettings",
    "TokenizerSettings",
    "TrackingSettings",
    "TrainSettings",
    "ValidationSettings",
    "diff",
    "dump_settings",
    "explain",
    "load_settings",
    "mathematics",
    "schema",
]
