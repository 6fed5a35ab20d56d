"""How launchers meet: thousands in virtual time with measured costs, 256 over real sockets; a line of JSON each."""

from __future__ import annotations

import json

from tests.scale.meeting import measure_meeting, simulate


def main() -> None:
    """Measure all sizes."""
    for nodes in (256, 1024, 2048, 4096):
        print(json.dumps({"what": "in virtual time", **simulate(nodes)}), flush=True)
    print(json.dumps({"what": "over real sockets", "nodes": 256, **measure_meeting(256)}), flush=True)


if __name__ == "__main__":
    main()
