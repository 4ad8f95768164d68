"""What is known of an experiment before anything is composed: the command that it is for.

An experiment's file says `command: decode`. Another command refuses it, before
it makes something of half of its options; and whatever sweeps is planned, or refused: no command
ends in Hydra's own multirun, which has no plan, no report and no way back.
"""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from specdec.core.errors import UserError

MULTIRUN = "MULTIRUN"
# What to do instead, of the commands that run once.
INSTEAD = {
    "compare": "arms are compared in one run; list them, arms=[...], or sweep with specdec-decode",
    "record": "there is one recording in a folder; run it for each value, each output=DIR",
    "replay": "a whole grid is replayed at once; list the values, grid.gamma=[1,2] or arms=[...]",
    "costs": "one machine's costs are one file; run it for each value, each output=FILE",
    "calibrate": "there is one calibration in a file; run it for each value, each output=FILE",
    "check": "runs are checked together; list them, run=[A,B]",
    "describe": "one model is described; run it for each",
    "explain": "one text is told; run it for each",
    "report": "there is one report of a folder; run it for each",
}


def require_command(command: str, arguments: Namespace) -> None:
    """Refuse an experiment of another command, and to try several values where none sweeps.

    Raises:
        UserError: with what to run, or to write, instead.
    """
    sweeps = ["-m"] if arguments.multirun else []
    sweeps += [text for text in arguments.overrides if _says_multirun(text)]
    for name in experiments(arguments.overrides):
        found = _read(name, arguments.config_dir)
        require_own(found, name, command)
        if _mode(found) == MULTIRUN:
            sweeps.append(f"experiment={name}")
    if sweeps and command in INSTEAD:
        raise UserError(f"{sweeps[0]}: specdec-{command} does not sweep: {INSTEAD[command]}")


def require_own(found: Any, name: object, command: str) -> None:
    """Refuse what another command is for; `found` is an experiment, or what was composed of it."""
    other = found.get("command")
    if other not in (None, command):
        option = f"experiment={name}"
        raise UserError(f"{option}: is for specdec-{other}; run specdec-{other} {option}")


def experiments(overrides: Sequence[str]) -> Iterator[str]:
    """Yield the experiments that are chosen, one or several."""
    parser = OverridesParser.create()
    for text in overrides:
        if text.startswith("experiment="):
            try:
                parsed = parser.parse_override(text)
            except HydraException:  # composing says what is wrong with it
                continue
            if not parsed.is_sweep_override():
                yield str(parsed.value())
            elif parsed.is_choice_sweep():
                yield from (str(value) for value in parsed.sweep_string_iterator())


def _says_multirun(text: str) -> bool:
    return text.lstrip("+").replace(" ", "").upper() == f"HYDRA.MODE={MULTIRUN}"


def _read(name: str, config_dir: str | None) -> dict[str, Any]:
    """Read an experiment's file as it stands; empty where there is none that can be read."""
    places = [Path(str(files("specdec.configs")))]
    places += [] if config_dir is None else [Path(config_dir)]
    for place in places:
        try:
            text = (place / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
            found = yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError):
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _mode(found: dict[str, Any]) -> object:
    own = found.get("hydra")
    return own.get("mode") if isinstance(own, dict) else None
