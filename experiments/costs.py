"""Measure what steps cost: `python experiments/costs.py output=costs.json`."""

from specdec.command.doors import costs

if __name__ == "__main__":
    costs()
