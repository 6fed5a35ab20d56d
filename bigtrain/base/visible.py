"""Text for a terminal or a page that may hold anything: a corpus, a tokenizer, a name or a server's answer wrote it."""

from __future__ import annotations

_TABLE: dict[int, int | str] = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_TABLE[0x7F] = 0x2421
_TABLE |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
_TABLE |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # bidirectional
_TABLE |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


def show_controls(text: str) -> str:
    """Show characters that would command a terminal, or reorder a line, by others; tabs and line feeds stay.

    ESC is ␛ and carriage return is ␍; the control characters of 0x80 to 0x9f, and those that reverse the direction of
    text, are backslash escapes. Half of a surrogate pair, which cannot be written, is the replacement character.
    """
    return text if text.isascii() and text.isprintable() else text.translate(_TABLE)
