"""What ranks hold of the training state, joined on the way to rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import xxhash

from bigtrain.checkpoint.division import Division
from bigtrain.checkpoint.fragment import Fragment
from bigtrain.checkpoint.manifest import FileChecksum


@dataclass
class Contents:
    """What some ranks, which follow each other, report about their parts of the state."""

    shapes: dict[str, list[int]]
    """Shapes of the whole parameters of which they have a part."""
    kinds: set[str]
    division: Division
    """Which elements each of them has."""
    partner: str
    """Of one rank: a hash that is equal on ranks which hold the same pieces and each save a part of them. Empty for a
    rank that shares no piece."""
    files: list[tuple[str, FileChecksum, str]] = field(default_factory=list)
    """What they have written, in rank order: the name of the file, its checksum and the rank's partner."""

    @classmethod
    def of(cls, fragments: Sequence[Fragment], rank: int) -> Contents:
        """The report for all fragments that a rank holds, before they are divided among its partners."""
        held = [(f.name, f.kind, f.offset, f.shard, f.data.numel()) for f in fragments if f.holders > 1]
        return cls(
            {fragment.name: list(fragment.shape) for fragment in fragments},
            {fragment.kind for fragment in fragments},
            Division.of(fragments, rank),
            xxhash.xxh3_64_hexdigest(repr(sorted(held, key=repr)).encode()) if held else "",
        )

    def in_file(self, name: str, checksum: FileChecksum) -> Contents:
        """The same, once this rank has written its file."""
        files, division = [(name, checksum, self.partner)], self.division.copied()  # `merged` changes it
        return replace(self, shapes=dict(self.shapes), kinds=set(self.kinds), files=files, division=division)

    def merged(self, higher: Contents) -> Contents:
        """Together with those of the ranks that follow."""
        self.shapes |= higher.shapes
        self.kinds |= higher.kinds
        self.division = self.division.merged(higher.division)
        self.files += higher.files
        return self
