"""The reference page of all settings: python -m bigtrain.config.reference > docs/reference/config.md."""

from __future__ import annotations

from bigtrain.config.explain import default_text
from bigtrain.config.keys import Key, all_keys, keys_of
from bigtrain.config.mathematics import kind_of

_HEAD = """\
# Settings

<!-- Made by `python -m bigtrain.config.reference > docs/reference/config.md` from bigtrain/config/settings.py. -->

A configuration is one YAML file. `bigtrain config show CONFIG` prints it with all defaults filled in,
`bigtrain config explain KEY` explains one key, and `bigtrain config schema` gives a JSON schema for editors.

- **Overrides.** After the file, `key=value` sets any leaf: `bigtrain train CONFIG train.steps=20`. Values are YAML;
  items of a list go by index from 0: `data.sources.0.weight=0.3`. The last one wins.
- **Numbers.** `1e-4`, `0.0001` and `20_000_000` are numbers. `yes`, `no` and dates are text (YAML 1.2). Nothing is
  coerced: `"8"` is not 8, and `8.0` is not a whole number.
- **Paths** are relative to the current working directory, not to the file; `~/` is the home directory.
- **Unknown keys** are errors. So is a key that is given twice.
- **On resume** says whether a run may continue from its checkpoint with another value. `no` marks settings that change
  the mathematics. `ahead` marks settings of the data plan, which may change if no sample moves that the run has used;
  `bigtrain data diff` shows what moves.
"""


def reference() -> str:
    """The page, in Markdown."""
    top = [key for key in keys_of("") if key.kind == "value"]
    parts = [_HEAD, "## Top level\n", _table(top)]
    for section in all_keys().values():
        if section.kind == "section" and section.path:
            parts += [f"## `{section.path}`\n", f"{section.meaning}\n"]
            if leaves := [key for key in keys_of(section.path) if key.kind in ("value", "mapping")]:
                parts.append(_table(leaves))
    return "\n".join(parts)


def _table(keys: list[Key]) -> str:
    rows = ["| key | meaning | type | default | may change on resume |", "|---|---|---|---|---|"]
    for key in keys:
        default = default_text(key) if key.required else f"`{default_text(key)}`"
        resume = {"mathematics": "no", "plan": "ahead", "operation": "yes"}[kind_of(key.path)]
        cells = (f"`{key.name}`", key.meaning, key.type, default, resume)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
