"""Models larger than memory can be exchanged: what is held is one tensor, not a file and not a model."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bigtrain.convert import Imported, export_hf, import_hf
from bigtrain.convert.weights import our_shapes
from tests.convert.helpers import END, settings_of

MEGABYTE = 1 << 20


class Made(Mapping[str, Tensor]):
    """Weights that take no memory until they are asked for."""

    def __init__(self, shapes: dict[str, torch.Size]) -> None:
        self.shapes = shapes

    def __getitem__(self, name: str) -> Tensor:
        return torch.full(self.shapes[name], len(name) / 7)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


class Peak:
    """How much this process grew at most, in bytes."""

    def __enter__(self) -> Peak:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        except OSError:
            pytest.skip("needs /proc/self/clear_refs")
        self.before = memory("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.grown = memory("VmHWM") - self.before


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_the_peak_is_that_of_the_largest_tensor_both_ways(
    family: str, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a process of its own, whose allocator gives back what is freed: glibc's would keep some 60 MB for later.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(MEGABYTE))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        largest, total, grown = pool.submit(grown_by_a_round, family, tokenizer_file, tmp_path).result()
    print(family, {key: f"{size / MEGABYTE:.0f} MB" for key, size in grown.items()}, f"of {total / MEGABYTE:.0f}")
    assert total > 150 * MEGABYTE > 6 * largest
    assert max(grown.values()) < 3 * largest + 16 * MEGABYTE


def grown_by_a_round(family: str, tokenizer_file: Path, folder: Path) -> tuple[int, int, dict[str, int]]:
    """Bytes of the largest tensor, of all of them, and by which the process grew while they went out and came back."""
    model = settings_of(
        family,
        hidden_size=768,
        intermediate_size=1536,
        num_hidden_layers=10 if family == "llama" else 3,
        vocab_size=512,
    )
    weights = Made(our_shapes(model))
    sizes = [4 * shape.numel() for shape in weights.shapes.values()]
    with Peak() as out:
        export_hf(weights, model, tokenizer_file, folder / "there", end_of_text=END, dtype=torch.float32)
    assert sum(file.stat().st_size for file in (folder / "there").glob("*.safetensors")) > sum(sizes)
    with Peak() as back:
        import_hf(folder / "there", folder / "ours")
    with Peak() as read:
        for name, tensor in Imported(folder / "ours").items():
            assert tensor.flatten()[-1] == len(name) / 7
            del tensor
    return max(sizes), sum(sizes), {"export": out.grown, "import": back.grown, "read": read.grown}
