"""Record texts to replay: `python experiments/record.py sampling.temperature=1`."""

from specdec.command.doors import record

if __name__ == "__main__":
    record()
