"""What every entry point shares: Hydra around a task, one line for a user's mistake."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from specdec.core.errors import UserError

if TYPE_CHECKING:
    from specdec.experiments.sweep import Sweepable

EXIT_USER_ERROR = 2
ARM_EXAMPLE = 'arms=["proposer=ngram proposer.max_ngram=4"]'
# Lists of overrides, within which Hydra's grammar wants quotes, and the shell quotes around them.
LISTS = {"arms": f"'{ARM_EXAMPLE}'", "decode": "'decode=[\"prompts.limit=20\"]'"}
EXIT_INTERRUPTED = 130
MISTAKES = (
    UserError,
    HydraException,
    OmegaConfBaseException,
    PermissionError,
    NotADirectoryError,
    FileExistsError,
    KeyboardInterrupt,
)
# What Hydra itself takes; everything else is name=value.
FLAGS = {
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p"),
    *("--run", "-r", "--multirun", "-m", "--shell-completion", "-sc", "--info", "-i"),
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    "--experimental-rerun",
}
LONE_FLAGS = {"--multirun", "-m", "--resolve"}  # that take no value
OURS = {"--dry-run": "dry_run=true"}  # flags that are options


def build(node: Any, **extra: Any) -> Any:
    """Call the `_target_` of a configuration node, with `extra` as further arguments.

    Raises:
        UserError: the constructor refused its arguments.
    """
    try:
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MISTAKES) and not isinstance(cause, HydraException):
                raise cause from None
            cause = cause.__cause__
        raise


def composed(group: str, name: str) -> DictConfig:
    """Compose one plug-in's configuration as `group=name` would, `configs/GROUP/NAME.yaml`."""
    return compose_decode([f"{group}={name}"])[group]


def compose_decode(overrides: Sequence[str]) -> DictConfig:
    """Compose the options of `decode`, within a job of Hydra's or without."""
    if GlobalHydra.instance().is_initialized():
        return hydra.compose("decode", list(overrides))
    # A saved configuration is built without Hydra.
    with hydra.initialize_config_module("specdec.configs", version_base="1.3"):
        return hydra.compose("decode", list(overrides))


def run(
    task: Callable[[DictConfig], object], config_name: str, sweepable: "Sweepable | None" = None
) -> None:
    """Run `task` on the configuration that Hydra composes from the command line.

    A UserError, a mistyped option or an unwritable folder ends in one line on stderr and exit
    status 2; Ctrl-C ends with 130; our own bugs keep their traceback. With `sweepable` the command
    line may stand for many configurations: what fails is then listed in the end, and the exit
    status is 1.
    """
    # Without this, Hydra prints a page about its own exceptions and exits with 1.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if not sys.stderr.isatty():  # progress bars of downloads and of loading weights
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    mistakes: list[BaseException] = []
    status = 0
    try:
        _prepare_arguments()
        with _one_speaks():
            status = _launch(task, config_name, sweepable, mistakes)
    except MISTAKES as error:
        mistakes.append(error)
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        wrong = [argument for argument in sys.argv[1:] if argument.endswith("=null")]
        mistakes.append(UserError(f"{' '.join(wrong)}: expected one that --help names"))
    if mistakes:
        status = _explain(mistakes[0], config_name)
    if status:
        sys.exit(status)


@contextmanager
def _one_speaks() -> Iterator[None]:
    """Silence all but one of the processes that torchrun or accelerate have started."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _launch(
    task: Callable[[DictConfig], object],
    config_name: str,
    sweepable: "Sweepable | None",
    mistakes: list[BaseException],
) -> int:
    """Let Hydra call `task` once, or once for each job of a sweep; return the exit status."""

    # Hydra would print a line of its own about a job that raises.
    def job(config: DictConfig) -> object:
        try:
            return task(config)
        except KeyboardInterrupt:
            raise
        except MISTAKES as error:
            mistakes.append(error)
            return None

    decorate = hydra.main(
        version_base="1.3", config_path="pkg://specdec.configs", config_name=config_name
    )
    if sweepable is not None:
        from specdec.experiments import sweep

        status = sweep.run(config_name, sys.argv[1:], task, sweepable)
        if status is not None:
            return status
    decorate(job)()
    return 0


def _prepare_arguments() -> None:
    arguments = [OURS.get(argument, argument) for argument in sys.argv[1:]]
    _refuse_unknown_flags(arguments)
    sys.argv[1:] = _flags_first(arguments)


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """Reorder: argparse understands a flag among the options only at their beginning or end."""
    flags, options = list[str](), list[str]()
    wants_value = False
    for argument in arguments:
        is_flag = argument.startswith("-")
        is_value = wants_value and not is_flag and "=" not in argument
        (flags if is_flag or is_value else options).append(argument)
        wants_value = is_flag and "=" not in argument and argument not in LONE_FLAGS
    return [*flags, *options]


def _refuse_unknown_flags(arguments: Sequence[str]) -> None:
    """Options are `name=value`; argparse would answer `--name value` with a page of usage."""
    for argument in arguments:
        name = argument.split("=")[0]
        if name.startswith("-") and name not in FLAGS:
            raise UserError(f"{argument}: options are written name=value, sampling.temperature=0.7")


def _explain(error: BaseException, config_name: str) -> int:
    """Print one line about a mistake and return the exit status; raise what is no mistake."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, InstantiationException):
        raise error  # a constructor failed for a reason that no user can mend
    if isinstance(error, UserError):
        return _fail(str(error))
    if isinstance(error, HydraException | OmegaConfBaseException):  # some of them are OSErrors, too
        return _fail(explained(error, config_name, sys.argv[1:]))
    assert isinstance(error, OSError)
    return _fail(f"{error.filename}: cannot be written ({error.strerror})")


def explained(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    """Say in one line what is wrong with the overrides of an entry point, and what was meant."""
    if isinstance(error, OverrideParseException):
        name = error.override.split("=")[0].lstrip("+~")
        if name in LISTS:
            return f"{error.override}: expected texts in quotes, {LISTS[name]}"
    return _mended(_one_line(error), config_name, overrides)


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


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return EXIT_USER_ERROR


def _one_line(error: BaseException) -> str:
    """Join the first sentences of a message: Hydra spreads the useful part over several lines."""
    text = str(error).split("Config search path")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    noise = ("full_key:", "object_type=", "reference_type=")
    return " ".join(line for line in lines if not line.startswith(noise))
