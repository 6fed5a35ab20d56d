"""What W&B's own variables and settings files ask for: they come after bigtrain's settings, and before its defaults.

`wandb offline`, `wandb disabled` and `wandb init` write `wandb/settings` in the working directory; `wandb login` and
`wandb.setup` write `~/.config/wandb/settings` and `~/.netrc`.
"""

from __future__ import annotations

import configparser
import logging
import netrc
import os
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from bigtrain.base import BigtrainError, bare_name, text_of, warn_once
from bigtrain.config import TrackingSettings

logger = logging.getLogger(__name__)

Mode = Literal["online", "shared", "offline", "disabled"]
SERVER = "https://api.wandb.ai"
PROJECT = "bigtrain"
_ALSO_CALLED: dict[str, Mode] = {"dryrun": "offline", "run": "online"}
_YES = ("1", "true", "t", "yes", "y", "on")
_FILE_BYTES = 100_000


def wandb_mode(setting: str) -> Mode:
    """Return the W&B mode for `tracking.wandb`.

    `auto` is what WANDB_DISABLED, WANDB_MODE or W&B's settings files say; without them online with a key or a login,
    else offline. A mode that is not known is offline: nothing is uploaded that nobody asked for.
    """
    if setting in get_args(Mode):
        return setting  # type: ignore[return-value]
    if (text_of("WANDB_DISABLED") or "").lower() in _YES:
        return "disabled"
    in_files = settings_files()
    if (in_files.get("disabled") or "").lower() in _YES and text_of("WANDB_MODE") is None:
        return "disabled"
    asked, source = text_of("WANDB_MODE"), "WANDB_MODE"
    if asked is None:
        asked, source = in_files.get("mode"), "mode in a settings file of W&B"
    if not asked:
        return "online" if text_of("WANDB_API_KEY") or _logged_in() else "offline"
    mode = _ALSO_CALLED.get(asked.lower(), asked.lower())
    if mode in get_args(Mode):
        return mode  # type: ignore[return-value]
    warn_once(f"{source} is {asked}, which is no mode of W&B: this start is tracked offline")
    return "offline"


def wandb_names(tracking: TrackingSettings, run_dir: Path) -> dict[str, str | None]:
    """Return project, entity and name of the W&B run: by the settings, the environment, W&B's files, the defaults."""
    in_files = settings_files()
    return {
        "project": tracking.project or text_of("WANDB_PROJECT") or in_files.get("project") or PROJECT,
        "entity": tracking.entity or text_of("WANDB_ENTITY") or in_files.get("entity") or None,
        "name": tracking.name or text_of("WANDB_NAME") or run_dir.name,
    }


def wandb_folder(run_dir: Path) -> Path:
    """Return the folder in which W&B makes its folder `wandb`: WANDB_DIR, else the run directory."""
    given = text_of("WANDB_DIR")
    return Path(os.path.expanduser(given)) if given else run_dir  # noqa: PTH111 - a home that is not known is no error


def wandb_server() -> str:
    """Return the address of the W&B server."""
    return (text_of("WANDB_BASE_URL") or settings_files().get("base_url") or SERVER).rstrip("/")


def run_id_of_environment(remembered: str | None) -> str | None:
    """Return WANDB_RUN_ID, which a sweep's agent sets; None where it is not set or cannot be used.

    Args:
        remembered: the id of this run's earlier starts, which goes first.
    """
    given = text_of("WANDB_RUN_ID")
    if given is None:
        return None
    try:
        bare_name(given, "WANDB_RUN_ID")
    except BigtrainError:
        warn_once(f"WANDB_RUN_ID={given!r} is ignored: W&B names a folder after it, and this is no file name")
        return None
    if remembered is not None and remembered != given:
        logger.warning(f"WANDB_RUN_ID={given} is ignored: this run goes on in its W&B run {remembered}")
    return given


def settings_files() -> dict[str, str]:
    """Return what W&B's settings files say; those of the working directory win. What cannot be read is skipped."""
    configured = text_of("WANDB_CONFIG_DIR") or os.path.join("~", ".config", "wandb")  # noqa: PTH118
    root = Path(text_of("WANDB_DIR") or ".")
    local = root / (".wandb" if (root / ".wandb").exists() else "wandb")
    found: dict[str, str] = {}
    for folder in (Path(os.path.expanduser(configured)), local):  # noqa: PTH111
        path = folder / "settings"
        parser = configparser.ConfigParser(interpolation=None, default_section="bigtrain reads none")
        try:
            if path.is_file() and path.stat().st_size < _FILE_BYTES:
                parser.read_string(path.read_text(encoding="utf-8"))
                found |= {name: value.strip() for name, value in dict(parser["default"]).items() if value}
        except (OSError, ValueError, KeyError, configparser.Error) as error:
            warn_once(f"{path}, a settings file of W&B, is ignored: {str(error).splitlines()[0]}")
    return found


def _logged_in() -> bool:
    """Whether ~/.netrc has a login for the server; a machine without a home has none."""
    path = Path(text_of("NETRC") or os.path.expanduser("~/.netrc"))  # noqa: PTH111
    try:
        return bool(netrc.netrc(str(path)).authenticators(urlsplit(wandb_server()).hostname or "api.wandb.ai"))
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
