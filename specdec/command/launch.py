"""What every entry point shares: Hydra around a task, one line for a user's mistake."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import import_module
from typing import Any

import hydra

# Which flags there are, the only place that says it: `hydra.main` parses them out of sight, and we
# must know before whether one line stands for many jobs.
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from specdec.command.chosen_experiment import INSTEAD, require_command, require_own
from specdec.command.compose import with_choices
from specdec.command.entry import Entry
from specdec.command.mistakes import is_mistake, mistake_of, require_known
from specdec.core.errors import UserError
from specdec.core.signals import Terminated, terminable
from specdec.version import version_line

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
OURS = {"--dry-run": "dry_run=true"}  # flags that are options
WRITE_A_FILE = ("calibrate", "costs", "describe")
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")  # Hydra's own words for `output`


def run(command: str) -> None:
    """Do what a command does on the configuration that Hydra composes from the command line.

    What the user can mend (see `mistakes`) ends in one line on stderr and exit status 2; Ctrl-C
    ends with 130 and a scheduler's kill with 143; where nobody reads the output any more, with 141;
    our own bugs keep their traceback. Where a command line stands for many configurations, those
    that fail are listed in the end, and the exit status is 1.
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
            _prepare_arguments(command)
            with _one_speaks():
                status = _launch(command)
    except KeyboardInterrupt as error:
        status = EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED
    except BrokenPipeError:
        _be_silent()
        status = EXIT_UNHEARD
    except Exception as error:
        message = mistake_of(error, command, sys.argv[1:])
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


def _launch(command: str) -> int:
    """Let Hydra call the task once, or once for each job of a sweep; return the exit status."""
    mistakes: list[Exception] = []

    # Hydra would print a line of its own about a job that raises.
    def job(config: DictConfig) -> object:
        try:
            require_usable(HydraConfig.get(), HydraConfig.get().overrides.task)
            _require_heeded(command, config)
            require_own(config, HydraConfig.get().runtime.choices.get("experiment"), command)
            return _entry(command).task(with_choices(config, HydraConfig.get().runtime.choices))
        except Exception as error:
            if not is_mistake(error):
                raise
            mistakes.append(error)
            return None

    arguments = get_args_parser().parse_args(sys.argv[1:])
    if not shows(arguments):
        require_command(command, arguments)
    decorate = hydra.main(
        version_base="1.3", config_path="pkg://specdec.configs", config_name=command
    )
    if command not in INSTEAD and not shows(arguments):
        status = _swept(command, arguments)
        if status is not None:
            return status
    decorate(job)()
    if mistakes:
        raise mistakes[0]
    return 0


def _entry(command: str) -> Entry:
    """Import what a command does: torch takes seconds, and `--help` should not wait for it."""
    return import_module(f"specdec.command.{command}").ENTRY


def _swept(command: str, arguments: Namespace) -> int | None:
    """Run a command line that stands for several jobs; None if it stands for one."""
    return import_module("specdec.command.sweep").run(command, arguments, _entry(command))


def _require_heeded(command: str, config: DictConfig) -> None:
    """Refuse options that would do nothing."""
    import_module("specdec.command.unheeded").require_heeded(command, config, _overrides())


def _overrides() -> list[str]:
    """Return the overrides of this command line, within a job, Hydra's own among them."""
    overrides = HydraConfig.get().overrides
    return [*overrides.task, *(text for text in overrides.hydra if text.startswith("hydra.sweep"))]


def shows(arguments: Namespace) -> bool:
    """Whether a command line asks to be shown something, and for nothing to be done."""
    shown = (arguments.help, arguments.hydra_help, arguments.cfg, arguments.info)
    return any((*shown, arguments.shell_completion))


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
    parsed, _ = get_args_parser().parse_known_args(sys.argv[1:])
    if parsed.config_dir is not None and not os.path.isdir(parsed.config_dir):
        raise UserError(f"--config-dir={parsed.config_dir}: no such folder")


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
