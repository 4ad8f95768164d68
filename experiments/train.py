"""Train a model or heads: `python experiments/train.py train=lm data.path=... output=...`."""

from specdec.command.doors import train

if __name__ == "__main__":
    train()
