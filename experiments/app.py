"""What every entry point shares: Hydra around a task, one line for a user's mistake."""

import os
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from specdec.core.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


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
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__
        raise


def run(task: Callable[[DictConfig], object], config_name: str) -> None:
    """Run `task` on the configuration that Hydra composes from the command line.

    A UserError, a mistyped option or an unwritable folder ends in one line on stderr and exit
    status 2; Ctrl-C ends with 130; our own bugs keep their traceback.
    """
    # Without this, Hydra prints a page about its own exceptions and exits with 1.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if not sys.stderr.isatty():  # progress bars of downloads and of loading weights
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    decorate = hydra.main(
        version_base="1.3", config_path="pkg://specdec.configs", config_name=config_name
    )
    try:
        decorate(task)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if isinstance(error, InstantiationException):
            raise  # a constructor failed for a reason that no user can mend
        sys.exit(_fail(_one_line(error)))
    except PermissionError as error:
        sys.exit(_fail(f"{error.filename}: not writable ({error.strerror})"))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return EXIT_USER_ERROR


def _one_line(error: Exception) -> str:
    """Join the first sentences of a message: Hydra spreads the useful part over several lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    noise = ("full_key:", "object_type=", "reference_type=")
    return " ".join(line for line in lines if not line.startswith(noise))
