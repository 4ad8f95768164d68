"""The code of plug-ins: results belong to the very lines that they were computed by.

Of `specdec` itself `provenance` has the version and the state of its checkout. What a
plug-in from elsewhere does is known by its source: its module, and every module that it imports
which is neither of the standard library nor installed from a package index.
"""

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import ModuleType

from specdec.core.digest import digest, digest_of

OURS = "specdec"
INSTALLED = {"site-packages", "dist-packages"}
_known: dict[str, tuple[ModuleType, str]] = {}


def is_ours(target: str) -> bool:
    """Whether a `_target_` names something of this package."""
    return target.split(".")[0] == OURS


def plug_in_name(target: str) -> str:
    """Return the file that a class of ours, or its constructor, lives in; of others the target.

    So nobody's own class is ever taken for one of ours that lives in a file of the same name.
    """
    if not is_ours(target):
        return target
    parts = target.split(".")
    classes = [number for number, part in enumerate(parts) if part[:1].isupper()]
    return parts[classes[0] - 1 if classes else -2]


def code_digest(target: str) -> str | None:
    """Return a digest of the source that a `_target_` runs; None of ours, or where there is none.

    It is of the code as this process has imported it: a file that is edited later is another
    process's code. A target that cannot be imported has none: whoever builds it says why.
    """
    if is_ours(target):
        return None
    module = _imported_module(target)
    if module is None:
        return None
    known = _known.get(target)
    if known is None or known[0] is not module:
        parts = [f"{name} {digest(file)}" for name, file in sources_of(module).items()]
        if not parts:  # a module without a file
            return None
        known = _known[target] = module, digest_of("\n".join(parts).encode())
    return known[1]


def _imported_module(target: str) -> ModuleType | None:
    """Import the longest part of a dotted name that is a module."""
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            return import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        except (Exception, SystemExit):  # what other people's code does is not known
            return None
    return None


def sources_of(module: ModuleType) -> dict[str, Path]:
    """Return the files of a module and of what it imports, by the names of their modules."""
    found: dict[str, Path] = {}
    own = module.__name__.split(".")[0]
    waiting = [module.__spec__ or _spec(module.__name__)]
    while waiting:
        spec = waiting.pop()
        file = None if spec is None else _file_of(spec)
        if spec is None or file is None or spec.name in found:
            continue
        found[spec.name] = file
        waiting += [_spec(name) for name in _imports(spec, file) if _is_own(name, own)]
    return dict(sorted(found.items()))


def _is_own(name: str, own: str) -> bool:
    """Whether a module is of the plug-in: of its package, or written beside it."""
    top = name.split(".")[0]
    if top in (OURS, "") or top in sys.stdlib_module_names:
        return False
    if top == own:
        return True
    spec = _spec(top)
    file = None if spec is None else _file_of(spec)
    places = [file] if file is not None else [*((spec and spec.submodule_search_locations) or ())]
    return bool(places) and not any(INSTALLED & set(Path(place).parts) for place in places)


def _spec(name: str) -> ModuleSpec | None:
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    if loaded is not None:
        return loaded
    try:
        return find_spec(name)
    except (Exception, SystemExit):  # a package above it may do anything when it is imported
        return None


def _file_of(spec: ModuleSpec) -> Path | None:
    file = Path(spec.origin) if spec.origin and spec.has_location else None
    return file if file is not None and file.is_file() else None


def _imports(spec: ModuleSpec, file: Path) -> Iterator[str]:
    """Yield what a module may import, the packages that it is in included; not all are modules."""
    if "." in spec.name:
        yield spec.name.rpartition(".")[0]
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = spec.name if spec.submodule_search_locations else spec.name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _imports_from(node, package)


def _imports_from(node: ast.ImportFrom, package: str) -> Iterator[str]:
    try:
        name = resolve_name("." * node.level + (node.module or ""), package)
    except ImportError:  # more dots than packages
        return
    yield name
    yield from (f"{name}.{alias.name}" for alias in node.names)
