"""Decode a set of prompts with one arm: `python experiments/decode.py proposer=ngram`."""

from collections.abc import Sequence

from omegaconf import DictConfig

from specdec.command.entry import Entry, Sweepable
from specdec.command.options import arm_spec
from specdec.command.report import report
from specdec.command.sweep import run_folder
from specdec.core.errors import UserError
from specdec.lab.checks import check_arm
from specdec.lab.decoding import decode_into
from specdec.lab.identity import name_of
from specdec.results.run_dir import state_of


def task(config: DictConfig) -> float | None:
    """Decode, write the run directory, print a table; returns block efficiency for sweepers."""
    check(config)
    folder = run_folder(config, SWEEPABLE)
    if config.dry_run:
        print(f"one run, {state_of(folder)}: {folder}")
        return None
    return decode_into(arm_spec(config), folder)


def check(config: DictConfig) -> None:
    """Refuse what cannot be decoded, before any model is loaded."""
    if "arms" in config:
        raise UserError("arms: this is for several arms; run specdec-compare with the same options")
    check_arm(arm_spec(config))


def name(config: DictConfig, keys: Sequence[str]) -> str:
    """Name the folder of a run by the options that are swept."""
    return name_of(arm_spec(config), keys)


SWEEPABLE = Sweepable(check, name, report)


ENTRY = Entry(task, SWEEPABLE)
