"""What every entry point shares: Hydra around a task, one line for a user's mistake."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import _locate, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from specdec.experiments.experiment import require_command, require_own
from specdec.experiments.fitting import fitting
from specdec.experiments.heeded import require_heeded
from specdec.experiments.mistakes import is_mistake, mistake_of, require_known

from specdec.core.errors import UserError
from specdec.core.signals import Terminated, terminable
from specdec.version import version_line

if TYPE_CHECKING:
    from specdec.experiments.sweep import Sweepable

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED, EXIT_UNHEARD, EXIT_TERMINATED = 130, 141, 143  # as shells say it
# What Hydra itself takes; everything else is name=value.
FLAGS = {
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p"),
    *("--run", "-r", "--multirun", "-m", "--shell-completion", "-sc", "--info", "-i"),
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    "--experimental-rerun",
}
LONE_FLAGS = {"--multirun", "-m", "--resolve"}  # that take no value
PLUG_INS = ("proposer", "tree", "verification", "train", "loss")
OURS = {"--dry-run": "dry_run=true"}  # flags that are options
WRITE_A_FILE = ("calibrate", "costs")
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")  # Hydra's own words for `output`

OmegaConf.register_new_resolver("fitting", fitting, replace=True)  # ${fitting:learning_rate}


def build(node: Any, **extra: Any) -> Any:
    """Call the `_target_` of a configuration node, with `extra` as further arguments.

    Raises:
        UserError: there is no such class, it takes no such arguments, or it refused them.
    """
    located(node)
    for part in _parts(node):
        located(part)
    try:
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if is_mistake(cause) and not isinstance(cause, HydraException):
                raise cause from None
            # Raised by the call itself and not within: the arguments are not those of the class.
            uncalled = cause.__traceback__ is not None and cause.__traceback__.tb_next is None
            if isinstance(cause, TypeError) and uncalled:
                raise UserError(f"{node._get_full_key(None)}: {cause}") from None
            cause = cause.__cause__
        raise


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


def composed(group: str, name: str) -> DictConfig:
    """Compose one plug-in's configuration as `group=name` would, `configs/GROUP/NAME.yaml`."""
    return compose_decode([f"{group}={name}"])[group]


def compose_decode(overrides: Sequence[str]) -> DictConfig:
    """Compose the options of `decode`, within a job of Hydra's or without."""
    if GlobalHydra.instance().is_initialized():
        places = GlobalHydra.instance().config_loader().get_search_path().get_path()
        return deepcopy(_composed(tuple(overrides), tuple(str(each.path) for each in places)))
    # A saved configuration is built without Hydra.
    with hydra.initialize_config_module("specdec.configs", version_base="1.3"):
        return deepcopy(_composed(tuple(overrides), ()))


@cache  # a plan asks for the same options again and again, and composing is slow
def _composed(overrides: tuple[str, ...], places: tuple[str, ...]) -> DictConfig:
    return compose("decode", overrides)


def compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the options of an entry point, with what its plug-ins were chosen as."""
    found = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    chosen = found.hydra.runtime.choices
    with open_dict(found):
        del found["hydra"]
    return with_choices(found, chosen)


def with_choices(config: DictConfig, chosen: Mapping[str, Any]) -> DictConfig:
    """Note the names that plug-ins have on the command line, where results are named by them."""
    if "choices" in config:
        config.choices = {group: chosen[group] for group in PLUG_INS if group in chosen}
    return config


def run(
    task: Callable[[DictConfig], object], config_name: str, sweepable: "Sweepable | None" = None
) -> None:
    """Run `task` on the configuration that Hydra composes from the command line.

    What the user can mend (see `mistakes`) ends in one line on stderr and exit status 2; Ctrl-C
    ends with 130 and a scheduler's kill with 143; where nobody reads the output any more, with 141;
    our own bugs keep their traceback. With `sweepable` the command line may stand for many
    configurations: what fails is then listed in the end, and the exit status is 1.
    """
    # Without this, Hydra prints a page about its own exceptions and exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if not sys.stderr.isatty():  # progress bars of downloads and of loading weights
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "--version" in sys.argv[1:]:  # Hydra would name its own
        print(version_line())
        return
    try:
        with terminable(), _heard():
            _prepare_arguments(config_name)
            with _one_speaks():
                status = _launch(task, config_name, sweepable)
    except KeyboardInterrupt as error:
        status = EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED
    except BrokenPipeError:
        _be_silent()
        status = EXIT_UNHEARD
    except Exception as error:
        message = mistake_of(error, config_name, sys.argv[1:])
        if message is None:
            raise
        status = _fail(message)
    if status:
        sys.exit(status)


@contextmanager
def _heard() -> Iterator[None]:
    """Find out that nobody reads, `| head`, here and not when the interpreter ends."""
    try:
        yield
    finally:
        sys.stdout.flush()


def _be_silent() -> None:
    """Let nothing that is still to be printed raise once more."""
    with suppress(OSError, ValueError):  # a stand-in for stdout has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


@contextmanager
def _one_speaks() -> Iterator[None]:
    """Silence all but one of the processes that torchrun or accelerate have started."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _launch(
    task: Callable[[DictConfig], object], config_name: str, sweepable: "Sweepable | None"
) -> int:
    """Let Hydra call `task` once, or once for each job of a sweep; return the exit status."""
    mistakes: list[Exception] = []

    # Hydra would print a line of its own about a job that raises.
    def job(config: DictConfig) -> object:
        try:
            require_usable(HydraConfig.get(), HydraConfig.get().overrides.task)
            require_heeded(config_name, config, _told())
            require_own(config, HydraConfig.get().runtime.choices.get("experiment"), config_name)
            return task(with_choices(config, HydraConfig.get().runtime.choices))
        except Exception as error:
            if not is_mistake(error):
                raise
            mistakes.append(error)
            return None

    asked = get_args_parser().parse_args(sys.argv[1:])
    if not shows(asked):
        require_command(config_name, asked)
    decorate = hydra.main(
        version_base="1.3", config_path="pkg://specdec.configs", config_name=config_name
    )
    if sweepable is not None:
        from specdec.experiments import sweep

        status = sweep.run(config_name, asked, task, sweepable)
        if status is not None:
            return status
    decorate(job)()
    if mistakes:
        raise mistakes[0]
    return 0


