"""What a model takes, and what fits it: `python experiments/describe.py verifier.path=MODEL`."""

from specdec.command.doors import describe

if __name__ == "__main__":
    describe()
