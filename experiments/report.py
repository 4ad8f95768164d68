"""Report what a folder of runs comes to: `python experiments/report.py outputs/MY_SWEEP`."""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from specdec.experiments.app import run

from specdec.core.errors import UserError, require


def task(config: DictConfig) -> None:
    """Write the report and say where it is."""
    if OmegaConf.is_missing(config, "run") or not isinstance(config.run, str):
        raise UserError("run: expected a folder, python experiments/report.py DIR")
    reference = config.reference
    is_name = reference is None or isinstance(reference, str)
    require(is_name, "reference", reference, "the name of an arm")
    require(isinstance(config.force, bool), "force", config.force, "true or false")
    report(Path(config.run), reference, config.force)


def report(folder: Path, reference: str | None = None, force: bool = False) -> None:
    """Write everything, print the tables, and name the files."""
    # Here and not above, because plots take seconds to import and --help should not wait.
    from specdec.report.table import Row, print_tables
    from specdec.report.write import notes, write_report

    collection, results = write_report(folder, reference, force)
    print_tables(
        {
            setting.label: [
                Row(each.arm.label, each.arm.options.get("verification", "rejection"), each.summary)
                for each in arms
            ]
            for setting, arms in results
        },
        explained=False,  # the page does it
    )
    for note in notes(collection):
        print(note)
    print(
        f"look at {folder / 'report.html'}, which says what the numbers mean;"
        " compute with summary.csv or .parquet beside it"
    )


def main() -> None:
    """Console script `specdec-report`."""
    # The folder may be named without `run=`.
    sys.argv[1:] = [f"run={_quoted(text)}" if _is_folder(text) else text for text in sys.argv[1:]]
    run(task, "report")


def _is_folder(text: str) -> bool:
    return Path(text).is_dir() or not ("=" in text or text.startswith("-"))


def _quoted(text: str) -> str:
    """Quote a value for Hydra, in whose grammar commas and spaces mean something."""
    return "'" + text.replace("'", "\\'") + "'"


if __name__ == "__main__":
    main()
