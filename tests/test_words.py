"""One word for one thing: retired names do not come back (the glossary: CONTRIBUTING.md)."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each said several things; what to write in its place is in the glossary.
RETIRED = {"told", "asked", "facts", "law", "laws", "target_probs"}
FOLDERS = ("specdec", "scripts", "benchmarks", "experiments", "examples", "tests")
# Nor do these stand in prose; the row of the glossary that retires one may name it.
NOT_IN_PROSE = re.compile(r"\b(laws?|shall|be it|go(es)? by)\b", re.IGNORECASE)
PAGES = ("README.md", "CONTRIBUTING.md", *("docs/**/*.md", "configs/**/*.yaml"))
GLOSSARY = re.compile(r"^\| (?P<word>[^|]+) \| [^|]+ \| (?P<code>[^|]+) \|$", re.MULTILINE)


def names_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield what a file gives names to: variables, parameters, fields, functions and classes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def is_retired(name: str) -> bool:
    """Whether a name is a retired word, or has one as its last part."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_")
    return any(words == word or words.endswith(f"_{word}") for word in RETIRED)


@pytest.mark.parametrize("folder", FOLDERS)
def test_retired_words_name_nothing(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in [(1, path.stem), *names_of(path)]
        if is_retired(name)
    ]
    assert not found, "see the glossary in CONTRIBUTING.md: " + ", ".join(found)


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the comments and docstrings of a file of Python, line by line."""
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and ast.get_docstring(node) is not None:
                lines = (ast.get_docstring(node, clean=False) or "").splitlines()
                yield from enumerate(lines, start=first.lineno)


@pytest.mark.parametrize("folder", FOLDERS)
def test_retired_words_are_in_no_prose(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != Path(__file__)
        for number, line in prose_of(path)
        if NOT_IN_PROSE.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("pages", PAGES)
def test_retired_words_are_on_no_page(pages: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted(ROOT.glob(pages))
        for line in path.read_text(encoding="utf-8").splitlines()
        if NOT_IN_PROSE.search(line) and not line.startswith("| distribution |")
    ]
    assert list(ROOT.glob(pages)), f"{pages}: no such page"
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "retired"),
    [("told", True), ("_head_laws", True), ("Asked", True), ("HeadLaws", True), ("lawn", False)],
)
def test_words_are_found_in_names(name: str, retired: bool) -> None:
    assert is_retired(name) is retired


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path in sorted((ROOT / "specdec").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_names_of_the_glossary_exist() -> None:
    """Every name in its last column is one of the code's."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = list(GLOSSARY.finditer(text.partition("## Glossary")[2]))
    assert len(rows) > 10
    sources = "\n".join(path.read_text() for path in (ROOT / "specdec").rglob("*.py"))
    for row in rows[1:]:  # behind the heading
        for name in re.findall(r"`([^`]+)`", row["code"]):
            assert re.search(rf"\b{re.escape(name)}\b", sources), f"{row['word']}: {name}"
