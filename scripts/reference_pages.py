"""A hook of MkDocs: pages of the API reference list the public names of specdec by themselves.

A line `public names: core decoding` in a page becomes an entry for each public name whose home is
in `specdec.core` or `specdec.decoding`, so that a new name is documented by being exported.
"""

import re

import specdec

MARK = re.compile(r"^public names: (.+)$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the line in a page's text; MkDocs calls it for every page."""
    return MARK.sub(lambda found: entries(found[1].split()), markdown)


def entries(packages: list[str]) -> str:
    """Return what mkdocstrings replaces with the documentation of each name."""
    names = [name for name in public_names() if home(name) in packages]
    return "\n\n".join(f"::: specdec.{name}" for name in names)


def public_names() -> list[str]:
    """Return what `import specdec` offers."""
    return [name for name in dir(specdec) if not name.startswith("_")]


def home(name: str) -> str:
    """Return the package of specdec that defines a public name."""
    return getattr(specdec, name).__module__.split(".")[1]
