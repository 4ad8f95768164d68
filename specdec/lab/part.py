"""A plug-in that options name: `_target_`, and the arguments of its constructor."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Generic, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from specdec.core.errors import UserError, require
from specdec.core.narrowing import is_list, is_mapping
from specdec.core.plug_ins import is_ours, plug_in_name
from specdec.lab.option_names import Points, option_of, renamed

TARGET = "_target_"
CLASS = "a class, my_module.MyClass"
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Part(Generic[T_co]):
    """A class, or a way to make one, and its arguments; nothing is imported before it is needed.

    Args:
        at: the option that it is mounted at, `tree`, which complaints begin with.
        options: its arguments, resolved, and `_target_`: a dotted name.
        chosen_as: its name on the command line; None: it was not chosen by a name.
        points: which options are taken from which others, of all that there are.
    """

    at: str
    options: Mapping[str, Any]
    chosen_as: str | None = None
    points: Points = field(default_factory=dict[str, str], repr=False)

    @property
    def target(self) -> str:
        """The dotted name of what makes it.

        Raises:
            UserError: there is none.
        """
        return _target_of(self.options, self.at)

    @property
    def name(self) -> str:
        """What the command line calls it; otherwise its file, if it is ours, or its target."""
        return self.chosen_as or plug_in_name(self.target)

    @property
    def is_ours(self) -> bool:
        """Whether it is of this package."""
        return is_ours(self.target)

    @property
    def made_by(self) -> Callable[..., object]:
        """The class, or the function that makes an object of it.

        Raises:
            UserError: nothing of that name can be imported.
        """
        return located(self.options, self.at)

    @property
    def kind(self) -> type | None:
        """The class, also of a constructor such as `Medusa.load`; None: only a call would tell."""
        made_by = self.made_by
        kind = getattr(made_by, "__self__", made_by)
        return kind if isinstance(kind, type) else None

    @property
    def names(self) -> Mapping[str, str]:
        """The option that each of its arguments is."""
        return self._names(self.options, self.at)

    def _names(self, options: Mapping[str, Any], at: str) -> Mapping[str, str]:
        return {n: option_of(f"{at}.{n}", self.points) for n in options if n != TARGET}

    def get(self, name: str, default: object = None) -> object:
        """Return one of its arguments, as it was given."""
        return self.options.get(name, default)

    def build(self, **given: Any) -> T_co:
        """Make it, with `given` as further arguments.

        Raises:
            UserError: there is no such class, it takes no such arguments, or it refused them.
        """
        located(self.options, self.at)
        for node, at in _listed(self.options, self.at):
            located(node, at)
        try:
            return instantiate(dict(self.options), _convert_="all", **given)
        except InstantiationException as error:
            cause = _mistake(error, self.at) or error
            if isinstance(cause, UserError):
                raise renamed(cause, self._failing(error)) from None
            raise cause from None

    def _failing(self, error: InstantiationException) -> Mapping[str, str]:
        """Return the names of the options of the part whose constructor failed, or of this one."""
        keys = re.findall(r"^full_key: ([\w.]+)$", str(error), re.MULTILINE)
        node: object = self.options
        for name in keys[-1].split(".") if keys else ():
            node = node.get(name) if is_mapping(node) else None
        if not is_mapping(node) or not keys:
            return self.names
        return self._names(node, f"{self.at}.{keys[-1]}")


def located(node: object, at: str) -> Callable[..., object]:
    """Return what the `_target_` of a node names: a class, or a way to make one.

    Raises:
        UserError: it names nothing that can be imported.
    """
    target = _target_of(node, at)
    try:
        found = resolve_name(target)
    except Exception as error:  # of somebody else's module: whatever importing it raises
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise UserError(f"{at}.{TARGET}={target!r}: cannot be imported ({reason})") from None
    require(callable(found), f"{at}.{TARGET}", target, CLASS)
    return found


def _target_of(node: object, at: str) -> str:
    target = node.get(TARGET) if is_mapping(node) else None
    require(isinstance(target, str), f"{at}.{TARGET}", target, CLASS)
    return str(target)


def _listed(options: Mapping[str, Any], at: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield what is built on the way: the parts in lists of a node."""
    for name, value in options.items():
        for place, each in enumerate(value if is_list(value) else ()):
            if is_mapping(each) and TARGET in each:
                yield each, f"{at}.{name}[{place}]"


def _mistake(error: BaseException, at: str) -> Exception | None:
    """Find what a constructor itself refused its arguments with; None: it broke."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError | OSError):
            return cause
        # Raised by the call itself and not within: the arguments are not those of the class.
        uncalled = cause.__traceback__ is not None and cause.__traceback__.tb_next is None
        if isinstance(cause, TypeError) and uncalled:
            return UserError(f"{at}: {cause}")
        cause = cause.__cause__
    return None
