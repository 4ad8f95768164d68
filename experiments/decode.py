"""Decode a set of prompts with one arm: `python experiments/decode.py proposer=ngram`."""

from specdec.command.doors import decode

if __name__ == "__main__":
    decode()
