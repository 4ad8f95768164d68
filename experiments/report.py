"""Report what a folder of runs comes to: `python experiments/report.py outputs/MY_SWEEP`."""

from specdec.command.doors import report

if __name__ == "__main__":
    report()
