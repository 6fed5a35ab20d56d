"""README, CONTRIBUTING and docs name what exists: paths, modules, commands, options, variables, settings and links."""

import ast
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigtrain.base import BigtrainError
from bigtrain.cli.reference import PAGES, PAGES_DIRECTORY, commands
from bigtrain.config import load_settings
from bigtrain.config.keys import find, keys_of

ROOT = Path(__file__).parents[1]
OF_THE_PAST = {"docs/decisions.md", "docs/notebook.md"}
"""They may name what is gone."""
PAGES_OF_PEERS = "docs/guides/coming-from-"
"""The first column of a table there is the peer's."""
CHECKED = [
    "README.md",
    "CONTRIBUTING.md",
    "STYLE.md",
    "tests/README.md",
    *sorted(
        name for path in (ROOT / "docs").rglob("*.md") if (name := path.relative_to(ROOT).as_posix()) not in OF_THE_PAST
    ),
]
README_WORDS = 800
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^(?: {4}|\t).*\n)+", re.MULTILINE)
SOURCE_FILE = re.compile(r"[\w./-]+\.(?:py|sh|sbatch|cpp|md)")
NOT_A_KEY = {"safetensors", "yaml", "json", "jsonl", "gguf", "md", "py", "bin", "html", "db"}
"""Endings of file names that begin like a section of the settings: `model.safetensors`."""
NO_FILES_OF_OURS = {"llama.cpp", "data-card.md", "preprocess_data.py"}
"""Look like source files of this repository."""
MADE = ("benchmarks/results/",)
"""What a command makes, and a clone need not have."""


@pytest.mark.parametrize("page", PAGES)
def test_a_generated_page_is_up_to_date(page: str) -> None:
    text = (ROOT / PAGES_DIRECTORY / page).read_text()
    assert text == PAGES[page](), "run: python -m bigtrain.cli.reference"


def test_the_chart_of_speed_is_up_to_date() -> None:
    """The README's bars are those of the newest result file."""
    specification = importlib.util.spec_from_file_location("speed_chart", ROOT / "benchmarks/speed_chart.py")
    assert specification is not None and specification.loader is not None
    speed_chart = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(speed_chart)
    drawn = speed_chart.chart(json.loads(speed_chart.RESULT.read_text()))
    assert speed_chart.CHART.read_text() == drawn, "run: python benchmarks/speed_chart.py"


@pytest.mark.parametrize("page", CHECKED)
def test_a_page_names_only_what_exists(page: str) -> None:
    """Every path, module, command, option, variable and settings key in backticks or in a code block exists."""
    found = list(problems(page, (ROOT / page).read_text()))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "wrong",
    [
        "see `bigtrain/nothing.py`",
        "see `nothing_here.py`",
        "see `tests/nothing/`",
        "see `bigtrain.config.nothing`",
        "see `bigtrain.config.errors.Nothing`",
        "run `bigtrain nothing`",
        "run `bigtrain data nothing`",
        "run `bigtrain train CONFIG --nothing`",
        "    bigtrain checkpoint list|nothing RUN\n",
        "    python -m bigtrain train x.yaml data.nothing=1\n",
        "```bash\nbigtrain eval RUN --nothing\n```\n",
        "```yaml\ndata: {nothing: 1}\n```\n",
        "give `--nothing-at-all`",
        "set `BIGTRAIN_NOTHING`",
        "set `data.nothing`",
        "set `guard.nothing: 3`",
        "see [a page](nothing.md)",
    ],
)
def test_a_wrong_name_on_a_page_is_found(wrong: str) -> None:
    """The checks above can fail, each of them."""
    assert list(problems("README.md", f"A page.\n\n{wrong}\n"))


def test_the_readme_is_short() -> None:
    """It has at most 800 words, those in tables and examples counted."""
    words = [word for word in (ROOT / "README.md").read_text().split() if re.search(r"\w", word)]
    assert len(words) <= README_WORDS


def test_the_readmes_configuration_is_valid(tmp_path: Path) -> None:
    """Its YAML, put into a file, is a configuration that a run would take."""
    (text,) = [body for kind, body in FENCE.findall((ROOT / "README.md").read_text()) if kind == "yaml"]
    (tmp_path / "readme.yaml").write_text(text)
    try:
        load_settings(tmp_path / "readme.yaml")
    except BigtrainError as error:
        pytest.fail(str(error))


