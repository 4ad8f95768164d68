"""Are a run's texts lossless? `python experiments/check.py run=outputs/decode/RUN`."""

import sys
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from specdec.command.entry import Entry
from specdec.core.errors import UserError, require, require_int, require_number
from specdec.lab.uniformity_of_run import draft_of_run, sampled_run, tested
from specdec.metrics.pit import Uniformity
from specdec.report.uniformity_table import print_uniformity

EXIT_NOT_LOSSLESS = 1
FILES = ("config.yaml", "traces.jsonl")
# The share of tokens that rounding may push over the edge of top-p, top-k or min-p when a forward
# of many tokens is compared with another; a sampler that is wrong does so far more often.
ROUNDED_AWAY = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 1e-2}


def task(config: DictConfig) -> None:
    """Score and test every run, print the table, exit with 1 if one is not lossless."""
    check_options(config)
    placed = {n: config[n] for n in ("device", "dtype") if config[n] is not None}
    runs = {str(path): sampled_run(path, placed) for path in run_folders(config.run)}
    found: dict[str, Uniformity] = {}
    for name, spec in runs.items():
        draft = draft_of_run(spec, config.draft.path, placed)
        found[name] = tested(Path(name), spec, draft, config.seed, config.batch)
    verdicts = {
        name: is_lossless(found[name], config.false_alarm, runs[name].dtype) for name in runs
    }
    print_uniformity(found, verdicts)
    lossy = [name for name, verdict in verdicts.items() if not verdict]
    if lossy:
        print(f"error: not lossless: {', '.join(lossy)}", file=sys.stderr)
        sys.exit(EXIT_NOT_LOSSLESS)
    print(f"lossless, as far as these tokens tell (false alarms: {config.false_alarm:g} per run)")


def check_options(config: DictConfig) -> None:
    """Refuse what is wrong before a model is loaded."""
    if OmegaConf.is_missing(config, "run"):
        raise UserError("run: missing; expected run=DIR, a run directory")
    require_int("batch", config.batch, 1)
    require_int("seed", config.seed, 0)
    named = OmegaConf.select(config, "draft.path")
    is_path = "path" in config.draft and (named is None or isinstance(named, str))
    require(is_path, "draft.path", named, "a folder or Hub id")
    require_number("false_alarm", config.false_alarm, 0.0, 1.0)


def run_folders(value: object) -> list[Path]:
    """List the run directories that are meant: a folder of a comparison stands for its arms'."""
    values = list(value) if isinstance(value, ListConfig) else [value]
    folders: list[Path] = []
    for each in values:
        require(isinstance(each, str) and bool(each), "run", each, "a run directory")
        folder = Path(str(each))
        is_run = all((folder / name).is_file() for name in FILES)
        found = [path.parent for path in folder.glob("*/traces.jsonl")]
        below = sorted(path for path in found if (path / "config.yaml").is_file())
        if not is_run and not below:
            raise UserError(f"run={str(folder)!r}: no {' and '.join(FILES)} in that folder")
        folders += [folder] if is_run else below
    require(bool(folders), "run", values, "at least one run directory")
    return folders


def is_lossless(found: Uniformity, false_alarm: float, dtype: str) -> bool:
    """Say whether a run passes."""
    few_impossible = found.num_impossible <= ROUNDED_AWAY[dtype] * found.num_tokens
    return few_impossible and found.p_value >= false_alarm


ENTRY = Entry(task)
