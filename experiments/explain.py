"""Tell one text step by step: `python experiments/explain.py proposer=draft_model`."""

from specdec.command.doors import explain

if __name__ == "__main__":
    explain()
