"""Environments for the projects that bigtrain is compared with: each its own, so that none bends another's versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TORCH = "torch>=2.11,<2.14"
"""Held below 2.14: a newer one pulls gigabytes of CUDA packages."""
PEER_PACKAGES = {
    "litdata": [TORCH, "numpy", "litdata"],
    "mosaicml-streaming": [TORCH, "numpy", "mosaicml-streaming"],
    "datatrove": ["datatrove", "tokenizers", "orjson", "xxhash<3.7", "spacy", "fasteners"],  # hashes strings
    "litgpt": [TORCH, "numpy", "litgpt==0.5.13"],
    "torchtitan": [TORCH, "numpy", "triton", "torchtitan==0.3.0"],
}


def environment(peers: Path, name: str) -> Path:
    """The Python of a virtual environment with a peer in it, made once below `peers`."""
    folder = peers / name
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *PEER_PACKAGES[name]], check=True, capture_output=True, text=True)
        if name == "mosaicml-streaming":
            _stand_in_for_torchvision(python)
        (folder / "ready").touch()
    return python


def version(python: Path, package: str) -> str:
    """Of a package in an environment."""
    script = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    return subprocess.run([str(python), "-c", script], check=True, capture_output=True, text=True).stdout.strip()


def reason(error: subprocess.SubprocessError) -> str:
    """The last line of what a command said that failed."""
    return str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]


def _stand_in_for_torchvision(python: Path) -> None:
    """streaming imports a class of torchvision, unused for tokens; torchvision has no build for a CPU-only torch."""
    script = (
        "import pathlib, sysconfig\n"
        "package = pathlib.Path(sysconfig.get_path('purelib')) / 'torchvision'\n"
        "(package / 'transforms').mkdir(parents=True)\n"
        "(package / '__init__.py').touch(); (package / 'transforms' / '__init__.py').touch()\n"
        "(package / 'datasets.py').write_text('class VisionDataset: pass\\n')\n"
        "(package / 'transforms' / 'functional.py').write_text('to_tensor = None\\n')\n"
    )
    subprocess.run([str(python), "-m", "pip", "uninstall", "-qy", "torchvision"], check=True, capture_output=True)
    subprocess.run([str(python), "-c", script], check=True, capture_output=True)
