"""Report what a folder of runs comes to: `python experiments/report.py outputs/MY_SWEEP`."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from specdec.command.entry import Entry
from specdec.core.errors import UserError, require
from specdec.report.table import ArmRow, print_tables
from specdec.report.write import notes, write_report


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
    collection, results = write_report(folder, reference, force)
    print_tables(
        {
            setting.label: [
                ArmRow(
                    each.arm.label, each.arm.options.get("verification", "rejection"), each.summary
                )
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


ENTRY = Entry(task)
