"""What imports what: no circle in the package, and no PyTorch where a command has to answer at once."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bigtrain"
WITHOUT_TORCH = ("base", "config", "rundir", "estimate", "submit", "model.shapes")
"""Packages that the contract in pyproject.toml keeps free of PyTorch, and what of the models is free of it; the
contract does not follow what they import."""


def modules(package: Path) -> dict[str, ast.Module]:
    """The modules of a package by their names, parsed; a package is the module in its `__init__.py`."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imports(package: Path) -> dict[str, set[str]]:
    """What each module of a package imports of it; imports inside functions and for type checkers count."""
    parsed = modules(package)
    return {name: set(_imported(tree, parsed)) & parsed.keys() - {name} for name, tree in parsed.items()}


def _imported(tree: ast.Module, known: Mapping[str, ast.Module]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "an import is relative"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module


def circle(graph: Mapping[str, set[str]]) -> list[str] | None:
    """Modules each of which imports the next one, the last the first; None where there are none."""
    done: set[str] = set()
    for start in graph:
        path: list[str] = []
        stack = [(start, iter(sorted(graph[start])))] if start not in done else []
        while stack:
            name, rest = stack[-1]
            path[len(stack) - 1 :] = [name]
            following = next(rest, None)
            if following is None:
                done.add(name)
                stack.pop()
            elif following in path[: len(stack)]:
                return path[path.index(following) : len(stack)]
            elif following not in done:
                stack.append((following, iter(sorted(graph[following]))))
    return None


def test_no_module_imports_itself_through_others() -> None:
    """There is no import circle in bigtrain; imports inside functions and for type checkers count."""
    graph = imports(PACKAGE)
    assert len(graph) > 250 and sum(map(len, graph.values())) > 1000
    assert circle(graph) is None


@pytest.mark.parametrize(
    "line",
    [
        "import p.a",
        "from p import a",
        "from p.a import x",
        "from p import x",
        "def f():\n    from p.a import x",
        "if TYPE_CHECKING:\n    from p.a import x",
    ],
)
def test_a_circle_is_found_however_it_is_imported(line: str, tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").write_text("from p.c import x\n")
    (package / "a.py").write_text("import p.b\n")
    (package / "b.py").write_text("from p.c import x\n")
    (package / "c.py").write_text("import os\n")
    assert circle(imports(package)) is None
    (package / "c.py").write_text(line + "\n")
    found = circle(imports(package))
    assert found is not None and "p.c" in found


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_a_package_is_imported_without_pytorch(name: str) -> None:
    """Commands that read settings and run directories, estimate and submit do not wait for PyTorch."""
    of_package = [module for module in modules(PACKAGE) if f"{module}.".startswith(f"bigtrain.{name}.")]
    assert loaded(of_package) == "[]"


def test_pytorch_is_found_where_it_is_imported() -> None:
    assert loaded(["bigtrain.model.decoder"]) == "['torch']"


def deferred_names() -> dict[str, str]:
    """The names that faces import when they are first asked for, with the package of each."""
    found = {}
    for package, tree in modules(PACKAGE).items():
        for node in tree.body:
            if isinstance(node, ast.If) and "deferred(" in ast.unparse(node):
                checked = [each for each in node.body if isinstance(each, ast.ImportFrom)]
                found |= {alias.name: package for each in checked for alias in each.names}
    return found


def test_what_a_face_defers_is_there_when_asked_for() -> None:
    """Each name is exported, is imported at its first use, and is no module of the package: the import of that module
    would take its place."""
    names = deferred_names()
    assert len(names) > 30 and set(names.values()) == {"bigtrain.model"}
    face = importlib.import_module("bigtrain.model")
    assert names.keys() < set(face.__all__) and all(hasattr(face, name) for name in face.__all__)
    assert not {f"{package}.{name}" for name, package in names.items()} & modules(PACKAGE).keys()
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_this_name'"):
        _ = face.nothing_of_this_name


def loaded(names: list[str]) -> str:
    """Which of the heavy packages a new process has after importing these modules."""
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ENTRIES = {("bigtrain.__main__", "bigtrain.cli.main"), ("bigtrain.cli.torchrun", "bigtrain.launcher.torchrun")}
"""Programs, each of which starts another module's `main`."""


def past_the_face(name: str, tree: ast.Module) -> Iterator[str]:
    """The modules inside other packages that a module imports from, other than by the package's `__init__.py`."""
    own = ".".join(name.split(".")[:2])
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bigtrain."):
            package = ".".join(node.module.split(".")[:2])
            if package not in (own, node.module) and (name, node.module) not in ENTRIES:
                yield node.module


def test_a_package_is_imported_by_its_face() -> None:
    """What other packages use is exported once, in a package's `__init__.py` with `__all__`; they import it there."""
    parsed = modules(PACKAGE)
    found = {name: inside for name, tree in parsed.items() if (inside := sorted(past_the_face(name, tree)))}
    assert found.pop("bigtrain") == ["bigtrain.base.version"]
    assert not found


@pytest.mark.parametrize(
    "line", ["from bigtrain.base.files import x", "def f():\n    from bigtrain.base.files import x"]
)
def test_an_import_past_the_face_is_found(line: str) -> None:
    assert list(past_the_face("bigtrain.train.loop", ast.parse(line))) == ["bigtrain.base.files"]
    assert not list(past_the_face("bigtrain.base.clock", ast.parse(line)))
