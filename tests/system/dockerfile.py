"""Carries out a Dockerfile without a container engine: each stage in a root directory of its own, entered by chroot.

What it proves: the commands work, in this order, on a bare Debian, and the user, environment and entry point that the
image declares can run the program. What it does not: that an engine builds it, layers, the published base image (it is
made by debootstrap from the same release), and, where no GPU is, anything about CUDA.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass
class Stage:
    """A root directory and what instructions have said about it."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = "0:0"
    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    entry: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def run(self, command: list[str], mounts: list[Path], timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """A command inside, as the user of the stage; `mounts` are seen there at the same paths."""
        inside = "".join(
            f"mkdir -p {shlex.quote(f'{self.root}{path.parent if path.is_file() else path}')}; "
            + (f"touch {shlex.quote(f'{self.root}{path}')}; " if path.is_file() else "")
            + f"mount --bind {shlex.quote(str(path))} {shlex.quote(f'{self.root}{path}')}; "
            for path in mounts
        )
        user, _, group = self.user.partition(":")
        enter = [
            *("chroot", f"--userspec={user}:{group or user}", str(self.root)),
            *("/usr/bin/env", "-i", *[f"{name}={value}" for name, value in self._environment().items()]),
            *("/bin/sh", "-c", 'cd "$0" && exec "$@"', self.directory, *command),
        ]
        script = (
            f"set -e; mount -t proc proc {self.root}/proc; mount --rbind /dev {self.root}/dev; {inside}"
            f"exec {shlex.join(enter)}"
        )
        return subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", script],
            capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        of_machine = {name: value for name, value in os.environ.items() if name in PROXIES or name.startswith("PIP_")}
        plain = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND": "noninteractive",
        }
        return {
            **plain,
            "HOME": "/root" if self.user.startswith("0") else "/home/trainer",
            **of_machine,
            **self.environment,
        }


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments; lines that go on are one."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*#", line)]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    found = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name.upper(), rest.strip()) for name, _, rest in found]


def carry_out(
    dockerfile: Path, context: Path, work: Path, base: Path, arguments: dict[str, str], mounts: list[Path]
) -> Stage:
    """All stages of a Dockerfile. Returns the last one.

    Args:
        dockerfile: the file.
        context: the folder that COPY copies from.
        work: where the root directories are made.
        base: a root directory to begin stages with.
        arguments: values for ARG.
        mounts: folders of this machine that package managers need.
    """
    stages: dict[str, Stage] = {}
    stage = Stage(base)
    for name, rest in instructions(dockerfile.read_text(encoding="utf-8")):
        match name:
            case "FROM":
                title = rest.partition(" AS ")[2] or "last"
                root = work / title
                subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(root)], check=True)
                stages[title] = stage = Stage(root)
            case "ARG":
                key, _, default = rest.partition("=")
                stage.environment[key] = arguments.get(key, default)
            case "ENV":
                for pair in shlex.split(rest):
                    key, _, value = pair.partition("=")
                    stage.environment[key] = value
            case "SHELL":
                stage.shell = json.loads(rest)
            case "WORKDIR":
                stage.directory = rest
                _inside(stage, rest).mkdir(parents=True, exist_ok=True)
            case "USER":
                stage.user = rest
            case "COPY":
                _copy(rest, context, stages, stage)
            case "RUN":
                done = stage.run([*stage.shell, rest], mounts)
                assert done.returncode == 0, f"RUN {rest}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            case "ENTRYPOINT":
                stage.entry = json.loads(rest)
            case "CMD":
                stage.command = json.loads(rest)
            case _:
                raise AssertionError(f"the instruction {name} is not known here")
    return stage


def _copy(rest: str, context: Path, stages: dict[str, Stage], stage: Stage) -> None:
    parts = shlex.split(rest)
    source = context
    if parts[0].startswith("--from="):
        source = stages[parts.pop(0).removeprefix("--from=")].root
    *names, target = parts
    into = _inside(stage, target)
    for name in names:
        origin = source / name.lstrip("/")
        if origin.is_dir():
            shutil.copytree(
                origin, into, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy2(origin, into)


def _inside(stage: Stage, path: str) -> Path:
    return stage.root / os.path.normpath(os.path.join(stage.directory, path)).lstrip("/")  # noqa: PTH118
