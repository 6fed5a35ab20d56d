"""What a save, a verification and a load of a 70B model at ZeRO 3 cost rank 0 and another one; a line of JSON each."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass

from tests.scale.checkpoints import llama_70b, report

SIZES = (1024, 4096, 16384)


def main() -> None:
    """Measure all sizes."""
    shapes = llama_70b()
    for size in SIZES:
        for what, value in report(size, shapes).items():
            figures = asdict(value) if is_dataclass(value) and not isinstance(value, type) else {"value": value}
            print(json.dumps({"what": what, "ranks": size, **figures}, default=str), flush=True)


if __name__ == "__main__":
    main()
