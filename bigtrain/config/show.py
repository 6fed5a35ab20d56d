"""Settings as YAML text, from which equal settings can be loaded."""

from __future__ import annotations

from bigtrain.base import __version__
from bigtrain.config.settings import Settings
from bigtrain.config.yaml12 import to_yaml


def dump_settings(settings: Settings) -> str:
    """The effective settings, defaults included, with the version of bigtrain in the first line.

    `load_settings` of the text gives equal settings.
    """
    blocks = [to_yaml({name: value}) for name, value in settings.model_dump(mode="json").items()]
    return "\n".join([f"# The effective settings of a run, written by bigtrain {__version__}.\n", *blocks])
