"""A report over 200 runs of 480 prompts takes seconds, and less memory than a laptop has."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.fabricated import easy_traces, make_config, write_run

GIB = 1 << 30
MEASURED = """
import resource, sys
sys.argv = ["report", sys.argv[1]]
from specdec.command.doors import report
report()
print("KILOBYTES", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_sweep(folder: Path) -> int:
    """Write run directories of 10 arms at 5 temperatures with 4 seeds.

    Those of a temperature and seed share nothing but names with the others; copies of the sums of
    the first ones do, since a report reads no more than these.
    """
    arms = [("none", 0)]
    arms += [(name, gamma) for name in ("ngram", "draft_model") for gamma in (1, 2, 3, 4)]
    arms.append(("ngram", 6))
    number = 0
    for temperature in range(5):
        for seed in range(4):
            for proposer, gamma in arms:
                run, first = folder / f"{number}", folder / f"{number % len(arms)}"
                config = make_config(proposer, gamma, temperature=temperature / 4, seed=seed)
                traces = easy_traces(480, gamma, gamma, num_steps=30) if run == first else []
                write_run(run, config, traces)
                for name in ("tally.jsonl", "summary.json") if run != first else ():
                    (run / name).write_bytes((first / name).read_bytes())
                number += 1
    return number


@pytest.mark.slow
def test_two_hundred_runs_are_reported_in_seconds(tmp_path: Path) -> None:
    number = write_sweep(tmp_path)
    assert number == 200
    begin = time.monotonic()
    command = [sys.executable, "-c", MEASURED, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begin
    assert ended.returncode == 0, ended.stderr
    (kilobytes,) = (line.split()[1] for line in ended.stdout.splitlines() if "KILOBYTES" in line)
    print(json.dumps({"runs": number, "seconds": seconds, "gib": int(kilobytes) * 1024 / GIB}))
    assert int(kilobytes) * 1024 <= GIB
    assert seconds <= 20
    assert (tmp_path / "report.html").stat().st_size < 10e6
