"""Numbers in a form for people."""

from __future__ import annotations


def gibibytes(count: float) -> str:
    """Format a number of bytes: 12.5 MiB, 3.20 GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Format seconds: 42s, 3m05s, 2h07m, 3d04h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def quantity(value: float) -> str:
    """Format a count with three significant figures: 950, 12.3k, 6.84M, 8.03B."""
    for divisor, suffix in ((1, ""), (1e3, "k"), (1e6, "M"), (1e9, "B")):
        if value < 999.5 * divisor:
            return f"{value / divisor:.3g}{suffix}"
    return f"{value / 1e12:.3g}T"