def _told() -> list[str]:
    """Return the overrides of this command line, within a job, Hydra's own among them."""
    told = HydraConfig.get().overrides
    return [*told.task, *(text for text in told.hydra if text.startswith("hydra.sweep"))]


def shows(asked: Namespace) -> bool:
    """Whether a command line asks to be shown something, and for nothing to be done."""
    return any((asked.help, asked.hydra_help, asked.cfg, asked.info, asked.shell_completion))


def require_usable(own: Any, overrides: Sequence[str]) -> None:
    """Refuse what Hydra would take and we cannot; `own` is Hydra's node of a configuration.

    Raises:
        UserError: the working directory would change, or an option is read by nothing.
    """
    if own.job.chdir:
        expected = "false, since relative paths are those of the folder you are in"
        raise UserError(f"hydra.job.chdir={own.job.chdir}: expected {expected}")
    require_known(own.job.config_name, overrides)


def _prepare_arguments(config_name: str) -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the folder that you are in has been deleted; go to another one") from None
    arguments = [OURS.get(argument, argument) for argument in sys.argv[1:]]
    _refuse_unreadable(arguments)
    _refuse_no_folder(config_name, arguments)
    _refuse_unknown_flags(arguments)
    sys.argv[1:] = _flags_last(arguments)
    asked, _ = get_args_parser().parse_known_args(sys.argv[1:])
    if asked.config_dir is not None and not os.path.isdir(asked.config_dir):
        raise UserError(f"--config-dir={asked.config_dir}: no such folder")


def _refuse_unreadable(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if argument.encode(errors="replace").decode() != argument:
            raise UserError(f"{argument!r}: not UTF-8; expected a name without such bytes")


def _refuse_no_folder(config_name: str, arguments: Sequence[str]) -> None:
    for argument in arguments:
        name, _, value = argument.partition("=")
        is_none = config_name not in WRITE_A_FILE and value in ("", "null", "''", '""')
        if name in FOLDERS or (name == "output" and is_none):
            raise UserError(f"{argument}: expected a folder, output=DIR")


def _flags_last(arguments: Sequence[str]) -> list[str]:
    """Reorder: argparse understands a flag among the options only at their beginning or end.

    At the beginning a flag that may have a value would take an option for it.
    """
    flags, options = list[str](), list[str]()
    wants_value = False
    for argument in arguments:
        is_flag = argument.startswith("-")
        is_value = wants_value and not is_flag and "=" not in argument
        (flags if is_flag or is_value else options).append(argument)
        wants_value = is_flag and "=" not in argument and argument not in LONE_FLAGS
    return [*options, *flags]


def _refuse_unknown_flags(arguments: Sequence[str]) -> None:
    """Options are `name=value`; argparse would answer `--name value` with a page of usage."""
    for argument in arguments:
        name = argument.split("=")[0]
        if name.startswith("-") and name not in FLAGS:
            raise UserError(f"{argument}: options are written name=value, sampling.temperature=0.7")


def _fail(message: str) -> int:
    with suppress(OSError):  # where stderr goes to a file on the disk that is full
        print(f"error: {message}", file=sys.stderr)
    return EXIT_USER_ERROR
