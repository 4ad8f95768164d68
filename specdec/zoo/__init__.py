"""The embedded family of models, its prompts and its text."""

from pathlib import Path

ZOO_FOLDER = Path(__file__).parent  # where `zoo:NAME` lies
