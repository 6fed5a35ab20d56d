"""Makes clean_golden.json: datatrove's rejections on real and on spoilt texts.

    python -m venv ENV && ENV/bin/pip install datatrove==0.10.1 "spacy>=3.8" regex
    ENV/bin/python tests/data/make_clean_golden.py

Each text is judged twice: by datatrove as it is, with spaCy's words, and by datatrove with the words and sentences of
bigtrain. The second shows that the rules are the same, the first what another notion of a word changes.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import random
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

HERE = Path(__file__).parent
STDLIB = Path(sysconfig.get_paths()["stdlib"])
FILTERS = {
    "gopher_quality": GopherQualityFilter(),
    "gopher_repetition": GopherRepetitionFilter(),
    "c4": C4QualityFilter(),
    "fineweb": FineWebQualityFilter(char_duplicates_ratio=0.1),  # the paper's threshold; the code has 0.01
}
MODULE = "datatrove.pipeline.filters."
WORDS_OF = [
    MODULE + f"{name}_filter.split_into_words" for name in ("gopher_quality", "gopher_repetition", "fineweb_quality")
]


def our_text_module() -> Any:
    file = HERE.parents[1] / "bigtrain" / "data" / "clean" / "text.py"
    spec = importlib.util.spec_from_file_location("our_text", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["our_text"] = module
    spec.loader.exec_module(module)
    return module


def real_texts() -> dict[str, str]:
    """Documentation of the standard library: topics of the language reference, and docstrings of whole modules."""
    texts = {}
    topics = ast.parse((STDLIB / "pydoc_data" / "topics.py").read_text())
    for node in ast.walk(topics):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                    texts[f"topic {key.value}"] = inspect.cleandoc(str(value.value))
    for file in sorted(STDLIB.glob("*.py")):
        module = ast.parse(file.read_text())
        parts = [
            ast.get_docstring(node)
            for node in ast.walk(module)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        texts[f"module {file.stem}"] = "\n\n".join(part for part in parts if part)
    return texts


def spoilt_texts(texts: dict[str, str]) -> dict[str, str]:
    """What each rule is there to find, made from good text."""
    rng = random.Random(0)
    good = [text for text in texts.values() if 1500 < len(text) < 4000]
    sentences = [s.replace("\n", " ").strip() + "." for text in good for s in text.split(".") if 20 < len(s) < 160]

    def some(count: int) -> list[str]:
        return rng.sample(sentences, count)

    spoilt = {
        "a sentence a line": "\n".join(some(30)),
        "prose": "\n\n".join(" ".join(some(6)) for _ in range(4)),
        "short": " ".join(some(2)),
        "no words": "1 2 3 4 5 -- ; : 77 , . " * 20,
        "bullets": "\n".join("- " + s for s in some(20)),
        "round bullets": "\n".join("  • " + s for s in some(20)),
        "ellipses at line ends": "\n".join(s[:-1] + ("..." if i % 2 else ".") for i, s in enumerate(some(24))),
        "ellipses everywhere": " ".join(word + "…" for word in " ".join(some(12)).split()),
        "hashes": " ".join("#" + word for word in " ".join(some(12)).split()),
        "long words": " ".join(word * 3 for word in " ".join(some(12)).split()),
        "short words": " ".join(word[:2] for word in " ".join(some(20)).split()),
        "numbers": " ".join(word if i % 3 else str(i) for i, word in enumerate(" ".join(some(20)).split())),
        "no stop words": " ".join(w for w in " ".join(some(30)).split() if len(w) > 4),
        "repeated lines": "\n".join(line for s in some(8) for line in (s, s)),
        "repeated paragraphs": "\n\n".join(line for s in some(6) for line in (s, s, s)),
        "one long repeated line": "\n".join([*some(20), "x".join(some(8)), *some(3)])
        + "\n"
        + sentences[0] * 6
        + "\n"
        + sentences[0] * 6,
        "repeated pair": " ".join(f"{w} of the" for w in " ".join(some(12)).split()),
        "repeated five": " ".join(word for s in some(14) for word in (s, "click here to read more about this")),
        "repeated ten": " ".join(
            word for s in some(24) for word in (s, "all rights reserved by the owner of this very nice page")
        ),
        "lorem ipsum": "\n".join([*some(9), "Lorem ipsum dolor sit amet is filler text."]),
        "code": "\n".join([*some(9), "It writes if (x) { return; } and ends here."]),
        "javascript": "\n".join([*some(9), "Please enable Javascript to see this page."]),
        "policy": "\n".join([*some(9), "This site uses cookies to serve you better."]),
        "citations": "\n".join(s[:-1] + f"[{i}]." for i, s in enumerate(some(12))),
        "menu": "\n".join(s.split()[0] for s in some(60)),
        "list": "\n".join(" ".join(s.split()[:3]) + "." for s in some(40)),
        "no full stops": "\n".join(s.rstrip(".") for s in some(30)),
        "one line end per word": "\n".join(" ".join(some(20)).split()),
        "a very long word": "\n".join([*some(9), "a" * 1001 + " is a word that nobody wrote."]),
        "german": "Der Hund läuft über die Straße und die Katze schläft. "
        + "Es regnet, und niemand geht hinaus, weil alle warten. " * 2
        + "Am Abend wird es kühl und still in der Stadt, und die Lichter gehen an. " * 3,
        "chinese": "这是一个用来测试的句子。我们看看规则怎样处理它。" * 8,
        "windows line ends": "\r\n".join(some(20)),
    }
    for count in (44, 46, 48, 50, 52, 54):
        spoilt[f"{count} blanks between words"] = " ".join(" ".join(some(12)).split()[:count])
    return spoilt


def rejection(rule: str, text: str) -> tuple[str | None, str]:
    document = Document(text=text, id="")
    kept = FILTERS[rule].filter(document)
    return (None, document.text) if kept is True else (kept[1], "")


def judge(text: str, ours: Any) -> dict[str, Any]:
    judged: dict[str, Any] = {}
    for rule in FILTERS:
        as_it_is, _ = rejection(rule, text)
        with patch(MODULE + "c4_filters.split_into_sentences", lambda line, _: [""] * ours.sentences(line)):
            patches = [patch(name, lambda text, _: ours.Text(text).words) for name in WORDS_OF]
            for one in patches:
                one.start()
            same_words, rewritten = rejection(rule, text)
            for one in patches:
                one.stop()
        judged[rule] = {"datatrove": as_it_is, "same_words": same_words}
        if rewritten and rewritten != text:
            judged[rule]["rewritten"] = hashlib.sha256(rewritten.encode()).hexdigest()
    return judged


def main() -> None:
    ours = our_text_module()
    real = real_texts()
    fitting = [name for name, text in real.items() if 150 < len(text) < 3500]
    chosen = {name: real[name] for name in random.Random(1).sample(sorted(fitting), 60)}
    documents = [
        {"name": name, "text": text, "verdicts": judge(text, ours)}
        for name, text in {**chosen, **spoilt_texts(real)}.items()
    ]
    made_with = {name: version(name) for name in ("datatrove", "spacy")}
    golden = {"made_with": made_with, "documents": documents}
    (HERE / "clean_golden.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
    everything = [judge(text, ours) for text in real.values() if text.strip()]
    for rule in FILTERS:
        same = sum(j[rule]["datatrove"] == j[rule]["same_words"] for j in everything)
        either = sum((j[rule]["datatrove"] is None) == (j[rule]["same_words"] is None) for j in everything)
        print(f"{rule}: of {len(everything)} texts the same rejection with other words {same}, the same side {either}")


if __name__ == "__main__":
    main()
