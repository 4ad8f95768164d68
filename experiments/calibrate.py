"""Measure which trees are worth growing: `python experiments/calibrate.py output=tree.json ...`."""

from specdec.command.doors import calibrate

if __name__ == "__main__":
    calibrate()
