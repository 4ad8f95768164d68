"""What a user can mend is said in one line; everything else is our own bug and keeps its traceback.

Whether it is the one or the other is decided here, by the class of what was raised and by where it
came from: what a disk or a folder refuses is the user's, wherever it happens.
"""

import difflib
import errno
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from specdec.command.chosen_experiment import INSTEAD
from specdec.core.errors import UserError

ARM_EXAMPLE = 'arms=["proposer=ngram proposer.max_ngram=4"]'
# Lists of overrides, within which Hydra's grammar wants quotes, and the shell quotes around them.
LISTS = {"arms": f"'{ARM_EXAMPLE}'", "decode": "'decode=[\"prompts.limit=20\"]'"}
# What Hydra leaves to the file system: folders that cannot be made, disks that are full.
REFUSED = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO),
}
OF_HYDRA = (HydraException, OmegaConfBaseException)
KEY = r"[+~]{0,2}[\w./@:-]+"


def is_mistake(error: BaseException) -> bool:
    """Whether a user can mend it."""
    if isinstance(error, InstantiationException):
        return False  # a constructor failed; `Part.build` makes a UserError of what can be mended
    if isinstance(error, UserError | HydraException | OmegaConfBaseException):
        return True
    if isinstance(error, OSError):
        return error.errno in REFUSED
    return isinstance(error, ValueError) and "Config group override" in str(error)


def mistake_of(error: BaseException, config_name: str, overrides: Sequence[str]) -> str | None:
    """Say in one line what the user can mend; None if it is our own bug."""
    if not is_mistake(error):
        return None
    if isinstance(error, UserError):
        return " ".join(str(error).split("\n"))
    if isinstance(error, HydraException | OmegaConfBaseException):  # some of them are OSErrors, too
        return explained(error, config_name, overrides)
    if isinstance(error, OSError):
        place = error.filename2 or error.filename or "output"
        return f"{place}: cannot be written ({error.strerror})"
    wrong = [override for override in overrides if override.endswith("=null")]
    return f"{' '.join(wrong)}: expected one that --help names"


def explained(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    """Say in one line what is wrong with the overrides of an entry point, and what was meant."""
    if isinstance(error, OverrideParseException):
        return _unparsed(error)
    message = _one_line(error)
    several = re.search(r"Ambiguous value for argument '(.*)' 1\. ", message)
    if several is not None:
        quoted = _quoted(several.group(1))
        way = f" a comma in one value wants quotes, {quoted};" if quoted else ""
        tried = INSTEAD.get(config_name, "several values are tried with -m")
        return f"{several.group(1)}: {tried};{way} a list wants brackets"
    taken = re.search(r"An item is already at '([^']+)'", message)
    if taken is not None:
        return f"+{taken.group(1)}: there is such an option; expected {taken.group(1)}=..."
    if "does not support sweep type" in message:
        found = [text for text in overrides if "interval(" in text]
        return f"{' '.join(found)}: no values to try; expected a list of them, 0,0.5,1"
    return _mended(message, config_name, overrides)


def _unparsed(error: OverrideParseException) -> str:
    """Say how a value must be written that Hydra's grammar does not understand."""
    text = error.override
    name = text.split("=")[0].lstrip("+~")
    if name in LISTS:
        return f"{text}: expected texts in quotes, {LISTS[name]}"
    quoted = _quoted(text)
    if quoted is not None:
        return f"{text}: this value wants quotes, {quoted}"
    return _one_line(error)


def _quoted(override: str) -> str | None:
    """Return an override with its value in quotes, and in the shell's; None if that is no help."""
    key, equals, value = override.partition("=")
    if not equals or re.fullmatch(KEY, key) is None:
        return None
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (r"\"" if m[2] else ""), value)
    better = f'{key}="{escaped}"'
    try:
        read = OverridesParser.create().parse_override(better)
    except HydraException:
        return None
    return shlex.quote(better) if str(read.value()) == value else None


