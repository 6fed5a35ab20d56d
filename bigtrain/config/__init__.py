"""Settings: one typed tree, read from YAML, with errors that name the line and the fix.

::

    YAML file + key=value   --load_settings-->   Settings   --dump_settings-->   RUN/config.yaml
                                    |                |
                             BigtrainError           +-- mathematics: the settings that a checkpoint fixes
                      (file:line, both values, fix)  +-- diff: where two configurations differ

    the tree and its docstrings (settings.py)  -->  explain, schema, docs/reference/config.md

settings.py         the whole tree, and the rules that span sections; data_settings.py, model_settings.py,
                    engine_settings.py, guard_settings.py and cleaning.py hold its larger sections
families.py         the choices that each model family makes
load.py             file and overrides --> Settings; document.py, yaml12.py, overrides.py, problems.py, suggest.py
parallel_sizes.py   how ranks and samples divide
batch_schedule.py   how many samples each step has
mathematics.py      which settings change the mathematics, the data plan, or neither
secrets.py          keeps passwords out of everything that a run writes
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
