#!/usr/bin/env python3
"""Labelled reviews from the source archive of vaderSentiment (Hutto and Gilbert, 2014; MIT licence).

    pip download --no-deps --no-binary :all: vaderSentiment
    launch/label_reviews.py vaderSentiment-3.3.2.tar.gz OUT [WORDNET [DICTIONARY]]

Each sentence of a review has a rating from -4 to 4, the mean of twenty people's.

OUT/train.jsonl       sentences of reviews of films and goods that are rated beyond half a point: `text`, and `label`,
                      positive or negative
OUT/held_out.jsonl    every tenth of them, which is in no other file
OUT/sentences.jsonl   all others, with sentences of editorials and tweets, as `text` alone
OUT/glosses.jsonl     with a folder of WordNet (data.noun, data.verb, ...): words with their definitions and examples
OUT/dictionary.jsonl  with a dictionary in the format of dictd (gcide.dict.dz): its entries, as `text`
"""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

REVIEWS = ("movieReviewSnippets", "amazonReviewSnippets")
OTHERS = ("nytEditorialSnippets", "tweets")
NEUTRAL = 0.5
"""A rating no further from 0 than this is left out."""
SHORTEST_ENTRY = 40
"""Characters of a dictionary's entry; shorter ones only refer to others."""
HELD_OUT = 10
"""One labelled sentence in so many is held out."""


def main() -> None:
    """Write both files."""
    if len(sys.argv) not in (3, 4, 5):
        sys.exit(__doc__)
    archive, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    rated = {name: list(sentences(archive, name)) for name in (*REVIEWS, *OTHERS)}
    reviews = [
        {"text": text, "label": "positive" if rating > 0 else "negative"}
        for name in REVIEWS
        for rating, text in rated[name]
        if abs(rating) > NEUTRAL
    ]
    held_out = reviews[::HELD_OUT]
    train = [review for number, review in enumerate(reviews) if number % HELD_OUT]
    unseen = {review["text"] for review in held_out}
    texts = [{"text": text} for own in rated.values() for _, text in own if text not in unseen]
    files = {"train": train, "held_out": held_out, "sentences": texts}
    if len(sys.argv) > 3:
        files["glosses"] = [{"text": text} for text in glosses(Path(sys.argv[3]))]
    if len(sys.argv) > 4:
        files["dictionary"] = [{"text": text} for text in entries(Path(sys.argv[4]))]
    for name, records in files.items():
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    print(f"{out}: {len(train):,} labelled sentences of reviews, {len(held_out):,} held out, {len(texts):,} sentences")


def sentences(archive: Path, name: str) -> Iterator[tuple[float, str]]:
    """Rating and text of the sentences of one collection, which lies in an archive inside the archive."""
    with tarfile.open(archive) as outer:
        inner = next(each for each in outer.getmembers() if each.name.endswith("hutto_ICWSM_2014.tar.gz"))
        content = outer.extractfile(inner)
        assert content is not None
        with tarfile.open(fileobj=io.BytesIO(content.read())) as collections:
            file = collections.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            assert file is not None
            for line in file.read().decode("utf-8", errors="replace").splitlines():
                _, rating, text = line.split("\t", 2)
                yield float(rating), text.strip()


def glosses(folder: Path) -> Iterator[str]:
    """The synsets of WordNet as text: `word, another word: definition; "example"` (wndb(5WN))."""
    for path in sorted(folder.glob("data.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            head, bar, gloss = line.partition("|")
            if line.startswith("  ") or not bar:  # the licence stands before the synsets
                continue
            fields = head.split()
            words = [fields[4 + 2 * number].replace("_", " ").split("(")[0] for number in range(int(fields[3], 16))]
            yield f"{', '.join(words)}: {gloss.strip()}"


def entries(file: Path) -> Iterator[str]:
    """The entries of a dictionary as `word: text`, without the names of its sources. An entry starts at a margin."""
    content = gzip.decompress(file.read_bytes()).decode("utf-8", errors="ignore")
    for entry in re.split(r"\n(?=\S)", content):
        head, _, body = entry.partition("\n")
        text = " ".join(re.sub(r"\[(?:1913 Webster|PJC|WordNet[^\]]*|[^\]]*Webster[^\]]*)\]", "", body).split())
        if len(text) > SHORTEST_ENTRY:
            yield f"{head.split(chr(92))[0].strip().lower()}: {text}"


if __name__ == "__main__":
    main()
