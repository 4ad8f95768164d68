"""Build what a configuration names: `_target_` and the arguments of its constructor."""

import copy
from collections.abc import Iterator
from typing import Any

from hydra._internal.utils import _locate
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from specdec.command.mistakes import is_mistake
from specdec.core.errors import UserError
from specdec.lab.option_names import failing, points_elsewhere, with_options


def build(node: Any, **extra: Any) -> Any:
    """Call the `_target_` of a configuration node, with `extra` as further arguments.

    Raises:
        UserError: there is no such class, it takes no such arguments, or it refused them.
    """
    located(node)
    for part in _parts(node):
        located(part)
    try:
        return instantiate(_apart(node), _convert_="all", **extra)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if is_mistake(cause) and not isinstance(cause, HydraException):
                named = isinstance(cause, UserError)
                raise with_options(cause, failing(node, error)) if named else cause from None
            # Raised by the call itself and not within: the arguments are not those of the class.
            uncalled = cause.__traceback__ is not None and cause.__traceback__.tb_next is None
            if isinstance(cause, TypeError) and uncalled:
                raise UserError(f"{node._get_full_key(None)}: {cause}") from None
            cause = cause.__cause__
        raise


def _apart(node: DictConfig) -> Any:
    """Copy a node and all that it points to: `instantiate` resolves that where it stands."""
    if not points_elsewhere(node):
        return node
    return OmegaConf.select(copy.deepcopy(node._get_root()), str(node._get_full_key(None))) or node


def _parts(node: DictConfig) -> Iterator[DictConfig]:
    """Yield what is built on the way: the parts in lists of a node."""
    for name in node:
        value = None if OmegaConf.is_missing(node, name) else node[name]
        for part in value if isinstance(value, ListConfig) else ():
            if isinstance(part, DictConfig) and "_target_" in part:
                yield part


def located(node: Any) -> Any:
    """Return what the `_target_` of a configuration node names: a class, or a way to make one.

    Raises:
        UserError: it names nothing that can be imported.
    """
    key = node._get_full_key(None)
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if not isinstance(target, str):
        raise UserError(f"{key}._target_={target!r}: expected a class, my_module.MyClass")
    try:
        return _locate(target)
    except Exception as error:  # of somebody else's module: whatever importing it raises
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {cause}".replace("\n", " ")
        raise UserError(f"{key}._target_={target!r}: cannot be imported ({reason})") from None
