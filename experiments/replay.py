"""Acceptance without decoding: `python experiments/replay.py recording=DIR`."""

from specdec.command.doors import replay

if __name__ == "__main__":
    replay()
