"""Environment variables as another program, an old shell or a typing error left them: each value is checked."""

from __future__ import annotations

import math
import os
import re
import socket
import sys
from collections.abc import Mapping

from bigtrain.base.errors import BigtrainError

_said: set[str] = set()


def text_of(name: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Return the value of a variable without blanks around it; None where it is not set, or empty."""
    value = (os.environ if environment is None else environment).get(name, "").strip()
    return value or None


def machine_name() -> str:
    """Return the name by which its scheduler knows this machine: that of the Slurm node, else the host name."""
    return text_of("SLURMD_NODENAME") or socket.gethostname()


def number_of(name: str, least: int, most: int, environment: Mapping[str, str] | None = None) -> int | None:
    """Return a variable's whole number; None where it is not set, or empty.

    Raises:
        BigtrainError: the value is not a whole number from `least` to `most`.
    """
    text = text_of(name, environment)
    if text is None:
        return None
    if not re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII) or not least <= int(text) <= most:
        raise BigtrainError(
            f"the environment variable {name} has a value that cannot be used",
            found=f"{name}={text}",
            wanted=f"a whole number from {least} to {most}",
            fix=f"correct it, or remove it: unset {name}",
        )
    return int(text)


def usable_seconds(name: str) -> float | None:
    """Return a variable's time in seconds since 1970, or another finite number that is not negative.

    What is no such number is ignored, with a warning. A run does not fail because of what a scheduler has left over.
    """
    text = text_of(name)
    if text is None:
        return None
    try:
        value = float(text) if text.isascii() else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        warn_once(f"{name}={text} is ignored: it is not a number of seconds since 1970")
        return None
    return value


def warn_once(text: str) -> None:
    """Print a warning on stderr, once in a process, and on the first rank only."""
    if text not in _said and os.environ.get("RANK", "0").strip() in ("", "0"):
        print(f"warning: {text}", file=sys.stderr, flush=True)
    _said.add(text)


def check_interfaces(*names: str) -> None:
    """Make sure that each network interface that these variables name is there.

    Args:
        names: of variables with NCCL's syntax: `eth0`, `eth,ib` (prefixes), `=eth0` (exact) or `^docker` (all others);
            gloo's is a part of it.

    Raises:
        BigtrainError: there is none of that name.
    """
    there = [name for _, name in socket.if_nameindex()]
    for variable in names:
        value = text_of(variable)
        if value is None or value.startswith("^"):
            continue
        exact = value.startswith("=") or variable.startswith("GLOO")
        asked = [name.partition(":")[0] for name in value.removeprefix("=").split(",") if name]
        fits = [name for name in there for wanted in asked if name == wanted or (not exact and name.startswith(wanted))]
        if fits and (not variable.startswith("GLOO") or set(asked) <= set(there)):
            continue
        raise BigtrainError(
            f"{socket.gethostname()} has no network interface of the name that {variable} gives",
            found=f"{variable}={value}; this machine has {', '.join(sorted(there))}",
            wanted="one of these interfaces",
            fix=f"correct it, or let the launcher choose: unset {variable}",
        )
