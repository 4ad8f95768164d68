"""Where results go beside the run's own folder: any tracker that accelerate knows."""

import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import WandBTracker
from accelerate.utils import LoggerType

from specdec.core.errors import UserError, require
from specdec.metrics import Tally
from specdec.results.flat import flat
from specdec.results.tracked_run import run_id

PROJECT = "specdec"
PATIENCE = 15.0  # seconds for an answer of wandb's service
TRACKERS = ("jsonl", "wandb", "tensorboard", "trackio")


def log_with(tracker: str) -> str | None:
    """Return what accelerate is to log with; `jsonl` needs nothing.

    Raises:
        UserError: no such tracker, its package is not installed, or wandb may not log offline and
            has no account.
    """
    require(tracker in TRACKERS, "tracker", tracker, "one of " + ", ".join(TRACKERS))
    if tracker == "jsonl":
        return None
    if find_spec(tracker) is None:
        raise UserError(f"tracker={tracker!r}: not installed; pip install {tracker}")
    try:
        import_module(tracker)
    except Exception as error:  # whatever a package raises that does not fit the others
        reason = _in_one_line(error)
        raise UserError(f"tracker={tracker!r}: cannot be imported ({reason})") from None
    if tracker == "wandb" and os.environ.get("WANDB_MODE") == "online" and not _has_wandb_key():
        expected = "a key (wandb login, or WANDB_API_KEY), or no WANDB_MODE, to log offline"
        raise UserError(f"tracker={tracker!r}: WANDB_MODE=online; expected {expected}")
    return tracker


def start_trackers(
    accelerator: Accelerator,
    output: Path,
    config: Mapping[str, Any],
    job_type: str,
    name: str,
    group: str | None = None,
    tags: Sequence[str] = (),
) -> None:
    """Begin the run, or go on with it: its id is kept in the output folder.

    What variables of wandb say (WANDB_PROJECT, WANDB_NAME) comes before the arguments here. wandb
    without an account, or whose service cannot be reached, logs offline, never asks, and says how
    to upload later.

    Raises:
        UserError: the tracker cannot be begun.
    """
    if not accelerator.is_main_process:  # who alone talks to trackers, and has the id
        return
    wanted = {tracker.value for tracker in map(LoggerType, accelerator.log_with)}
    known = {option: value for option, value in config.items() if value is not None}
    project = os.environ.get("WANDB_PROJECT") if "wandb" in wanted else None

    def begin(wandb: Mapping[str, Any]) -> None:
        kwargs = {"wandb": wandb, "trackio": {"name": name, "group": group}}
        accelerator.trackers = []  # accelerate keeps one that failed, and starts it again
        accelerator.init_trackers(project or PROJECT, config=known, init_kwargs=kwargs)

    try:
        if "wandb" in wanted:
            _begin_wandb(begin, _for_wandb(output, job_type, name, group, tags), output)
        else:
            begin({})
    except Exception as error:  # of somebody else's service
        accelerator.trackers = []
        raise UserError(f"tracker={', '.join(wanted)}: {_in_one_line(error)}") from None


def _for_wandb(
    output: Path, job_type: str, name: str, group: str | None, tags: Sequence[str]
) -> dict[str, Any]:
    """Return wandb's options, but for those that its own variables set."""
    ours: dict[str, tuple[str, Any]] = {
        "name": ("WANDB_NAME", name),
        "id": ("WANDB_RUN_ID", run_id(output)),
        "resume": ("WANDB_RESUME", "allow"),
        "dir": ("WANDB_DIR", str(output)),
        "job_type": ("WANDB_JOB_TYPE", job_type),
        "group": ("WANDB_RUN_GROUP", group),
        "tags": ("WANDB_TAGS", list(tags)),
    }
    found = {option: value for option, (variable, value) in ours.items()
             if not os.environ.get(variable)}  # fmt: skip
    patience = {} if "WANDB_INIT_TIMEOUT" in os.environ else {"init_timeout": PATIENCE}
    return {**found, "settings": {"silent": True, **patience}}


def _begin_wandb(
    begin: Callable[[Mapping[str, Any]], None], ours: Mapping[str, Any], output: Path
) -> None:
    """Begin online where there is an account, and offline where there is none or that fails."""
    place = os.environ.get("WANDB_DIR") or output
    upload = f"upload with: wandb sync {place}/wandb/offline-run-*"
    mode = os.environ.get("WANDB_MODE")
    if mode is None and not _has_wandb_key():
        print(f"wandb: no account here; {upload}")
        begin({**ours, "mode": "offline"})
        return
    try:
        begin(ours)
    except Exception as error:  # of somebody else's service
        if mode not in (None, "online"):
            raise
        wandb: Any = import_module("wandb")
        wandb.teardown()  # whose service would hold on to the id
        print(f"wandb: cannot log online ({_in_one_line(error)}); logs offline, {upload}")
        begin({**ours, "mode": "offline"})


def track(
    tracker: str,
    output: Path,
    config: Mapping[str, Any],
    group: str,
    summary: Mapping[str, Any],
    tally: Tally,
) -> None:
    """Hand the results of a run to a tracker: its metrics, and a table with a row a prompt.

    A tracker never fails a run: what it raises (no network, no room) is printed, and the results
    are in the run directory in any case. `jsonl` is that directory.
    """
    if tracker == "jsonl":
        return
    plain = {name: _plain(value) for name, value in config.items()}
    tags = [str(config["proposer"])]
    try:
        accelerator = Accelerator(
            log_with=log_with(tracker), project_dir=output, cpu=config["device"] == "cpu"
        )
        start_trackers(accelerator, output, plain, "decode", output.name, group, tags)
        accelerator.log(flat(summary))
        if tracker == "wandb":
            rows = tally.to_rows()
            wandb = accelerator.get_tracker("wandb")
            assert isinstance(wandb, WandBTracker)
            wandb.log_table("prompts", list(rows[0]), [list(row.values()) for row in rows])
        accelerator.end_training()
    except Exception as error:  # of somebody else's service
        print(f"{_of(tracker, error)}; the results are in {output}")


def keep_on(log: Callable[[], None], tracker: str, output: Path) -> bool:
    """Hand numbers of a training to its tracker; returns whether that is of any use.

    A tracker that breaks (no network, no room) never fails a training.
    """
    try:
        log()
    except Exception as error:  # of somebody else's service
        print(f"{_of(tracker, error)}; the training goes on, logged in {output}/metrics.jsonl")
        return False
    return True


def _of(tracker: str, error: Exception) -> str:
    reason = str(error) if isinstance(error, UserError) else _in_one_line(error)
    return reason if reason.startswith("tracker=") else f"tracker={tracker}: {reason}"


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")


def _plain(value: object) -> str | int | float | None:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _has_wandb_key() -> bool:
    """Whether wandb would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