def test_the_documents_build_as_a_site(require: Any, tmp_path: Path) -> None:
    """`mkdocs build --strict` finds every link and anchor, and every page in the menu."""
    require("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert "https://fonts." not in (tmp_path / "site/index.html").read_text()


def problems(page: str, text: str) -> Iterator[str]:
    """Everything on a page that does not exist."""
    if page.startswith(PAGES_OF_PEERS):
        text = re.sub(r"^\|[^|]*\|", "| |", text, flags=re.MULTILINE)
    blocks = [(kind or "text", body) for kind, body in FENCE.findall(text)]
    prose = FENCE.sub("", text)
    blocks += [("text", body) for body in INDENTED.findall(prose) if not body.lstrip().startswith(("-", "*", "|"))]
    prose = INDENTED.sub("\n", prose)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
        if "://" not in target and not ((ROOT / page).parent / target).exists():
            yield f"{page}: no file {target} to link to"
    pieces = [span.replace("\n", " ") for span in re.findall(r"`+([^`]+)`+", prose)]
    for span in pieces:
        yield from _of_span(span)
    for kind, body in blocks:
        if kind == "yaml":
            yield from _of_yaml(body)
        pieces += body.replace("\\\n", " ").splitlines()
    for piece in pieces:
        yield from _of_any_code(piece)


def _of_span(span: str) -> Iterator[str]:
    """A name that stands alone in backticks."""
    key = re.match(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?=$|[=:\s])", span)
    if key and key[1].split(".")[0] in _sections() and key[1].split(".")[-1] not in NOT_A_KEY:
        yield from _of_key(key[1])
    if re.fullmatch(r"--[a-z][a-z-]+", span) and span not in _options() and span not in _sources():
        yield f"no option {span}"
    if re.fullmatch(r"bigtrain(?:\.\w+)+", span):
        yield from _of_dotted(span)


def _of_any_code(piece: str) -> Iterator[str]:
    """A span, or a line of a code block."""
    for variable in re.findall(r"BIGTRAIN_[A-Z_]*[A-Z]", piece):
        if variable not in _sources():
            yield f"no variable {variable}"
    for module in re.findall(r"(?:-m|import|from) (bigtrain(?:\.\w+)+)", piece):
        yield from _of_dotted(module)
    for word in re.split(r"[\s,;()\[\]\"'<>]+", piece):
        yield from _of_path(word.rstrip(".:").removeprefix("./"))
    if command := re.search(r"(?:^(?:\$ )?|-m )bigtrain (?!-m)(.*)", piece.strip()):
        yield from _of_command(command[1])


def _of_path(word: str) -> Iterator[str]:
    word = re.sub(r":\d+$", "", word)
    if "//" in word or "{" in word:
        return
    if "/" in word and word.split("/")[0] in _folders():
        if not any(ROOT.glob(word.rstrip("/"))) and not word.startswith(MADE):
            yield f"no path {word}"
        return
    is_ours = (
        SOURCE_FILE.fullmatch(word)
        and not word.startswith(("/", "-", "."))
        and word.split("/")[-1] not in NO_FILES_OF_OURS
    )
    if is_ours and not any(f"/{file}".endswith(f"/{word}") for file in _files()):
        yield f"no file {word}"


def _of_dotted(name: str) -> Iterator[str]:
    module, attributes = name, []
    while _spec(module) is None:
        module, _, last = module.rpartition(".")
        attributes.insert(0, last)
    found: Any = importlib.import_module(module) if attributes else None
    for attribute in attributes:
        found = getattr(found, attribute, None)
        if found is None:
            yield f"no module or name {name}"
            return


def _spec(module: str) -> Any:
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None


def _of_command(line: str) -> Iterator[str]:
    """What stands after the word bigtrain, up to a comment: a command, its options, overrides of settings."""
    line = re.split(r"\s#|\s[<|>]\s|\s&&|\s{3,}|;", f"{line} ")[0]
    line = re.sub(r"\.\.\.|[\[\]]", " ", line)
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    paths = [""]
    while words and re.fullmatch(r"[a-z][a-z-]*(?:\|[a-z-]+)*", words[0]) and any(map(_is_group, paths)):
        paths = [f"{path} {name}".strip() for path in paths for name in words[0].split("|")]
        words = words[1:]
    tree = dict(_commands())
    for path in paths:
        command = tree.get(f"bigtrain {path}".strip())
        if command is None:
            if not _is_group(path) or (words and words[0].isalpha() and words[0].islower()):
                yield f"no command bigtrain {path} {words[0] if words else ''}"
            continue
        options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
        for word in words:
            if re.match(r"--?[a-z]", word) and word.split("=")[0] not in options:
                yield f"bigtrain {path} has no option {word}"
            key = re.match(r"([a-z_]+(?:\.\w+)+)=", word)
            if key and key[1].split(".")[0] in _sections():
                yield from _of_key(key[1])


@cache
def _commands() -> list[tuple[str, Any]]:
    return list(commands())


@cache
def _options() -> set[str]:
    return {option for _, command in _commands() for p in command.params for option in (*p.opts, *p.secondary_opts)}


def _is_group(path: str) -> bool:
    return any(f"{name} ".startswith(f"bigtrain {path} ".replace("  ", " ")) for name, _ in _commands()) and (
        f"bigtrain {path}".strip() not in dict(_commands())
    )


def _of_key(key: str) -> Iterator[str]:
    if find(re.sub(r"\.(\d+|N)(?=\.|$)", ".0", key)) is None:
        yield f"no key {key}"


def _of_yaml(body: str) -> Iterator[str]:
    document = yaml.safe_load(body)
    if isinstance(document, dict) and document.keys() <= _sections() | {"run_dir"}:
        for key in _leaves(document, ""):
            yield from _of_key(key)


def _leaves(value: Any, path: str) -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        here = f"{path}.{name}".lstrip(".")
        if isinstance(inner, dict) or (isinstance(inner, list) and any(isinstance(each, dict) for each in inner)):
            yield from _leaves(inner, here)
        else:
            yield here


@cache
def _sections() -> set[str]:
    return {key.path for key in keys_of("") if key.kind != "value"}


@cache
def _files() -> list[str]:
    """The files of the repository, new ones too."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [file for file in listed if file and (ROOT / file).is_file()]


@cache
def _folders() -> set[str]:
    return {file.split("/")[0] for file in _files() if "/" in file}


@cache
def _sources() -> str:
    """All code as one text: names of variables and options are looked up in it."""
    folders = ("bigtrain/", "launch/", "docker/", "benchmarks/", ".ci/")
    kept = [file for file in _files() if file.startswith(folders) and not file.endswith((".json", ".svg"))]
    return "\n".join((ROOT / file).read_text(errors="replace") for file in kept)


def _nodes() -> Iterator[ast.AST]:
    for path in sorted((ROOT / "bigtrain").rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text()))
