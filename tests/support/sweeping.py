"""A sweep in processes of its own that are killed, and what is left to compare afterwards.

Run as a script: `sweeping.py NUM_KILLS SEED OPTION...`. Everything is imported once and the sweep
forked off, so that a kill costs no more than the work that it destroys.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

SECONDS = ("second", "speed", "time_share", "cost", "memory")  # what no two runs share


def table(folder: Path) -> pd.DataFrame:
    """Read a report's table, without what depends on the clock."""
    found = pd.read_csv(folder / "summary.csv")
    timed = [name for name in found if any(word in str(name) for word in SECONDS)]
    return found.drop(columns=timed).sort_values("arm").reset_index(drop=True)


def start(options: Sequence[str]) -> int:
    """Fork a sweep; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    from specdec.command.doors import decode

    sys.argv = ["decode", *options]
    status: Any = 0
    try:
        decode()
    except SystemExit as ending:
        status = ending.code or 0
    except BaseException:  # a fork must not go on with its parent's work
        status = 70
    os._exit(int(status))


def end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def has_begun(pid: int, folder: Path, before: float) -> bool:
    """Wait until a sweep writes to a run directory, or has ended; returns whether it goes on."""
    while True:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        files = list(folder.glob("*/status.json"))
        if any(file.exists() and file.stat().st_mtime > before for file in files):
            return True
        time.sleep(0.01)


def main(num_kills: int, seed: int, options: Sequence[str]) -> int:
    """Kill a sweep so many times, then let it end; prints how many kills hit it at work."""
    import specdec.command.report
    import specdec.lab.arm

    assert specdec.lab.arm, "imported for all of the forks"
    assert specdec.command.report
    folder = next(Path(text.split("=", 1)[1]) for text in options if text.startswith("output="))
    rng = random.Random(seed)
    hits = 0
    for _ in range(num_kills):
        before = time.time()
        pid = start(options)
        if not has_begun(pid, folder, before):
            break
        time.sleep(rng.uniform(0, 0.3))
        os.kill(pid, signal.SIGKILL)
        hits += end_of(pid) == -signal.SIGKILL
    status = end_of(start(options))
    print(f"kills {hits}")
    return status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
