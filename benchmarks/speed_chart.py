"""The bar chart of the README from the newest race of training on a CPU: python benchmarks/speed_chart.py

It draws docs/images/speed.svg from benchmarks/results/train_cpu.json: bars are medians of the rounds, lines ranges.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "train_cpu.json"
CHART = Path(__file__).parents[1] / "docs" / "images" / "speed.svg"
MODEL = "llama-30m"
NAMES = {
    "bigtrain": "bigtrain train",
    "litgpt": "litgpt",
    "nanogpt": "nanoGPT's loop",
    "trainer": "transformers Trainer",
    "trainer-deepspeed": "Trainer with DeepSpeed ZeRO-2",
}
LEFT, WIDTH, RIGHT, ROW, TOP = 240, 430, 90, 34, 44
OURS, THEIRS, INK, FAINT = "#1d4ed8", "#94a3b8", "#0f172a", "#475569"


def chart(result: dict[str, Any]) -> str:
    """The bars of one result file of `benchmarks/train_cpu.py`, as SVG."""
    model = result["models"][MODEL]
    rates = {name: entry["tokens_per_second"] for name, entry in model["contestants"].items()}
    scale = WIDTH / max(rate["max"] for rate in rates.values())
    rows = sorted(rates.items(), key=lambda row: -row[1]["median"])
    size = LEFT + WIDTH + RIGHT, TOP + ROW * len(rows) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{FAINT}">',
        f'<rect width="{size[0]}" height="{size[1]}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="15" font-weight="600" fill="{INK}">Training a Llama of '
        f"{model['parameters'] / 1e6:.0f}M parameters on two CPU cores, tokens/s</text>",
    ]
    for index, (name, rate) in enumerate(rows):
        top, color = TOP + ROW * index, OURS if name == "bigtrain" else THEIRS
        middle = top + 11
        parts += [
            f'<text x="{LEFT - 10}" y="{top + 16}" text-anchor="end" fill="{INK}">{escape(NAMES[name], False)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{rate["median"] * scale:.1f}" height="22" rx="2" fill="{color}"/>',
            f'<line x1="{LEFT + rate["min"] * scale:.1f}" x2="{LEFT + rate["max"] * scale:.1f}" y1="{middle}" '
            f'y2="{middle}" stroke="{INK}" stroke-width="1.5"/>',
            f'<text x="{LEFT + rate["max"] * scale + 10:.1f}" y="{top + 16}">{rate["median"]:,.0f}</text>',
        ]
    repeats, machine = rows[0][1]["repeats"], result["machine"]
    parts.append(
        f'<text x="12" y="{size[1] - 12}" font-size="12">{escape(machine["processor"])}, bf16, '
        f"sequences of {model['sequence_length']:,} tokens; median and range of {repeats} rounds, {result['date']}, "
        f"PyTorch {escape(result['versions']['torch'])}</text>"
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    CHART.write_text(chart(json.loads(RESULT.read_text())), encoding="utf-8")