def _mended(message: str, config_name: str, overrides: Sequence[str]) -> str:
    """Name the option that was meant, where Hydra only says which one there is not."""
    found = re.search(r"Could not override '([^']+)'", message)
    if found is None:
        return message
    wrong = found.group(1)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("specdec.configs", version_base="1.3"):
        try:
            names = _names(hydra.compose(config_name, _chosen_plug_ins(overrides)))
        except HydraException:  # this entry point takes no such plug-ins
            names = _names(hydra.compose(config_name))
    if config_name == "compare" and wrong.startswith("proposer."):
        return f"{wrong}: every arm has its own proposer; put it into an arm, {ARM_EXAMPLE}"
    node = wrong.rpartition(".")[0]
    if wrong in names and node:
        return f"{node}=...: expected the options of {node} one by one, {wrong}=..."
    if wrong in names:
        return f"{wrong}: cannot be chosen here"
    return f"{wrong}: no such option; {_hint(wrong, names)}"


def require_known(config_name: str, overrides: Sequence[str]) -> None:
    """Refuse `+x` and `++x` that nothing reads, and `~x`: it would be as if nothing had been said.

    A plug-in may be given an argument that its file does not mention. Within a job of Hydra's.

    Raises:
        UserError: there is no such option, or it cannot be left out.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for each in parsed:
        if each.is_delete() and not each.is_hydra_override():
            expected = f"a value for it, {each.key_or_group}=null"
            raise UserError(f"{each.input_line}: options cannot be left out; expected {expected}")
    added = [each for each in parsed if (each.is_add() or each.is_force_add())]
    added = [each for each in added if _is_option(each)]
    if not added:
        return
    others = [str(each.input_line) for each in parsed if each not in added]
    known = hydra.compose(config_name, others)
    for each in added:
        if not _is_read(known, each.key_or_group):
            hint = _hint(each.key_or_group, _names(known))
            raise UserError(f"{each.input_line}: no such option; {hint}")


def _is_option(override: Override) -> bool:
    """Whether it is neither Hydra's own nor the choice of a file."""
    of_group = "/" in override.key_or_group or override.package is not None
    return not (of_group or override.is_hydra_override())


def _is_read(config: DictConfig, name: str) -> bool:
    """Whether there is such an option, or a plug-in that takes such an argument."""
    node_name, _, last = name.rpartition(".")
    node: Any = OmegaConf.select(config, node_name) if node_name else config
    if not isinstance(node, DictConfig):
        return False
    return last in node or "_target_" in node  # `Part.build` says what a plug-in does not take


def _hint(wrong: str, names: Sequence[str]) -> str:
    """Say what may have been meant: an option beside it, else one of that name elsewhere."""
    node, _, last = wrong.rpartition(".")
    beside = [name for name in names if name.rpartition(".")[0] == node]
    for known in (beside, names):
        by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
        near = difflib.get_close_matches(last, by_last, n=1)
        if near:
            return f"did you mean {by_last[near[0]]}?"
    options = [name for name in beside if not name.endswith("_")]  # _target_ is Hydra's
    return f"there are {', '.join(options)}" if node and options else "--help lists all"


def _chosen_plug_ins(arguments: Sequence[str]) -> list[str]:
    """Return those arguments that choose a file of a config group, `tree=sampled`."""
    configs = files("specdec.configs")
    pairs = [(argument, *argument.split("=", 1)) for argument in arguments if "=" in argument]
    return [
        argument
        for argument, group, name in pairs
        if group.isidentifier() and configs.joinpath(group, f"{name}.yaml").is_file()
    ]


def _names(node: DictConfig, prefix: str = "") -> list[str]:
    names: list[str] = []
    for key in node:
        value = node._get_node(key)
        names.append(f"{prefix}{key}")
        if isinstance(value, DictConfig):
            names += _names(value, f"{prefix}{key}.")
    return names


def _one_line(error: BaseException) -> str:
    """Join the first sentences of a message: Hydra spreads the useful part over several lines."""
    text = str(error).split("Config search path")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    noise = ("full_key:", "object_type=", "reference_type=")
    return " ".join(line for line in lines if not line.startswith(noise))
