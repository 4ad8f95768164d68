"""Escapes as people write them on a command line, where neither shell nor Hydra resolves them."""

import re

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescaped(text: str) -> str:
    """Return what was meant by a backslash and n, t, r or another backslash; others stay."""
    return re.sub(r"\\([ntr\\])", lambda found: ESCAPES[found[1]], text)
