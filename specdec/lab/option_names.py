"""Which option of the command line a parameter of a constructor is.

A constructor complains of its own parameters, `num_layers=0: expected ...`, wherever it is used.
The configuration knows the rest: the node it is built from, or the option that this points to.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from hydra.errors import InstantiationException
from omegaconf import DictConfig, Node

from specdec.core.errors import UserError

POINTS_TO = re.compile(r"\$\{([\w.]+)\}")


@contextmanager
def named_options(node: DictConfig) -> Iterator[None]:
    """Within it complaints of what is built from a node bear the names of options."""
    try:
        yield
    except UserError as error:
        raise with_options(error, node) from None


def with_options(error: UserError, node: DictConfig) -> UserError:
    """Return the same error with the names of options in place of those of parameters."""
    names = option_names(node)
    if not names:
        return error
    either = "|".join(map(re.escape, names))
    # `num_layers=0: ...` or `paths: ...` at the beginning, `(num_layers=0)` further on; no values.
    pattern = re.compile(rf"'[^']*'|\"[^\"]*\"|^({either})(?=[=:])|(?<=[ (])({either})(?==)")

    def option(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return found[0] if name is None else names[name]

    told = (pattern.sub(option, part) if isinstance(part, str) else part for part in error.args)
    error.args = tuple(told)
    return error


def failing(node: DictConfig, error: InstantiationException) -> DictConfig:
    """Return the part of a node whose constructor has failed, or the node itself."""
    keys = re.findall(r"^full_key: ([\w.]+)$", str(error), re.MULTILINE)
    own = node._get_full_key(None)
    if not keys or keys[-1] == own:
        return node
    return _part(node, keys[-1].removeprefix(f"{own}." if own else "")) or node


def option_names(node: DictConfig) -> Mapping[str, str]:
    """Return the option of each parameter of a node."""
    places = {str(name): _place(node, str(name)) for name in node if name != "_target_"}
    return {name: str(home._get_full_key(last)) for name, (home, last) in places.items()}


def points_elsewhere(node: DictConfig) -> bool:
    """Whether a parameter is another node."""
    places = [_place(node, str(name)) for name in node]
    return any(
        home is not node and isinstance(home._get_node(last), DictConfig) for home, last in places
    )


def _part(node: DictConfig, path: str) -> DictConfig | None:
    for name in path.split("."):
        home, last = _place(node, name)
        found = home._get_node(last)
        if not isinstance(found, DictConfig):
            return None
        node = found
    return node


def _place(node: DictConfig, name: str) -> tuple[DictConfig, str]:
    """Return where a value stands: follow `${data.max_length}`, but nothing that is computed."""
    found = node._get_node(name)
    told = found._value() if isinstance(found, Node) else None
    points = POINTS_TO.fullmatch(told) if isinstance(told, str) else None
    root = node._get_root()
    if points is None or not isinstance(root, DictConfig):
        return node, name
    home, _, last = points[1].rpartition(".")
    there = _part(root, home) if home else root
    return (node, name) if there is None or last not in there else _place(there, last)
