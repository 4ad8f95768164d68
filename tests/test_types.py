"""What is public says what it returns: `Any` would switch a type checker off behind it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What holds values one by one; options and rows of JSON are mappings, whose values may be anything.
HOLDERS = {
    *("Optional", "Union", "Callable", "Iterator", "Iterable", "Generator", "Awaitable"),
    *("list", "tuple", "set", "frozenset", "Sequence", "Collection"),
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_any(annotation: ast.expr) -> bool:
    """Whether a type is `Any`, or `Any` may come out of it."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return is_any(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.BinOp):
        return is_any(annotation.left) or is_any(annotation.right)
    if isinstance(annotation, ast.Subscript) and last_word(annotation.value) in HOLDERS:
        inner = annotation.slice
        return any(map(is_any, inner.elts if isinstance(inner, ast.Tuple) else [inner]))
    return last_word(annotation) == "Any"


def last_word(name: ast.expr) -> str:
    return name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")


def functions(body: list[ast.stmt]) -> Iterator[Function]:
    """Yield the functions of a module and the methods of its classes."""
    for each in body:
        if isinstance(each, Function):
            yield each
        elif isinstance(each, ast.ClassDef):
            yield from functions(each.body)


def untyped(source: str) -> list[str]:
    """Name the public functions that return `Any`."""
    return [
        each.name
        for each in functions(ast.parse(source).body)
        if not each.name.startswith("_") and each.returns is not None and is_any(each.returns)
    ]


@pytest.mark.parametrize("type_", ["Any", "Any | None", "Callable[..., Any]", "'list[Any]'"])
def test_any_is_seen(type_: str) -> None:
    assert untyped(f"class A:\n    @property\n    def a(self) -> {type_}: ...") == ["a"]


@pytest.mark.parametrize("type_", ["object", "dict[str, Any]", "Mapping[str, Any] | None"])
def test_what_says_enough_is_left_alone(type_: str) -> None:
    assert untyped(f"def a() -> {type_}: ...") == []


def test_nothing_public_returns_any() -> None:
    files = sorted((ROOT / "specdec").rglob("*.py"))
    found = [f"{file}: {n}" for file in files for n in untyped(file.read_text(encoding="utf-8"))]
    assert not found
