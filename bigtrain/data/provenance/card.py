"""The data card of a run: what it was trained on, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bigtrain.base import __version__
from bigtrain.config import DataSettings
from bigtrain.data.order.plan import Plan
from bigtrain.data.store.store import Dataset

Card = dict[str, Any]


def data_card(
    settings: DataSettings, train: Sequence[Dataset], held_out: Sequence[Dataset], plan: Plan, consumed_samples: int
) -> Card:
    """The sources and the processing of the first `consumed_samples` samples of a plan.

    Args:
        settings: the `data` section.
        train: the training datasets of its sources, in their order.
        held_out: their validation datasets.
        plan: the order of the samples.
        consumed_samples: samples done, as in metrics.jsonl and the checkpoints.
    """
    sources = []
    for index, source in enumerate(settings.sources):
        drawn = plan.samples_drawn(consumed_samples)[index :: len(settings.sources)]  # one for each cut
        samples = sum(drawn)
        epochs = sum(
            n / own.sequences for n, own in zip(drawn, plan.sources[index :: len(settings.sources)], strict=True)
        )
        sources.append(
            {
                **source.model_dump(mode="json", exclude={"weight"}),
                "parents": train[index].summary.parents,
                "train": _describe(train[index]),
                "validation": _describe(held_out[index]),
                "samples": samples,
                "share": round(samples / consumed_samples, 6) if consumed_samples else 0.0,
                "epochs": round(epochs, 6),
            }
        )
    summary = train[0].summary
    return {
        "version": __version__,
        "consumed_samples": consumed_samples,
        "sequence_length": settings.sequence_length,
        "packing": settings.packing,
        "plan_id": plan.plan_id,
        "seed": plan.seed,
        "tokenizer": {
            "hash": summary.tokenizer,
            "vocab_size": summary.vocab_size,
            "end_of_text": settings.tokenizer.end_of_text,
            "path": str(settings.tokenizer.path) if settings.tokenizer.path else None,
        },
        "dedup": settings.dedup.method,
        "near_duplicates": settings.dedup.model_dump(exclude={"method"}) if settings.dedup.method == "near" else None,
        "decontaminate": settings.decontaminate and settings.decontaminate.model_dump(mode="json"),
        "validation_fraction": settings.validation.fraction,
        "phases": [phase.model_dump(mode="json") for phase in settings.phases],
        "skip": [skip.model_dump(mode="json") for skip in settings.skip],
        "sources": sources,
    }


def card_as_markdown(card: Card, *, heading: str = "# Data card") -> str:
    """A card as Markdown. `heading` is its title, and gives the level of its other headings."""
    below = "#" * (heading.index(" ") + 1)
    tokenizer, sources = card["tokenizer"], card["sources"]
    origin = (
        f"from `{tokenizer['path']}`" if tokenizer["path"] else "trained on the training documents of these sources"
    )
    seen = [
        (
            source["name"],
            source["kind"],
            _whence(source),
            source["license"] or "not given",
            f"{source['samples']:,}",
            f"{source['share']:.2%}",
            f"{source['epochs']:.3f}",
        )
        for source in sources
    ]
    datasets = [
        (source["name"], split, f"{part['documents']:,}", f"{part['tokens']:,}", f"`{part['dataset_id']}`")
        for source in sources
        for split in ("train", "validation")
        for part in [source[split]]
    ]
    cleaning = [
        (source["name"], f"`{json.dumps(step)}`") for source in sources for step in source["clean"]
    ]  # in the order of their application
    left_out = [(_skipped(skip), skip["reason"]) for skip in card["skip"]]
    lengths = dict.fromkeys([card["sequence_length"], *(phase["sequence_length"] for phase in card["phases"])])
    tokens = " or ".join(f"{length:,}" for length in lengths if length)
    paragraphs = [
        heading,
        f"What the first {card['consumed_samples']:,} samples of {tokens} tokens were made of.",
        f"{below} Sources",
        _table(("source", "kind", "from", "licence", "samples seen", "share", "epochs"), seen),
        *([f"{below} Left out of training", _table(("what", "why"), left_out)] if left_out else []),
        f"{below} Cleaning",
        _table(("source", "rule"), cleaning) if cleaning else "No document was filtered or rewritten.",
        _deduplicated(card),
        _decontaminated(card),
        f"{below} Datasets",
        f"{card['validation_fraction']:.2%} of the documents, chosen by a hash of their origin, are held out for "
        f"validation and never trained on{_own_files(sources)}. "
        "A dataset id is the root of a Merkle tree over every byte.",
        _table(("source", "split", "documents", "tokens", "dataset id"), datasets),
        f"{below} Tokenizer and order",
        f"- Tokenizer `{tokenizer['hash']}`, {tokenizer['vocab_size']:,} tokens, {origin}; "
        f"`{tokenizer['end_of_text']}` ends a document.\n"
        f"- Plan `{card['plan_id']}`, seed {card['seed']}, packing {card['packing']}.\n"
        + "".join(f"- From {phase['from_tokens']:,} tokens on {_changed(phase)}.\n" for phase in card["phases"])
        + f"- Written by bigtrain {card['version']}.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _describe(dataset: Dataset) -> Card:
    return {"dataset_id": dataset.dataset_id, "documents": dataset.summary.documents, "tokens": dataset.tokens}


def _deduplicated(card: Card) -> str:
    if card["dedup"] == "none":
        return "Documents were not deduplicated."
    if card["dedup"] == "exact":
        return "Of equal documents only the first was kept."
    near = card["near_duplicates"]
    return (
        f"Of equal and nearly equal documents only the first was kept: MinHash over {near['ngram']}-grams of words, "
        f"{near['bands']} bands of {near['rows']} rows, which finds half of the pairs with a Jaccard similarity of "
        f"{(1 - 0.5 ** (1 / near['bands'])) ** (1 / near['rows']):.2f}.{_no_words(card, 'compared for equality only')}"
    )


def _decontaminated(card: Card) -> str:
    if card["decontaminate"] is None:
        return "Evaluation texts were not looked for in the documents."
    paths = ", ".join(f"`{path}`" for path in card["decontaminate"]["paths"])
    return (
        f"Documents were removed that share {card['decontaminate']['ngram']} consecutive words with an evaluation text "
        f"in {paths}.{_no_words(card, 'not looked at')}"
    )


def _no_words(card: Card, what: str) -> str:
    """A sentence about sources of token ids, which have no words to compare."""
    names = [source["name"] for source in card["sources"] if source["kind"] == "megatron"]
    return f" Token ids ({', '.join(names)}) were {what}." if names else ""


def _skipped(skip: Card) -> str:
    """An item of data.skip in plain text."""
    if skip["steps"] is not None:
        return f"the batches planned for steps {skip['steps'][0]:,} to {skip['steps'][1]:,}"
    files = [f"files like `{skip['files']}`"] if skip["files"] is not None else []
    ids = ["document " + ", ".join(f"`{document}`" for document in skip["ids"])] if skip["ids"] else []
    return (
        f"{skip['source']}: {' and '.join(files + ids)}, from step {skip['from_step']:,} on (in the batch, no labels)"
    )


def _changed(phase: Card) -> str:
    """What a phase changes, in plain text."""
    mixed = ", ".join(f"{source} {weight:g}" for source, weight in phase["weights"].items())
    changes = (
        (f"mixed {mixed}", mixed),
        (f"in samples of {phase['sequence_length'] or 0:,} tokens", phase["sequence_length"]),
        ("in a new epoch of each source", phase["new_epoch"]),
        ("with another rotation of the model", phase["rope_theta"] or phase["rope_scaling"]),
    )
    return ", ".join(text for text, is_so in changes if is_so)


def _own_files(sources: Sequence[Card]) -> str:
    names = [source["name"] for source in sources if source["held_out_path"]]
    return f"; of {', '.join(names)}, files of their own are" if names else ""


def _whence(source: Card) -> str:
    own = {"huggingface": ("path", "subset", "split"), "python_stdlib": ("content",)}
    whence = " ".join(f"`{source[key]}`" for key in own.get(source["kind"], ("path", "task")) if source[key])
    return f"{whence}, held out: `{source['held_out_path']}`" if source["held_out_path"] else whence


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
