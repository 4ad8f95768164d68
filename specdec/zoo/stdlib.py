"""The zoo's text: the source of Python's standard library, which every Python brings along."""

import sysconfig
from pathlib import Path

# Modules of the held-out set: never trained on; their loss is reported, their code gives the
# prompts. All of them exist, as single files, in Python 3.11 to 3.14.
HELD_OUT = (
    "argparse.py",
    "bisect.py",
    "calendar.py",
    "configparser.py",
    "csv.py",
    "difflib.py",
    "email/message.py",
    "fractions.py",
    "heapq.py",
    "http/cookies.py",
    "json/decoder.py",
    "logging/handlers.py",
    "queue.py",
    "sched.py",
    "shutil.py",
    "statistics.py",
    "string.py",
    "textwrap.py",
    "urllib/robotparser.py",
    "wsgiref/handlers.py",
)
# Tests, other people's packages, and tables that are data rather than code.
LEFT_OUT = (
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "__phello__",
)


def training_files() -> list[Path]:
    """Return the files to train on, sorted by their path inside the library."""
    root = _root()
    files = (path for path in root.rglob("*.py") if _is_code(path.relative_to(root)))
    return sorted(path for path in files if path.relative_to(root).as_posix() not in HELD_OUT)


def held_out_files() -> list[Path]:
    """Return the files that nothing is trained on."""
    return [_root() / name for name in HELD_OUT]


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _is_code(path: Path) -> bool:
    named_out = any(part in LEFT_OUT or part.startswith("config-") for part in path.parts)
    return not named_out and not path.name.startswith("_sysconfigdata")
