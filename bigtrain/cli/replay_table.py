"""A replayed step as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bigtrain.cli.printing import echo, print_table

if TYPE_CHECKING:
    from bigtrain.trials import Replay

EXCERPT = 300
"""Characters of a document that are shown."""


def print_replay(found: Replay, *, documents: int, text: bool) -> None:
    """Print the documents with the highest loss, then the result of the step and what the run recorded."""
    shown = found.documents[:documents]
    if text:
        for document in shown:
            origin = f"{document.source}:{document.file}:{document.position}"
            echo(f"--- loss {document.loss:.4f} over {document.loss_tokens} tokens, {origin}")
            echo((document.text or "")[:EXCERPT])
    else:
        rows = [
            (
                f"{document.source}:{document.file}:{document.position}",
                f"{document.loss:.4f}",
                document.loss_tokens,
                f"{document.start}-{document.end}",
                document.id,
            )
            for document in shown
        ]
        print_table(f"Step {found.step} of {found.run}", ("document", "loss", "labels", "tokens", "id"), rows)
    if len(shown) < len(found.documents):
        echo(f"{len(shown)} of {len(found.documents)} documents, those with the highest loss")
    for change in found.changed:
        echo(f"{change.key} was {change.then} at the checkpoint and is {change.now} now")
    echo(f"loss {found.loss!r}, gradient norm {found.grad_norm!r}, batch digest {found.batch_digest}")
    echo(_compared(found))


def _compared(found: Replay) -> str:
    if found.recorded is None:
        return "metrics.jsonl has no such step with this batch"
    if found.same_bits:
        return f"the same in metrics.jsonl, bit for bit, at {found.recorded['world_size']} process(es)"
    there = f"loss {found.recorded['loss']!r}, gradient norm {found.recorded['grad_norm']!r}"
    if found.recorded["world_size"] == found.world_size:
        return f"metrics.jsonl has {there}: not the same, though at as many processes"
    return (
        f"metrics.jsonl has {there}, at {found.recorded['world_size']} process(es), which sum in another order than "
        f"{found.world_size}: to compare bit for bit, replay under torchrun with as many"
    )
