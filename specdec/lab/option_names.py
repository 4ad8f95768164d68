"""Which option of the command line a parameter of a constructor is.

A constructor complains of its own parameters, `num_layers=0: expected ...`, wherever it is used.
Who built it knows the rest: the option that it is mounted at, and the option that this points to.
"""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from specdec.core.errors import UserError

# What an option is taken from, another option or a node: "proposer.tree" from "tree".
Points = Mapping[str, str]


def option_of(name: str, points: Points) -> str:
    """Return the option that an option is taken from, however often one points to another."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        there = points.get(".".join(parts[:count]))
        if there is not None:
            return option_of(".".join([there, *parts[count:]]), points)
    return name


@contextmanager
def named_options(*names: Mapping[str, str]) -> Generator[None]:
    """Within it complaints of parameters bear the names of options.

    Args:
        names: the options of the parameters of each part that may complain, as `Part.names` says.
    """
    try:
        yield
    except UserError as error:
        for each in names:
            error = renamed(error, each)
        raise error from None


def renamed(error: UserError, names: Mapping[str, str]) -> UserError:
    """Return the same error with the names of options in place of those of parameters."""
    if not names:
        return error
    either = "|".join(map(re.escape, names))
    # `num_layers=0: ...` or `paths: ...` at the beginning, `(num_layers=0)` further on; no values.
    pattern = re.compile(rf"'[^']*'|\"[^\"]*\"|^({either})(?=[=:])|(?<=[ (])({either})(?==)")

    def option(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return found[0] if name is None else names[name]

    said = (pattern.sub(option, part) if isinstance(part, str) else part for part in error.args)
    error.args = tuple(said)
    return error
