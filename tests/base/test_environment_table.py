"""docs/reference/environment.md names every environment variable that the code or a launch script reads or sets."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs/reference/environment.md").read_text()
READERS = (
    "get",
    "setdefault",
    "pop",
    "getenv",
    "text_of",
    "number_of",
    "usable_seconds",
    "_number",
    "check_interfaces",
)
KNOWN = re.compile(
    r"(BIGTRAIN|SLURM|WANDB|OMPI|PMI|PMIX|MPI|MV2|PET|NCCL|GLOO|TORCH|TORCHELASTIC|OMP|MASTER|PYTHON|LOCAL)_[A-Za-z0-9_]+"
)
NAME = re.compile(r"[A-Z][A-Z0-9_]+")
OF_BASH = re.compile(r"BASH_\w+|PWD|SECONDS|JOB_COMPLETION_INDEX")
NO_VARIABLES = {"TORCH_LIBRARY", "PMI_"}
"""Other constants of these shapes."""


def read_by(source: str) -> Iterator[str]:
    """The names of environment variables in a Python file: read by name, or written down as a constant."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and KNOWN.fullmatch(node.value):
            yield node.value
        called = node.func if isinstance(node, ast.Call) else None
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
        of_environment = not isinstance(called, ast.Attribute) or "environ" in ast.unparse(called.value)
        given = (
            node.args if isinstance(node, ast.Call) and name in READERS and (of_environment or name == "getenv") else []
        )
        if isinstance(node, ast.Subscript) and "environ" in ast.unparse(node.value):
            given = [node.slice]
        for each in given:
            if isinstance(each, ast.Constant) and isinstance(each.value, str) and NAME.fullmatch(each.value):
                yield each.value


def used_by(script: str) -> Iterator[str]:
    """The same for a shell script, which names its own variables in small letters."""
    code = re.sub(r"(?m)^\s*#.*$|\s# .*$", "", script)
    for name in re.findall(
        r"\$\{?!?([A-Z][A-Z0-9_]+)|^\s*default ([A-Z0-9_]+)|for variable in (.*);", code, re.MULTILINE
    ):
        yield from (each for each in " ".join(name).split() if not OF_BASH.fullmatch(each) and not each.endswith("_"))


def test_every_variable_that_is_read_or_set_is_in_the_table():
    """A variable that the code or a launch script reads or sets, and the reference does not name, fails this test."""
    used: dict[str, str] = {}
    for path in sorted((ROOT / "bigtrain").rglob("*.py")):
        used |= dict.fromkeys(read_by(path.read_text()), str(path.relative_to(ROOT)))
    for path in (*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch")):
        used |= dict.fromkeys(used_by(path.read_text()), str(path.relative_to(ROOT)))
    named = set(re.findall(r"`([A-Za-z0-9_]+)`", TABLE))
    missing = {
        name: where
        for name, where in used.items()
        if name not in NO_VARIABLES
        and name not in named
        and not (name.endswith("_") and any(each.startswith(name) for each in named))
    }
    assert not missing, missing
    assert {"BIGTRAIN_PORT", "SLURM_PROCID", "WANDB_MODE", "OMP_NUM_THREADS", "NPROC", "RANK"} <= set(used)


def test_the_search_finds_each_way_in_which_a_variable_is_read():
    code = "import os\nos.environ['A_B']; os.environ.get('C'+'D'); os.getenv('EE'); text_of('FF', x)\nX = 'SLURM_NEW'"
    assert {"A_B", "EE", "FF", "SLURM_NEW"} <= set(read_by(code))
    script = 'a=${NEW_ONE:-}; b=$OTHER # ${COMMENT}\ndefault THIRD 3\necho "${!FOURTH}"'
    assert set(used_by(script)) == {"NEW_ONE", "OTHER", "THIRD", "FOURTH"}
